"""The pictures of a study: pure functions from an outcome to a matplotlib figure, without global state."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from trickbox.streams import derive
from trickbox.study import words
from trickbox.study.design import BASELINE
from trickbox.study.run import EXAMPLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from trickbox.study.outcome import Comparison, Outcome

# Okabe and Ito's colors, which color-blind readers can tell apart.
BLUE, ORANGE, GREEN, RED, GRAY, PALE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666", "#E4E4E4"
COLORS = {"helps": BLUE, "hurts": RED, "equivalent": GREEN, "inconclusive": GRAY}
RIGHT, WRONG = "#007A3D", "#C1121F"


def forest(outcome: Outcome) -> Figure:
    """Draw one row for each comparison: the 95 % interval, every seed's difference behind it, the margin as a band."""
    comparisons = outcome.comparisons
    figure = _figure(9.0, 1.3 + 0.5 * len(comparisons))
    axes = figure.subplots()
    axes.axvspan(-outcome.margin, outcome.margin, color=PALE, zorder=0)
    axes.axvline(0, color="black", linewidth=0.8, zorder=1)
    for row, comparison in enumerate(comparisons):
        _forest_row(axes, row, comparison)
    axes.set_yticks(range(len(comparisons)), [_against(comparison) for comparison in comparisons])
    axes.set_ylim(len(comparisons) - 0.4, -0.6)
    side = "right" if outcome.metric.higher_is_better else "left"
    axes.set_xlabel(f"difference in {outcome.metric.label_and_unit}; {side} is better")
    legend = f"gray band: the margin of {words.units(outcome.margin, outcome.metric)}; dots: single seeds"
    axes.set_title(legend, fontsize=9, loc="left")
    _clean(axes, left=False)
    axes.tick_params(axis="y", length=0)
    return figure


def _forest_row(axes: Axes, row: int, comparison: Comparison) -> None:
    color = COLORS[comparison.verdict]
    dots = comparison.differences[~np.isnan(comparison.differences)]
    axes.plot(dots, np.full(len(dots), row + 0.22), "o", color=color, alpha=0.35, markersize=4, markeredgewidth=0)
    if comparison.n > 1:
        axes.plot([comparison.low, comparison.high], [row, row], color=color, linewidth=4, solid_capstyle="butt")
    axes.plot([comparison.mean], [row], "|", color=color, markeredgewidth=2, markersize=14)
    place: Any = axes.get_yaxis_transform()
    text = f"{comparison.verdict}, n = {comparison.n}"
    axes.text(1.02, row, text, color=color, transform=place, va="center", fontweight="bold")


def _against(comparison: Comparison) -> str:
    return words.subject(comparison).replace(" (next to ", "\n(next to ")


def trials(outcome: Outcome) -> Figure:
    """Draw what each arm reached at every setting that was tried, a line for each; a ring marks the one it got."""
    tuning = outcome.tuning
    assert tuning is not None
    figure = _figure(7.5, 4.0)
    axes = figure.subplots()
    names = ["\n".join(f"{knob}={value}" for knob, value in setting.items()) for setting in tuning.settings]
    for number, (arm, scores) in enumerate(tuning.scores.items()):
        color = "black" if arm == BASELINE else f"C{number % 10}"
        axes.plot(names, list(scores), color=color, label=arm, marker=".", linewidth=2.5 if arm == BASELINE else 1.2)
        best = tuning.settings.index(tuning.chosen(arm))
        axes.plot([names[best]], [scores[best]], "o", color=color, markerfacecolor="none", markersize=11)
    axes.set_ylabel(outcome.metric.label_and_unit)
    if not outcome.metric.higher_is_better:
        axes.invert_yaxis()
    figure.legend(loc="outside right upper", frameon=False)
    _clean(axes)
    return figure


def curves(outcome: Outcome, quantity: str = "loss") -> Figure:
    """Draw the curves of all arms: a thin line for each seed, the mean thick, the control's mean in gray."""
    columns = 2 if len(outcome.arms) in (2, 4) else 3
    rows = math.ceil(len(outcome.arms) / columns)
    figure = _figure(3.3 * columns, 0.5 + 2.5 * rows)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, arm in zip(panels, outcome.arms, strict=False):
        if arm.control is not None:
            _mean(axes, _columns(outcome, arm.control, f"val_{quantity}"), GRAY, "validation of the control")
        for part, color, label in (("train", ORANGE, "training"), ("val", BLUE, "validation")):
            runs = _columns(outcome, arm.name, f"{part}_{quantity}")
            _seeds(axes, runs, color)
            _mean(axes, runs, color, label)
        axes.set_title(arm.name, fontsize=10, loc="left")
        _whole_epochs(axes)
        _clean(axes)
    for above, axes in zip(panels[len(outcome.arms) - columns :], panels[len(outcome.arms) :], strict=False):
        above.tick_params(labelbottom=True)
        axes.set_axis_off()
    _frame(panels[0], outcome, quantity)
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel(quantity, fontsize=10)
    lines = {line.get_label(): line for axes in panels for line in axes.get_legend_handles_labels()[0]}
    figure.legend(lines.values(), lines.keys(), loc="outside upper left", ncols=3, frameon=False)
    return figure


def _seeds(axes: Axes, runs: list[list[float]], color: str) -> None:
    for run in runs:
        axes.plot(range(1, len(run) + 1), run, color=color, alpha=0.35, linewidth=0.7)


def _mean(axes: Axes, runs: list[list[float]], color: str, label: str) -> None:
    """The mean of all seeds, as far as all of them go."""
    shared = min((len(run) for run in runs), default=0)
    if shared:
        mean = np.mean([run[:shared] for run in runs], axis=0)
        axes.plot(range(1, shared + 1), mean, color=color, linewidth=2, label=label, marker="." if shared < 3 else None)


def _columns(outcome: Outcome, arm: str, column: str) -> list[list[float]]:
    return [run["curves"][column] for run in outcome.runs(arm) if column in run.get("curves", {})]


def _frame(axes: Axes, outcome: Outcome, quantity: str) -> None:
    """Leave the few worst values out of sight, so that a run that blew up does not flatten all others."""
    runs = [run["curves"] for run in outcome.results.values() if "curves" in run]
    columns = [run.get(f"{part}_{quantity}", []) for run in runs for part in ("train", "val")]
    values = np.array([value for column in columns for value in column])
    values = values[np.isfinite(values)]
    if len(values):
        low, high = values.min(), np.quantile(values, 0.99)
        room = 0.05 * (high - low) or 1.0
        axes.set_ylim(low - room, high + room)


def cost(outcome: Outcome) -> Figure:
    """Draw what each arm gains against what its epochs cost, both with 95 % intervals; the upper left is free lunch."""
    from matplotlib.ticker import NullLocator

    figure = _figure(7.5, 4.0)
    axes = figure.subplots()
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.axhspan(-outcome.margin, outcome.margin, color=PALE, zorder=0)
    known = [each for each in outcome.comparisons if each.n and not math.isnan(each.time_ratio)]
    for number, comparison in enumerate(known, 1):
        _cross(axes, comparison, number)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    ticks = [tick for tick in (0.25, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.5, 2, 3, 5, 10) if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("time of a step, as a ratio to the control's (left is cheaper)")
    axes.set_ylabel(f"difference in {outcome.metric.label_and_unit}")
    if not outcome.metric.higher_is_better:
        axes.invert_yaxis()
    if known:
        figure.legend(loc="outside right upper", frameon=False)
    _clean(axes)
    return figure


def _cross(axes: Axes, comparison: Comparison, number: int) -> None:
    color = COLORS[comparison.verdict]
    if comparison.n > 1:
        axes.plot([comparison.time_ratio] * 2, [comparison.low, comparison.high], color=color, linewidth=1.2, alpha=0.7)
        axes.plot(
            [comparison.time_low, comparison.time_high], [comparison.mean] * 2, color=color, linewidth=1.2, alpha=0.7
        )
    marker, size = f"${number}$", 8 if number < 10 else 12
    place = ([comparison.time_ratio], [comparison.mean])
    axes.plot(*place, "o", color="white", alpha=0.8, markersize=13, markeredgewidth=0)
    axes.plot(*place, marker=marker, linestyle="", color=color, markersize=size, label=comparison.name)


def losses(outcome: Outcome, arm: str = BASELINE) -> Figure:
    """Draw the lesson's first picture: training and validation loss of one arm on the first seed."""
    run = outcome.runs(arm)[0]
    figure = _figure(5.0, 3.2)
    axes = figure.subplots()
    for column, label, color in (("train_loss", "training", ORANGE), ("val_loss", "validation", BLUE)):
        values = run.get("curves", {}).get(column, [])
        axes.plot(range(1, len(values) + 1), values, color=color, linewidth=2, label=label, marker="o", markersize=4)
    _whole_epochs(axes)
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.set_title(f"{arm}, seed {outcome.seeds[0]}", fontsize=10, loc="left")
    axes.legend(frameon=False)
    _clean(axes)
    return figure


def examples(outcome: Outcome, arm: str = BASELINE) -> Figure | None:
    """Draw the lesson's second picture: six new series titled with true and predicted class, green or red.

    `None` where the inputs are no series, or the run on the first seed failed. Makes the task's data once more.
    """
    run = outcome.runs(arm)[0]
    splits = outcome.task.data(derive(outcome.seeds[0], "split"))
    inputs, targets = splits.test if outcome.final and splits.test is not None else splits.comparison
    if not run.get("predictions") or inputs.ndim not in (2, 3) or (inputs.ndim == 3 and inputs.shape[1] != 1):
        return None
    figure = _figure(8.0, 3.9)
    panels = figure.subplots(2, EXAMPLES // 2, sharex=True, sharey=True).flatten()
    names = outcome.task.class_names or [str(number) for number in range(int(targets.max()) + 1)]
    for axes, series, truth, predicted in zip(panels, inputs, targets.tolist(), run["predictions"], strict=False):
        right = truth == predicted
        axes.plot(series.flatten().numpy(), color=GRAY, linewidth=1)
        verdict = "right" if right else "wrong"
        text = f"true: {names[truth]}, predicted: {names[predicted]}\n{verdict}"
        axes.set_title(text, color=RIGHT if right else WRONG, fontsize=9)
        _clean(axes)
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _whole_epochs(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _clean(axes: Axes, left: bool = True) -> None:
    axes.spines[["top", "right"] if left else ["top", "right", "left"]].set_visible(False)


def alternative_texts(outcome: Outcome) -> dict[str, str]:
    """Say what each picture shows, for readers who cannot see it."""
    known = [each for each in outcome.comparisons if each.n]
    effects = "; ".join(f"{each.name} {words.number(each.mean, sign=True)} ({each.verdict})" for each in known)
    costs = "; ".join(f"{each.name} {each.time_ratio:.2f} times the control's" for each in known)
    return {
        "forest": f"Forest plot of differences in {outcome.metric.label_and_unit}: {effects}.",
        "trials": "What each arm reached at every setting that was tried.",
        "curves": f"Training and validation loss by epoch: {len(outcome.arms)} panels, one for each arm.",
        "cost": f"Scatter plot of effect against time of an epoch: {costs}.",
        "losses": "Training and validation loss of the baseline on the first seed.",
        "examples": "Six series with true and predicted class.",
    }
