"""Fair arms: every arm, the baseline included, at the setting of the task that suits it best of the same few.

Which way a trick works may depend on the learning rate: on the lesson's task batch norm hurts at small rates and saves
runs at large ones. So each arm gets the same trials, on seeds of their own, and its best is used for the comparison.
The rate is a nuisance parameter, as the tuning playbook calls it (Godbole et al. 2023).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from attrs import frozen

from trickbox.errors import ConfigError
from trickbox.study.design import PLACEBO, Arm
from trickbox.study.spec import Spec
from trickbox.study.store import Outcome as Result
from trickbox.study.task import Metric

SEEDS = 3
_FIRST_SEED = 1_000_000
"""Seeds of trials; no study has so many that it would come to them."""

Setting = Mapping[str, Any]


@frozen(eq=False)
class Tuning:
    """What the trials of a study found: for each arm the score of every setting, and which was chosen.

    Scores are means over the seeds of the trials, in the metric's unit, on the set on which arms are compared; nan
    where a trial failed. An arm that sets a knob itself has no trials.
    """

    settings: tuple[Setting, ...]
    scores: Mapping[str, Sequence[float]]
    higher_is_better: bool
    seeds: int = SEEDS

    def chosen(self, arm: str) -> Setting:
        """The setting of an arm; empty where it has no trials."""
        return self.settings[self._best(arm)] if arm in self.scores else {}

    def at_edge(self, arm: str) -> bool:
        """Whether the best of several settings is the first or the last of its knob, beyond which may lie a better."""
        for knob in self.settings[0]:
            values = list(dict.fromkeys(setting[knob] for setting in self.settings))
            if len(values) > 1 and self.chosen(arm).get(knob) in (values[0], values[-1]):
                return True
        return False

    def applied(self, arms: Sequence[Arm]) -> tuple[Arm, ...]:
        """The arms at their own best; the placebo at that of its control."""
        by_name = {arm.name: arm.control if arm.name == PLACEBO and arm.control else arm.name for arm in arms}
        return tuple(
            attrs.evolve(arm, overrides={**self.chosen(by_name[arm.name]), **arm.overrides}, tricks=arm.tricks)
            for arm in arms
        )

    def _best(self, arm: str) -> int:
        scores = np.array(self.scores[arm], float) * (1 if self.higher_is_better else -1)
        return int(np.nanargmax(scores)) if not np.isnan(scores).all() else 0


def settings_of(knobs: Mapping[str, Sequence[Any]]) -> tuple[Setting, ...]:
    """All combinations of the values of some knobs. Raises `ConfigError` for a knob without several values.

    >>> settings_of({"lr": [0.01, 0.1]})
    ({'lr': 0.01}, {'lr': 0.1})
    """
    for knob, values in knobs.items():
        if isinstance(values, str) or len(set(values)) < 2:
            raise ConfigError(f"study: tune: {knob} needs several values, got {values!r}")
    return tuple(dict(zip(knobs, values, strict=True)) for values in itertools.product(*knobs.values()))


def tuned(
    arms: Sequence[Arm],
    settings: tuple[Setting, ...],
    metric: Metric,
    plan: Callable[[Sequence[Arm], Sequence[int]], list[Spec]],
    train: Callable[[list[Spec]], Mapping[str, Result]],
) -> Tuning:
    """Try all *settings* with each of *arms* that sets none of their knobs, and keep the scores."""
    own = {arm.name for arm in arms if arm.name == PLACEBO or arm.overrides.keys() & settings[0].keys()}
    trials = {
        (arm.name, number): attrs.evolve(
            arm, name=f"{arm.name}, trial {number}", overrides={**arm.overrides, **setting}
        )
        for arm in arms
        if arm.name not in own
        for number, setting in enumerate(settings)
    }
    specs = plan(list(trials.values()), range(_FIRST_SEED, _FIRST_SEED + SEEDS))
    found, keys = train(specs), {(spec.arm, spec.seed): spec.key for spec in specs}
    scores: dict[str, list[float]] = {arm.name: [] for arm in arms if arm.name not in own}
    for (name, _), trial in trials.items():
        runs = [found[keys[trial.name, seed]] for seed in range(_FIRST_SEED, _FIRST_SEED + SEEDS)]
        scores[name].append(metric.scale * float(np.mean([_score(run, metric) for run in runs])))
    return Tuning(settings, scores, metric.higher_is_better)


def _score(run: Result, metric: Metric) -> float:
    return float(run["metrics"][metric.name]) if run["status"] == "ok" else math.nan
