"""Pictures of training: what a trick changes epoch by epoch, and the lesson's own two."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from trickbox.streams import derive
from trickbox.study import stats, words
from trickbox.study.design import BASELINE, PLACEBO
from trickbox.study.drawing import BLUE, GRAY, INK, ORANGE, VERDICTS, blank, clean, whole_epochs
from trickbox.study.run import EXAMPLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from trickbox.study.comparison import Comparison
from trickbox.study.outcome import Outcome

RIGHT, WRONG = "#007a58", "#b34700"
_COLUMNS = 3


def differences(outcome: Outcome) -> Figure | None:
    """Draw what each arm's validation is above its control's by epoch: every seed thin, the mean with its 95 % band.

    None where no run has such curves. As far as all seeds go; the axes are cut where a few seeds are far out.
    """
    curves = {each.name: _differences(outcome, each) for each in outcome.comparisons if each.name != PLACEBO}
    curves = {name: table for name, table in curves.items() if table.size}
    if not curves:
        return None
    rows = math.ceil(len(curves) / _COLUMNS)
    figure = blank(3.0 * _COLUMNS, 0.6 + 1.9 * rows)
    panels = figure.subplots(rows, _COLUMNS, sharey=True, squeeze=False).flatten()
    verdicts = {each.name: each.verdict for each in outcome.comparisons}
    for axes, (name, table) in zip(panels, curves.items(), strict=False):
        _panel(axes, table, VERDICTS[verdicts[name]])
        axes.set_title(words.short(name, 26), fontsize=9, loc="left")
    for axes in panels[len(curves) :]:
        axes.set_axis_off()
    _frame(panels[0], list(curves.values()))
    figure.suptitle("thin: single seeds; band: 95 % interval of the mean, epoch by epoch", fontsize=9)
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel(f"difference in validation\n{outcome.metric.label_and_unit}", fontsize=10)
    return figure


def _differences(outcome: Outcome, comparison: Comparison) -> stats.Array:
    """The differences of validation curves, (seeds, epochs), as far as all seeds go."""
    pairs = [(mine, theirs) for mine, theirs in outcome.validation(comparison.question) if mine and theirs]
    shared = min((min(map(len, pair)) for pair in pairs), default=0)
    table = [np.subtract(mine[:shared], theirs[:shared]) for mine, theirs in pairs]
    return outcome.metric.scale * np.array(table, float)


def _panel(axes: Axes, table: stats.Array, color: str) -> None:
    epochs = np.arange(1, table.shape[1] + 1)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.plot(epochs, table.T, color=color, alpha=0.3, linewidth=0.6)
    mean = table.mean(0)
    axes.plot(epochs, mean, color=color, linewidth=2, marker="." if len(epochs) < 3 else None)
    if len(table) > 1:
        half = stats.critical(len(table)) * table.std(0, ddof=1) / math.sqrt(len(table))
        axes.fill_between(epochs, mean - half, mean + half, color=color, alpha=0.2, linewidth=0)
    whole_epochs(axes)
    clean(axes)


def _frame(axes: Axes, tables: list[stats.Array]) -> None:
    """Leave the few farthest values out of sight, so that a run that blew up does not flatten all others."""
    values = np.concatenate([table.flatten() for table in tables])
    low, high = np.quantile(values[np.isfinite(values)], (0.01, 0.99))
    room = 0.05 * (high - low) or 1.0
    axes.set_ylim(min(low, 0) - room, max(high, 0) + room)


def losses(outcome: Outcome, arm: str = BASELINE) -> Figure:
    """Draw the lesson's first picture: training and validation loss of one arm on the first seed."""
    run = outcome.runs(arm)[0]
    figure = blank(5.0, 3.2)
    axes = figure.subplots()
    for column, label, color in (("train_loss", "training", ORANGE), ("val_loss", "validation", BLUE)):
        values = run.get("curves", {}).get(column, [])
        axes.plot(range(1, len(values) + 1), values, color=color, linewidth=2, label=label, marker="o", markersize=4)
    whole_epochs(axes)
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.set_title(f"{arm}, seed {outcome.seeds[0]}", fontsize=10, loc="left")
    axes.legend(frameon=False)
    clean(axes)
    return figure


def examples(outcome: Outcome, arm: str = BASELINE) -> Figure | None:
    """Draw the lesson's second picture: six new series titled with true and predicted class, green or red.

    None where the inputs are no series, or the run on the first seed failed. Makes the task's data once more.
    """
    run = outcome.runs(arm)[0]
    splits = outcome.task.data(derive(outcome.seeds[0], "split"))
    inputs, targets = splits.test if outcome.final and splits.test is not None else splits.comparison
    if not run.get("predictions") or inputs.ndim not in (2, 3) or (inputs.ndim == 3 and inputs.shape[1] != 1):
        return None
    figure = blank(8.0, 3.9)
    panels = figure.subplots(2, EXAMPLES // 2, sharex=True, sharey=True).flatten()
    names = outcome.task.class_names or [str(number) for number in range(int(targets.max()) + 1)]
    for axes, series, truth, predicted in zip(panels, inputs, targets.tolist(), run["predictions"], strict=False):
        right = truth == predicted
        axes.plot(series.flatten().numpy(), color=GRAY, linewidth=1)
        verdict = "right" if right else "wrong"
        text = f"true: {names[truth]}, predicted: {names[predicted]}\n{verdict}"
        axes.set_title(text, color=RIGHT if right else WRONG, fontsize=9)
        clean(axes)
    return figure
