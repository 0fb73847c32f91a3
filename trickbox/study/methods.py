"""How the numbers of a study were made, in the words of a methods section."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from trickbox.study import words

if TYPE_CHECKING:
    from trickbox.study.outcome import Outcome


def methods(outcome: Outcome) -> list[str]:
    """Say how the numbers were made, in the words of a methods section."""
    samples = _samples(outcome)
    correlations = ", ".join(f"{each.name} {words.number(each.correlation)}" for each in outcome.comparisons)
    versions = ", ".join(f"{name} {version}" for name, version in outcome.versions.items())
    where = (
        "the test set, on fresh seeds" if outcome.final else "a comparison set that no training saw, not the test set"
    )
    return [
        f"Task: {outcome.task!r}. Design: {outcome.design}.",
        f"Metric: {outcome.metric.label_and_unit}, of the weights that training returned, on {where}{samples}.",
        "Paired: all arms of a seed share data split, initial weights, batch order and random streams; a trick draws "
        "from streams of its own. Effects are differences within a seed.",
        f"Correlation of each arm with its control over seeds, which is what pairing gains by: {correlations}.",
        "Intervals hold for other seeds of this task. Where seeds split one data set they share samples, and nothing "
        "is said about other data.",
        *_inference(outcome),
        "The effect that four of five such studies would call is computed from the spread that was observed.",
        "A run that does no better than the best constant answer counts as failed, like one that diverged.",
        _fairness(outcome),
        "Cost is the median step of training with its batch, on one thread, the least of several passes of its own "
        "with no other run beside it, and what a step holds in memory; the placebo's ratio shows how much is noise.",
        f"Versions: {versions}. Seeds: {', '.join(map(str, outcome.seeds))}.",
    ]


def _fairness(outcome: Outcome) -> str:
    tuning = outcome.tuning
    if tuning is None:
        return "Untuned: one learning rate and one setting for all arms; another rate may turn an effect around."
    return (
        f"Tuned: each arm that sets none of these itself was tried at all of {len(tuning.settings)} settings on "
        f"{tuning.seeds} seeds of their own, and compared at its best."
    )


def _samples(outcome: Outcome) -> str:
    """How many samples values rest on, and what they alone leave uncertain."""
    counts = {run["samples"] for run in outcome.results.values() if "samples" in run}
    if not counts:
        return ""
    said = f" of {max(counts)} samples"
    values = np.concatenate([outcome.value(arm.name) for arm in outcome.arms]) / outcome.metric.scale
    if outcome.metric.name != "accuracy" or np.isnan(values).all():
        return said
    share = float(np.nanmean(values))
    error = outcome.metric.scale * math.sqrt(share * (1 - share) / max(counts))
    return f"{said}, which know an accuracy to {words.number(error)} {outcome.metric.unit} (one standard error)"


def _inference(outcome: Outcome) -> list[str]:
    """How verdicts were reached, given all looks."""
    looks, margin = outcome.looks, words.units(outcome.margin, outcome.metric)
    asked = max((each.family for each in outcome.comparisons), default=1)
    if looks.are_sequential:
        kind = (
            "Seeds were added after a look, so intervals are 95 % confidence sequences (normal mixture, Lai 1976), "
            f"valid however often one looks; verdicts hold for all {asked} comparisons together (Bonferroni)."
        )
    else:
        kind = (
            "Intervals are Student's at 95 %, one for each comparison. p values flip signs (all patterns up to 13 "
            f"seeds, 10 000 above) and hold for all {asked} comparisons together (step-down max-T); the placebo is "
            "not counted. A verdict needs p of at most 5 %, an interval on one side of zero, and six pairs."
        )
    if outcome.margin_is_default:
        declared = "the metric's default, not a choice for this study"
    elif looks.earlier_margins:
        declared = f"changed after looks with {', '.join(f'{each:g}' for each in looks.earlier_margins)}"
    else:
        declared = "declared before the first look"
    times = f"{looks.count} time{'s' if looks.count != 1 else ''}"
    return [
        kind,
        f"Margin: {margin}, {declared}. Equivalent means that two one-sided tests place the mean within it (Holm over "
        "all comparisons). Inconclusive never means that there is no difference.",
        f"This set was looked at {times}, counted in this store; a fresh folder knows of no earlier look.",
    ]
