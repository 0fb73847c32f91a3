"""What the differences of all comparisons of a study show: verdicts that are safe together, whatever was looked at."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import scipy.stats
from attrs import frozen
from numpy.typing import ArrayLike

from trickbox.study import stats
from trickbox.study.stats import Array

Verdict = Literal["helps", "hurts", "equivalent", "inconclusive"]

LEAST = 6
"""The fewest pairs that decide anything: of fewer no test that does without normality can reach 5 %."""


@frozen
class Inference:
    """What the differences of n pairs say about their mean; positive is better, units are those of the differences.

    `low` to `high` is the 95 % interval of this mean alone. `p`, `p_equivalent` and `verdict` hold for all comparisons
    of a study together. `detectable` is the smallest true effect that four of five such studies would call, nan where
    the spread is unknown. `wins` and `ties` count seeds; `middle` is the mean of the middle half, without the extremes.
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float
    p: float
    p_equivalent: float
    verdict: Verdict
    detectable: float
    d_z: float
    wins: int
    ties: int
    middle: float


def infer(table: ArrayLike, margin: float, *, asked: int = 0, sequential: bool = False) -> list[Inference]:
    """Summarize each column of (seeds, comparisons), positive being better, against a margin in the same units.

    A nan is a pair that is missing. The verdicts are safe together: where nothing helps, at most one study in twenty
    calls anything; *asked* is how many comparisons were looked at in all, if more than these. *sequential* is for
    seeds that were added after a look, and keeps that promise over all looks (see `trickbox.study.stats.critical`).

    *helps* or *hurts*: the adjusted p is at most 5 %, and the interval lies on one side of zero. *equivalent*: two
    one-sided tests (TOST), adjusted by Holm, place the mean within the margin. *inconclusive*: anything else, also
    whatever fewer than six pairs show; it never means that there is no difference.

    >>> (found,) = infer([[0.4], [0.6], [0.5], [0.3], [0.7], [0.5]], margin=0.2)
    >>> found.verdict, round(found.mean, 2), found.p
    ('helps', 0.5, 0.03125)
    """
    values = np.asarray(table, float)
    columns = [column[~np.isnan(column)] for column in values.T]
    family, asked = len(columns), max(asked, len(columns), 1)
    if sequential:
        p = np.array([asked * stats.sequence_p(d) for d in columns])
        p_equivalent = np.array([asked * _sequence_equivalence(d, margin) for d in columns])
    else:
        p = stats.max_t(values) * (asked / max(family, 1))
        p_equivalent = stats.holm([stats.equivalence(d, margin) for d in columns]) * (asked / max(family, 1))
    return [
        _inferred(d, min(1.0, float(one)), min(1.0, float(other)), stats.ALPHA / asked, sequential)
        for d, one, other in zip(columns, p, p_equivalent, strict=True)
    ]


def _sequence_equivalence(d: Array, margin: float) -> float:
    """The p value that the mean lies within plus or minus *margin*, valid however often one looks."""
    inside = len(d) > 1 and abs(float(d.mean())) < margin
    return max(stats.sequence_p(d - margin), stats.sequence_p(d + margin)) if inside else 1.0


def _inferred(d: Array, p: float, p_equivalent: float, alpha: float, sequential: bool) -> Inference:
    n, sd = len(d), stats.spread(d)
    mean = float(d.mean()) if n else math.nan
    half = stats.critical(n, sequential=sequential) * sd / math.sqrt(n) if n > 1 else math.inf
    low, high = (mean - half, mean + half) if n > 1 and not math.isnan(half) else (-math.inf, math.inf)
    verdict: Verdict = "inconclusive"
    if n >= LEAST and p <= stats.ALPHA and (low > 0 or high < 0):
        verdict = "helps" if low > 0 else "hurts"
    elif n >= LEAST and p_equivalent < stats.ALPHA:
        verdict = "equivalent"
    return Inference(
        n=n,
        mean=mean,
        sd=sd,
        low=low,
        high=high,
        p=p,
        p_equivalent=p_equivalent,
        verdict=verdict,
        detectable=stats.detectable(sd, n, alpha, sequential) if n >= LEAST else math.inf,
        d_z=stats.hedges(d),
        wins=int((d > 0).sum()),
        ties=int((d == 0).sum()),
        middle=float(scipy.stats.trim_mean(d, 0.25)) if n else math.nan,
    )
