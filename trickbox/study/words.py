"""Results in words and in a table: what a reader may take from a comparison, no more and no less."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from trickbox.study import stats
from trickbox.study.design import BASELINE, INTERACTION, PLACEBO
from trickbox.study.verdicts import LEAST, Inference

if TYPE_CHECKING:
    from trickbox.study.comparison import Comparison
    from trickbox.study.pace import ToTarget
    from trickbox.study.task import Metric

_MORE_MEMORY = 1.1
TOGETHER = {
    "helps": "Gain more together than apart",
    "hurts": "Gain less together than apart",
    "equivalent": "Neither help nor hinder each other",
    "inconclusive": "Whether they help or hinder each other is not to be told with so many seeds",
}
"""What a verdict means for a pair of tricks."""


def number(value: float, sign: bool = False) -> str:
    """Write a value with two decimals, or with two significant digits where those would show too little.

    >>> number(0.4136, sign=True), number(12.3456), number(0.0312), number(-0.0), number(float("inf"))
    ('+0.41', '12.35', '0.031', '0.00', 'inf')
    """
    value += 0.0  # there is a zero below zero
    text = f"{value:+.2g}" if 0 < abs(value) < 0.1 else f"{value:+.2f}"
    return text if sign else text.lstrip("+")


def short(name: str, width: int) -> str:
    """Cut a name that is too wide.

    >>> short("dropout", 9), short("a long name", 9)
    ('dropout', 'a long ..')
    """
    return name if len(name) <= width else f"{name[: width - 2]}.."


def p_value(p: float) -> str:
    """Write a p value the usual way.

    >>> p_value(0.01234), p_value(0.00004), p_value(1.0)
    ('0.012', '<0.001', '1')
    """
    return "<0.001" if p < 0.001 else f"{p:.2g}"


def amount(value: float, comparison: Comparison, sign: bool = False) -> str:
    """Write a value with the unit of the comparison's metric."""
    return f"{number(value, sign)} {comparison.metric.unit}".strip()


def units(value: float, metric: Metric) -> str:
    """Write a declared value with its unit: ``1 point``, ``0.5 points``."""
    return f"{value:.3g} {metric.unit.removesuffix('s') if value == 1 else metric.unit}".strip()


def sentence(comparison: Comparison) -> str:
    """Say what a comparison found in one sentence: effect, interval, verdict, cost, and what went wrong."""
    found = [conclusion(comparison), *costs(comparison), *failures(comparison)]
    return f"{subject(comparison)}: {_effect(comparison)}: {'; '.join(found)}."


def subject(comparison: Comparison) -> str:
    """Name what a comparison asks of: the arm, and its control where that is not the baseline."""
    control = comparison.question.control
    return comparison.name if control in (None, BASELINE) else f"{comparison.name} (next to {control})"


def _effect(comparison: Comparison) -> str:
    if not comparison.n:
        return "no pair of runs came through"
    size = f"{amount(comparison.mean, comparison, sign=True)} of {comparison.metric.label}"
    if comparison.n == 1:
        return f"{size} (one pair only)"
    p = p_value(comparison.p)
    p = f"{'adjusted ' * (comparison.family > 1)}p {f'{p[0]} {p[1:]}' if p.startswith('<') else f'= {p}'}"
    kind = "95 % confidence sequence" if comparison.sequential else "95 % interval"
    bounds = f"{kind} {number(comparison.low, True)} to {number(comparison.high, True)}"
    return f"{size} ({bounds}, better on {better(comparison)} paired seeds, {p})"


def better(comparison: Comparison) -> str:
    """Say on how many seeds an arm was better than its control.

    >>> from types import SimpleNamespace as Made
    >>> better(Made(inference=Made(wins=7, ties=1, n=10)))
    '7 of 10 (1 tie)'
    """
    found = comparison.inference
    ties = f" ({found.ties} tie{'s' if found.ties > 1 else ''})" if found.ties else ""
    return f"{found.wins} of {found.n}{ties}"


def conclusion(comparison: Comparison) -> str:
    """Say the verdict, with what qualifies it."""
    found, margin = comparison.inference, units(comparison.margin, comparison.metric)
    if comparison.question.family == INTERACTION and comparison.verdict != "inconclusive":
        return TOGETHER[comparison.verdict].lower()
    if comparison.is_identical:
        return "equivalent, the same to the last bit"
    if comparison.verdict in ("helps", "hurts"):
        nearest, farthest = sorted((abs(found.low), abs(found.high)))
        beside = "more" if nearest > comparison.margin else "less" if farthest < comparison.margin else None
        return f"{comparison.verdict}, by {beside} than the margin of {margin}" if beside else comparison.verdict
    if comparison.verdict == "equivalent":
        return f"equivalent within {margin}"
    return f"inconclusive{_why_not(comparison)}"


def _why_not(comparison: Comparison) -> str:
    """Why nothing is decided, or what would have been seen."""
    found = comparison.inference
    if found.n < LEAST:
        return f": fewer than {LEAST} pairs decide nothing" if found.n else ", for want of pairs"
    if (found.low > 0 or found.high < 0) and comparison.family == 1:
        return ": the interval alone says so, and it rests on normality"
    if found.low > 0 or found.high < 0:
        return f": an effect taken alone, but among {comparison.family} comparisons chance can do it"
    if not math.isfinite(found.detectable):
        return ""
    least = amount(found.detectable, comparison)
    return f"; an effect of {least} would have been seen in four of five such studies"


def costs(comparison: Comparison) -> list[str]:
    """Say what an arm costs in time, epochs, memory and parameters, where it is more or less than its control."""
    said = []
    if comparison.time_low > 1 or comparison.time_high < 1:
        said.append(f"{pace(comparison.time_ratio)}{_at_equal_time(comparison)}")
    if comparison.memory_ratio >= _MORE_MEMORY:
        said.append(f"{comparison.memory_ratio:.2g} times the memory")
    mine, theirs = comparison.epochs
    if mine != theirs and not math.isnan(mine + theirs):
        said.append(f"{mine:.3g} epochs instead of {theirs:.3g}")
    if comparison.parameters:
        said.append(f"{comparison.parameters:+,} parameters".replace(",", " "))
    return said + ([_to_target(comparison.to_target, comparison)] if comparison.to_target else [])


def _at_equal_time(comparison: Comparison) -> str:
    found = comparison.at_equal_time
    return f", in the same time {size(comparison, found)} on validation" if found and found.n > 1 else ""


def _to_target(found: ToTarget, comparison: Comparison) -> str:
    """Say how the arm and its control came to the target."""
    goal = f"{units(found.target, comparison.metric)} of validation {comparison.metric.label}"
    mine, theirs = found.misses
    missed = f", missed by {mine} of {found.runs} runs and {theirs} of its control" if mine or theirs else ""
    ratio = f" in {found.ratio:.2g} times the time" if 0 < found.ratio < math.inf else ""
    return f"reaches {goal}{ratio}, sooner on {found.sooner} of {found.runs} seeds, later on {found.later}{missed}"


def pace(ratio: float) -> str:
    """Say a ratio of times.

    >>> pace(1.031), pace(0.8), pace(2.5)
    ('3 % slower', '20 % faster', '2.5 times as long')
    """
    if round(ratio, 1) >= 2:
        return f"{ratio:.1f} times as long"
    return f"{100 * (ratio - 1):.0f} % slower" if ratio > 1 else f"{100 * (1 - ratio):.0f} % faster"


def failures(comparison: Comparison) -> list[str]:
    """Say how many runs failed, and what they would make of the effect."""
    mine, theirs = comparison.failures
    if not mine + theirs:
        return []
    runs, others = comparison.runs
    low, high = stats.wilson(mine, runs)
    rate = f"{mine} of {runs} runs failed (95 % interval {100 * low:.0f} to {100 * high:.0f} %)"
    said = [f"{rate}, {theirs} of {others} of its control"]
    if any(comparison.collapses):
        own, other = comparison.collapses
        said.append(f"{own} of them and {other} of its control's learned no more than guessing")
    if comparison.all_runs is not None:
        said.append(f"counting failed runs as guessing, {amount(comparison.all_runs.mean, comparison, True)}")
    return said


def notes(comparison: Comparison) -> list[str]:
    """Say what a careful reader should know besides the sentence."""
    found, said = comparison.inference, []
    if comparison.name == PLACEBO:
        if found.n and not comparison.is_identical:
            said.append("the placebo changed something: runs are not paired as they should be, so trust no other row")
    elif comparison.is_identical:
        said.append("every run ended in the same bits as its control's: the trick changed nothing that was measured")
    elif comparison.same_bits:
        said.append(f"{comparison.same_bits} of {found.n} runs ended in the same bits as their control's")
    if found.n and found.ties == found.n and not comparison.is_identical:
        said.append("it ties on every seed: the metric cannot tell the arms apart")
    elif found.n > 1 and found.sd == 0 and not comparison.is_identical:
        said.append("every seed gave the same difference, so that the interval has no width")
    if comparison.turns:
        said.append("in log odds it points the other way: near a ceiling or a floor effects cannot add up in points")
    said += _far_apart(comparison)
    return [f"{comparison.name}: {note}" for note in said]


def _far_apart(comparison: Comparison) -> list[str]:
    """Name the seeds that pull the mean, and say what the others show."""
    if not comparison.outliers:
        return []
    seeds = ", ".join(map(str, comparison.outliers))
    turned = 1 if comparison.metric.higher_is_better else -1
    middle = amount(turned * comparison.inference.middle, comparison, True)
    plural = "s" * (len(comparison.outliers) > 1)
    return [f"seed{plural} {seeds} stand{'' if plural else 's'} far apart; the middle half of the seeds gives {middle}"]


def size(comparison: Comparison, found: Inference) -> str:
    """An effect with its interval, in the metric's own direction."""
    if found.n < 2:
        return ""
    turned = 1 if comparison.metric.higher_is_better else -1
    low, high = sorted((turned * found.low, turned * found.high))
    return f"{amount(turned * found.mean, comparison, True)} ({number(low, True)} to {number(high, True)})"
