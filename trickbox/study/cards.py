"""A card for each question of a study: verdict, effect, price, and every seed on one scale for all cards."""

from __future__ import annotations

import numpy as np
from attrs import frozen

from trickbox.study import words
from trickbox.study.comparison import Comparison
from trickbox.study.design import PLACEBO
from trickbox.study.outcome import Outcome
from trickbox.study.verdicts import Verdict

WIDTH, _EDGE = 300.0, 8.0
"""Of a strip, and what its outermost dots keep from its end, in the units of its drawing."""
ORDER: tuple[Verdict, ...] = ("helps", "hurts", "equivalent", "inconclusive")
SIGNS = dict(zip(ORDER, "\u25b2\u25bc=?", strict=True))
"""Triangles up and down, and two more: a verdict is never told by its color alone."""


@frozen
class Strip:
    """Where everything stands on the line of a card: the margin's ends, the interval's, the mean, and every seed."""

    text: str
    margin: tuple[float, float]
    interval: tuple[float, float] | None
    mean: float | None
    dots: tuple[float, ...]


@frozen
class Card:
    """What a reader needs to know of one question."""

    name: str
    verdict: Verdict
    sign: str
    effect: str
    interval: str
    seeds: str
    conclusion: str
    costs: tuple[str, ...]
    strip: Strip


def cards(outcome: Outcome) -> list[Card]:
    """The cards of all questions but the placebo, by verdict, and the best first."""
    asked = [each for each in outcome.comparisons if each.name != PLACEBO]
    scale = _scale(asked, outcome.margin)
    ordered = sorted(asked, key=lambda each: (ORDER.index(each.verdict), -np.nan_to_num(each.inference.mean)))
    return [_card(each, scale) for each in ordered]


def _card(comparison: Comparison, scale: float) -> Card:
    known = comparison.n > 1
    return Card(
        name=words.subject(comparison),
        verdict=comparison.verdict,
        sign=SIGNS[comparison.verdict],
        effect=words.amount(comparison.mean, comparison, sign=True) if comparison.n else "no pair of runs came through",
        interval=f"{words.number(comparison.low, True)} to {words.number(comparison.high, True)}" if known else "",
        seeds=f"better on {words.better(comparison)} seeds" if comparison.n else "",
        conclusion=words.conclusion(comparison),
        costs=(*words.costs(comparison), *words.failures(comparison)),
        strip=_strip(comparison, scale),
    )


def _scale(comparisons: list[Comparison], margin: float) -> float:
    """The largest value that all strips have room for: that of nearly all seeds, and of every mean."""
    values = np.concatenate([each.differences for each in comparisons] or [np.zeros(1)])
    values = np.abs(values[np.isfinite(values)])
    means = [abs(each.mean) for each in comparisons if each.n]
    return float(max(np.quantile(values, 0.95) if len(values) else 0.0, *means, 1.5 * margin))


def _strip(comparison: Comparison, scale: float) -> Strip:
    """What has no room stands at the edge."""
    known = comparison.differences[np.isfinite(comparison.differences)]
    ends = f"{words.number(known.min(), True)} and {words.number(known.max(), True)}" if len(known) else "nothing"
    return Strip(
        text=f"{words.subject(comparison)}: {len(known)} seeds between {ends}",
        margin=(_place(-comparison.margin, scale), _place(comparison.margin, scale)),
        interval=(_place(comparison.low, scale), _place(comparison.high, scale)) if comparison.n > 1 else None,
        mean=_place(comparison.mean, scale) if comparison.n else None,
        dots=tuple(_place(dot, scale) for dot in known),
    )


def _place(value: float, scale: float) -> float:
    middle = WIDTH / 2
    placed = np.clip(middle + value / scale * (middle - _EDGE), _EDGE / 2, WIDTH - _EDGE / 2)
    return round(float(placed), 1)
