"""Pictures of what was found: pure functions from an outcome to a matplotlib figure, without global state."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from trickbox.study import words
from trickbox.study.design import BASELINE, INTERACTION, PLACEBO
from trickbox.study.drawing import BAND, GRAY, INK, PAPER, VERDICTS, blank, clean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from trickbox.study.comparison import Comparison
from trickbox.study.outcome import Outcome


def forest(outcome: Outcome) -> Figure:
    """Draw one row for each comparison: the 95 % interval, every seed's difference behind it, the margin as a band."""
    comparisons = outcome.comparisons
    figure = blank(9.0, 1.2 + 0.42 * len(comparisons))
    axes = figure.subplots()
    axes.axvspan(-outcome.margin, outcome.margin, color=BAND, zorder=0)
    axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
    for row, comparison in enumerate(comparisons):
        _forest_row(axes, row, comparison)
    axes.set_yticks(range(len(comparisons)), [_in_two_lines(each) for each in comparisons])
    axes.set_ylim(len(comparisons) - 0.4, -0.6)
    side = "right" if outcome.metric.higher_is_better else "left"
    axes.set_xlabel(f"difference in {outcome.metric.label_and_unit}; {side} is better")
    legend = f"gray band: the margin of {words.units(outcome.margin, outcome.metric)}; dots: single seeds"
    axes.set_title(legend, fontsize=9, loc="left")
    clean(axes, left=False)
    axes.tick_params(axis="y", length=0)
    return figure


def _forest_row(axes: Axes, row: int, comparison: Comparison) -> None:
    color = VERDICTS[comparison.verdict]
    dots = comparison.differences[~np.isnan(comparison.differences)]
    axes.plot(dots, np.full(len(dots), row + 0.24), "o", color=color, alpha=0.4, markersize=3.5, markeredgewidth=0)
    if comparison.n > 1:
        axes.plot([comparison.low, comparison.high], [row, row], color=color, linewidth=4, solid_capstyle="butt")
    axes.plot([comparison.mean], [row], "|", color=color, markeredgewidth=2, markersize=14)
    place: Any = axes.get_yaxis_transform()
    text = f"{comparison.verdict}, n = {comparison.n}"
    axes.text(1.02, row, text, color=color, transform=place, va="center", fontweight="bold")


def _in_two_lines(comparison: Comparison) -> str:
    return words.subject(comparison).replace(" (next to ", "\n(next to ")


def trials(outcome: Outcome) -> Figure | None:
    """Draw what each arm reached at every setting that was tried, a line for each; a ring marks the one it got.

    None where there were no trials.
    """
    tuning = outcome.tuning
    if tuning is None:
        return None
    figure = blank(7.5, 4.0)
    axes = figure.subplots()
    names = ["\n".join(f"{knob}={value}" for knob, value in setting.items()) for setting in tuning.settings]
    for number, (arm, scores) in enumerate(tuning.scores.items()):
        color = INK if arm == BASELINE else f"C{number % 10}"
        axes.plot(names, list(scores), color=color, label=arm, marker=".", linewidth=2.5 if arm == BASELINE else 1.2)
        best = tuning.best(arm)
        axes.plot([names[best]], [scores[best]], "o", color=color, markerfacecolor="none", markersize=11)
    axes.set_ylabel(outcome.metric.label_and_unit)
    if not outcome.metric.higher_is_better:
        axes.invert_yaxis()
    figure.legend(loc="outside right upper", frameon=False)
    clean(axes)
    return figure


def cost(outcome: Outcome) -> Figure | None:
    """Draw what each arm gains against what its steps cost; the names stand in a column, each tied to its point.

    The line joins the arms that no other beats in both. None where nothing was timed.
    """
    known = [
        each for each in outcome.comparisons if each.n and not math.isnan(each.time_ratio) and each.name != PLACEBO
    ]
    if not known:
        return None
    figure = blank(8.5, max(4.0, 0.8 + 0.24 * len(known)))
    axes = figure.subplots()
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.axhspan(-outcome.margin, outcome.margin, color=BAND, zorder=0)
    for each in known:
        axes.plot([each.time_ratio] * 2, _finite(each), color=VERDICTS[each.verdict], linewidth=1, alpha=0.5)
        axes.plot(
            [each.time_ratio], [each.mean], "o", color=VERDICTS[each.verdict], markeredgecolor=PAPER, markersize=7
        )
    front = _front(known)
    axes.plot([each.time_ratio for each in front], [each.mean for each in front], color=GRAY, linestyle=":", zorder=0)
    if not outcome.metric.higher_is_better:
        axes.invert_yaxis()
    _time_axis(axes, [each.time_ratio for each in known])
    axes.set_ylabel(f"difference in {outcome.metric.label_and_unit}")
    _names(axes, known, outcome.metric.higher_is_better)
    clean(axes)
    return figure


def _finite(comparison: Comparison) -> list[float]:
    """The ends of the interval, where it has some."""
    return [comparison.low, comparison.high] if comparison.n > 1 else [comparison.mean] * 2


def _front(known: list[Comparison]) -> list[Comparison]:
    """The arms than which none is both cheaper and better, the cheapest first."""
    found: list[Comparison] = []
    for each in sorted(known, key=lambda each: (each.time_ratio, -each.inference.mean)):
        if not found or each.inference.mean > found[-1].inference.mean:
            found.append(each)
    return found


def _time_axis(axes: Axes, ratios: Sequence[float]) -> None:
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log")
    low, high = min(0.9, *ratios) / 1.05, max(1.1, *ratios) * 1.05
    axes.set_xlim(low, high)
    ticks = [tick for tick in (0.25, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.5, 2, 3, 5, 10) if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("time of a step, as a ratio to the control's (left is cheaper)")


def _names(axes: Axes, known: list[Comparison], higher_is_better: bool) -> None:
    """Write the names beside the axes in the order of the points, so that none hides another."""
    places: Any = axes.get_yaxis_transform()
    order = sorted(known, key=lambda each: each.mean, reverse=higher_is_better)
    bottom, top = axes.get_ylim()
    rows = np.linspace(top, bottom, len(order) + 2)[1:-1]
    for row, each in zip(rows, order, strict=True):
        axes.annotate(
            words.short(words.subject(each), 34),
            (each.time_ratio, each.mean),
            xytext=(1.04, row),
            textcoords=places,
            va="center",
            fontsize=9,
            color=VERDICTS[each.verdict],
            arrowprops={
                "arrowstyle": "-",
                "color": VERDICTS[each.verdict],
                "linewidth": 0.5,
                "alpha": 0.6,
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
        )


def interactions(outcome: Outcome) -> Figure | None:
    """Draw for each pair of tricks what both gain beyond what each gains, and on the diagonal what each gains.

    What is not sure stands in gray. None where pairs were not asked.
    """
    found = {each.name: each for each in outcome.comparisons}
    single = {each.question.trick[0]: each for each in found.values() if each.question.trick}
    if not any(each.question.family == INTERACTION for each in found.values()):
        return None
    names = list(single)
    figure = blank(1.6 + 1.1 * len(names), 1.0 + 0.8 * len(names))
    axes = figure.subplots()
    for (row, first), (column, second) in itertools.product(enumerate(names), repeat=2):
        asked = (
            single[first] if first == second else found.get(f"{first} x {second}") or found.get(f"{second} x {first}")
        )
        if asked is not None:
            _tile(axes, row, column, asked)
    axes.set_xticks(range(len(names)), [words.short(name, 14) for name in names])
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_title("diagonal: each overall; others: both beyond each", fontsize=9, loc="left")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _tile(axes: Axes, row: int, column: int, comparison: Comparison) -> None:
    from matplotlib.patches import Rectangle

    color = VERDICTS[comparison.verdict]
    framed = 2.0 if row == column else 0.8
    axes.add_patch(
        Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, facecolor=BAND, edgecolor=color, linewidth=framed)
    )
    value = words.number(comparison.mean, sign=True) if comparison.n else "-"
    axes.text(column, row - 0.1, value, ha="center", va="center", color=color, fontweight="bold", fontsize=11)
    axes.text(column, row + 0.25, comparison.verdict, ha="center", va="center", color=color, fontsize=7)
