"""Results in words and in a table: what a reader may take from a comparison, no more and no less."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

import numpy as np

from trickbox.study import stats

if TYPE_CHECKING:
    from trickbox.study.outcome import Comparison, Outcome
    from trickbox.study.task import Metric

ALPHA = 0.05
_WIDE = 100
_FEW = 6  # below six pairs no sign-flip test can reach 0.05


def number(value: float, sign: bool = False) -> str:
    """Write a value with two decimals, or with two significant digits where those would show nothing.

    >>> number(0.4136, sign=True), number(12.3456), number(0.00312), number(0), number(float("inf"))
    ('+0.41', '12.35', '0.0031', '0.00', 'inf')
    """
    text = f"{value:+.2g}" if 0 < abs(value) < 0.005 else f"{value:+.2f}"
    return text if sign else text.lstrip("+")


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
    return f"{value:g} {metric.unit.removesuffix('s') if value == 1 else metric.unit}"


def sentence(comparison: Comparison) -> str:
    """Say what a comparison found in one sentence: effect, interval, verdict, cost, and what went wrong."""
    subject = comparison.arm if comparison.control == "baseline" else f"{comparison.arm} (next to {comparison.control})"
    found = [conclusion(comparison), *_costs(comparison), *_failures(comparison)]
    return f"{subject}: {_effect(comparison)}: {'; '.join(found)}."


def _effect(comparison: Comparison) -> str:
    if not comparison.n:
        return "no pair of runs came through"
    size = f"{amount(comparison.mean, comparison, sign=True)} of {comparison.metric.label}"
    if comparison.n == 1:
        return f"{size} (one pair only)"
    adjusted = "adjusted p" if comparison.family > 1 else "p"
    p = p_value(comparison.p)
    p = f"{adjusted} {p[0]} {p[1:]}" if p.startswith("<") else f"{adjusted} = {p}"
    interval = f"{number(comparison.low, True)} to {number(comparison.high, True)}"
    return f"{size} (95 % interval {interval}, {comparison.n} paired seeds, {p})"


def conclusion(comparison: Comparison) -> str:
    """Say the verdict, with what qualifies it."""
    found, margin = comparison.inference, units(comparison.margin, comparison.metric)
    if comparison.verdict in ("helps", "hurts"):
        nearest, farthest = sorted((abs(found.low), abs(found.high)))
        beside = "more" if nearest > comparison.margin else "less" if farthest < comparison.margin else None
        said = f"{comparison.verdict}, by {beside} than the margin of {margin}" if beside else comparison.verdict
        chance = f", taken alone; among {comparison.family} comparisons chance can do it"
        return said + chance if doubtful(comparison) else said
    if comparison.verdict == "equivalent":
        return "equivalent, the same to the last bit" if found.identical else f"equivalent within {margin}"
    if not math.isfinite(found.detectable):
        return "inconclusive, for want of pairs"
    least = amount(found.detectable, comparison)
    return f"inconclusive; an effect of {least} would have been seen in four of five such studies"


def doubtful(comparison: Comparison) -> bool:
    """Whether a comparison decides something alone that it does not once all comparisons are looked at together."""
    return comparison.verdict in ("helps", "hurts") and comparison.p > ALPHA


def said_verdict(comparison: Comparison) -> str:
    """The verdict as tables and figures show it: with a star where it is `doubtful`."""
    return f"{comparison.verdict} *" if doubtful(comparison) else comparison.verdict


def _costs(comparison: Comparison) -> list[str]:
    said = []
    if comparison.time_low > 1 or comparison.time_high < 1:
        said.append(pace(comparison.time_ratio))
    mine, theirs = comparison.epochs
    if mine != theirs and not math.isnan(mine + theirs):
        said.append(f"{mine:.3g} epochs instead of {theirs:.3g}")
    if comparison.parameters:
        said.append(f"{comparison.parameters:+,} parameters".replace(",", " "))
    return said


def pace(ratio: float) -> str:
    """Say a ratio of times.

    >>> pace(1.031), pace(0.8), pace(2.5)
    ('3 % slower', '20 % faster', '2.5 times as long')
    """
    if ratio >= 2:
        return f"{ratio:.1f} times as long"
    return f"{100 * (ratio - 1):.0f} % slower" if ratio > 1 else f"{100 * (1 - ratio):.0f} % faster"


def _failures(comparison: Comparison) -> list[str]:
    mine, theirs = comparison.failures
    if not mine + theirs:
        return []
    low, high = stats.wilson(mine, comparison.runs)
    rate = f"{mine} of {comparison.runs} runs failed (95 % interval {100 * low:.0f} to {100 * high:.0f} %)"
    said = [f"{rate}, {theirs} of {comparison.runs} of its control"]
    if comparison.all_runs is not None:
        said.append(f"counting failed runs as guessing, {amount(comparison.all_runs.mean, comparison, True)}")
    return said


def notes(comparison: Comparison) -> list[str]:
    """Say what a careful reader should know besides the sentence."""
    found, said = comparison.inference, []
    if comparison.arm == "placebo" and not found.identical:
        said.append("the placebo changed something: runs are not paired as they should be, so trust no other row")
    elif found.identical and comparison.arm != "placebo":
        said.append("every run ended in the same bits as its control's: the trick changed nothing that was measured")
    if 1 < found.n < _FEW and not found.identical:
        said.append(f"rests on normality: {found.n} pairs are too few for a test without it")
    if found.sd == 0 and not found.identical:
        said.append("every seed gave the same difference, so that the interval has no width")
    said += [f"warned: {text}" for text in comparison.warnings]
    return [f"{comparison.arm}: {note}" for note in said]


_HEADS = ("arm", "{metric}", "effect [95 % interval]", "p", "verdict", "sees", "cost")


def table(outcome: Outcome) -> str:
    """Lay the comparisons out for a terminal, at most 100 columns wide, with what the columns mean below."""
    rows = [(_short(name), *rest) for name, *rest in cells(outcome)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    rule = "-" * (sum(widths) + 2 * len(widths) - 2)
    below = [line for said in legend(outcome) for line in textwrap.wrap(said, _WIDE, subsequent_indent="  ")]
    return "\n".join([title(outcome), "", lines[0], rule, *lines[1:], "", *below])


def cells(outcome: Outcome) -> list[tuple[str, ...]]:
    """The table as rows of text, the heads first, then a row for each arm."""
    by_arm = {comparison.arm: comparison for comparison in outcome.comparisons}
    heads = tuple(head.format(metric=outcome.metric.label) for head in _HEADS)
    return [heads, *((arm.name, _mean(outcome.value(arm.name)), *_cells(by_arm.get(arm.name))) for arm in outcome.arms)]


def title(outcome: Outcome) -> str:
    """Name the study in one line."""
    default = " (default)" if outcome.margin_is_default else ""
    margin = f"margin {units(outcome.margin, outcome.metric)}{default}"
    return f"{outcome.task.name}: {len(outcome.seeds)} paired seeds, {margin}"


def legend(outcome: Outcome) -> list[str]:
    """Say what the columns of the table mean, which runs failed, and what to mind."""
    said = [
        f"effect, sees: in {outcome.metric.unit}; sees: the least effect that four of five such studies would see",
        "p: sign flips, adjusted for all arms together; cost: time of an epoch as a ratio, added parameters",
    ]
    if any(doubtful(comparison) for comparison in outcome.comparisons):
        said.append("*: taken alone; once all comparisons are looked at together, chance can do it (p above 0.05)")
    failed = {arm.name: sum(run["status"] != "ok" for run in outcome.runs(arm.name)) for arm in outcome.arms}
    said += [f"{name}: {count} of {len(outcome.seeds)} runs failed" for name, count in failed.items() if count]
    return said + [note for comparison in outcome.comparisons for note in comparison.notes]


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:16]}.."


def _mean(values: stats.Array) -> str:
    values = values[~np.isnan(values)]
    if not len(values):
        return "-"
    deviation = f" +- {number(stats.spread(values))}" if len(values) > 1 else ""
    return f"{number(float(values.mean()))}{deviation}"


def _cells(comparison: Comparison | None) -> tuple[str, ...]:
    if comparison is None or not comparison.n:
        return ("",) * 5
    effect = f"{number(comparison.mean, True)} [{number(comparison.low, True)}, {number(comparison.high, True)}]"
    sees = number(comparison.detectable)
    cost = f"x{comparison.time_ratio:.2f}" + (f" {comparison.parameters:+d}" if comparison.parameters else "")
    return effect, p_value(comparison.p), said_verdict(comparison), sees, cost
