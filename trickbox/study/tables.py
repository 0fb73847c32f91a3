"""Results as a table for the terminal, with what its columns mean and what to mind."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from trickbox.study import stats
from trickbox.study.answers import is_on_test_set
from trickbox.study.words import notes, number, p_value, short, units

if TYPE_CHECKING:
    from trickbox.study.comparison import Comparison
from trickbox.study.outcome import Outcome

_WIDE = 100

_HEADS = ("arm", "{metric}", "effect [95 % interval]", "better", "p", "verdict", "sees", "cost")


def table(outcome: Outcome) -> str:
    """Lay the comparisons out for a terminal, at most 100 columns wide, with what the columns mean below."""
    rows = cells(outcome)
    others = sum(max(map(len, column)) + 2 for column in list(zip(*rows, strict=True))[1:])
    rows = [(short(name, max(17, _WIDE - others)), *rest) for name, *rest in rows]
    below = [line for said in legend(outcome) for line in textwrap.wrap(said, _WIDE, subsequent_indent="  ")]
    return "\n".join([*textwrap.wrap(title(outcome), _WIDE), "", *ruled(rows), "", *below])


def ruled(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text as aligned lines, with a rule below the first.

    >>> ruled([("arm", "p"), ("dropout", "0.01")])
    ['arm      p', '-------------', 'dropout  0.01']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]]


def cells(outcome: Outcome) -> list[tuple[str, ...]]:
    """The table as rows of text, the heads first, then a row for each arm, and for each question about several."""
    by_name = {comparison.name: comparison for comparison in outcome.comparisons}
    heads = tuple(head.format(metric=outcome.metric.label) for head in _HEADS)
    means = {arm.name: _mean(outcome.value(arm.name)) for arm in outcome.arms}
    names = dict.fromkeys([*means, *by_name])
    return [heads, *((name, means.get(name, ""), *_cells(by_name.get(name))) for name in names)]


def title(outcome: Outcome) -> str:
    """Name the study in one line, with what has changed since its store was first looked at."""
    looks = outcome.looks
    default = " (default)" if outcome.margin_is_default else ""
    said = [
        f"{outcome.task.name}{', test set' if is_on_test_set(outcome) else ''}: {len(outcome.seeds)} paired seeds",
        f"margin {units(outcome.margin, outcome.metric)}{default}",
    ]
    if looks.earlier_margins:
        earlier = " and ".join(units(margin, outcome.metric) for margin in looks.earlier_margins)
        said.append(f"CHANGED after a look with {earlier}")
    if looks.are_sequential:
        said.append("seeds added after a look")
    if outcome.tuning is not None:
        said.append(f"each arm at its best of {len(outcome.tuning.settings)} settings")
    return ", ".join(said)


def legend(outcome: Outcome) -> list[str]:
    """Say what the columns of the table mean, which runs failed, and what to mind."""
    where = "the test set" if is_on_test_set(outcome) else "the comparison set"
    said = [
        f"{outcome.metric.label_and_unit}: on {where}; effect, sees: likewise; sees: the least effect that four of "
        "five such studies would call",
        "better: seeds of all; p: for all comparisons together; cost: time of a step as a ratio, added parameters",
    ]
    if not outcome.is_learned:
        said.append("most runs do no better than guessing: the task is too hard for this training, or too short")
    failed = {arm.name: sum(outcome.status(run) != "ok" for run in outcome.runs(arm.name)) for arm in outcome.arms}
    said += [f"{name}: {count} of {len(outcome.seeds)} runs failed" for name, count in failed.items() if count]
    warned = [f"{', '.join(arms)} warned: {text}" for text, arms in outcome.warnings.items()]
    minded = [note for each in outcome.comparisons for note in notes(each)]
    return [*said, *outcome.notes, *_chosen(outcome), *minded, *warned]


def _chosen(outcome: Outcome) -> list[str]:
    """Say which setting each arm got, and where a better one may lie beyond the last; or that none was chosen."""
    tuning = outcome.tuning
    if tuning is None:
        untuned = "untuned: one setting of the task for all arms; another rate may turn an effect around"
        return [] if outcome.final else [untuned]
    chosen = [f"{arm} {', '.join(f'{k}={v}' for k, v in tuning.chosen(arm).items())}" for arm in tuning.scores]
    edges = [arm for arm in tuning.scores if tuning.at_edge(arm)]
    beyond = f"at the edge of what was tried, so a better one may lie beyond: {', '.join(edges)}"
    return [f"chosen on {tuning.seeds} seeds of their own: {'; '.join(chosen)}", *[beyond] * bool(edges)]


def _mean(values: stats.Array) -> str:
    values = values[~np.isnan(values)]
    return number(float(values.mean())) if len(values) else "-"


def _cells(comparison: Comparison | None) -> tuple[str, ...]:
    if comparison is None or not comparison.n:
        return ("",) * 6
    effect = f"{number(comparison.mean, True)} [{number(comparison.low, True)}, {number(comparison.high, True)}]"
    sees = number(comparison.detectable) if math.isfinite(comparison.detectable) else "-"
    ratio = "" if math.isnan(comparison.time_ratio) else f"x{comparison.time_ratio:.2f}"
    cost = " ".join([ratio] * bool(ratio) + [f"{comparison.parameters:+d}"] * bool(comparison.parameters))
    wins = f"{comparison.inference.wins}/{comparison.n}"
    return effect, wins, p_value(comparison.p), comparison.verdict, sees, cost
