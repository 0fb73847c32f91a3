"""Fair arms: every arm, the baseline included, at the setting of the task that suits it best of the same few.

Which way a trick works may depend on the learning rate: on the lesson's task batch norm hurts at small rates and saves
runs at large ones. So each arm gets the same trials, on seeds of their own, and its best is used for the comparison.
The rate is a nuisance parameter, as the tuning playbook calls it (Godbole et al. 2023). So may be a setting of a trick,
``dropout.p``: of an arm without that trick, trials that differ in nothing else are one and the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from attrs import frozen

from trickbox.errors import ConfigError, near
from trickbox.study.design import PLACEBO, Arm
from trickbox.study.spec import Spec
from trickbox.study.store import Outcome as Result
from trickbox.study.task import Metric
from trickbox.trick import fields_of, fresh, name_of

SEEDS = 3
_FIRST_SEED = 1_000_000
"""Seeds of trials; no study has so many that it would come to them."""

Setting = Mapping[str, Any]


@frozen(eq=False)
class Tuning:
    """What the trials of a study found: for each arm the score of every setting, and which was chosen.

    Scores are means over the seeds of the trials, in the metric's unit, on the set on which arms are compared; nan
    where a trial failed. An arm that sets a knob itself has no trials. `knobs` are those that mean something to an arm,
    all of them where nothing is said.
    """

    settings: tuple[Setting, ...]
    scores: Mapping[str, Sequence[float]]
    higher_is_better: bool
    seeds: int = SEEDS
    knobs: Mapping[str, Sequence[str]] = {}

    def chosen(self, arm: str) -> Setting:
        """The setting of an arm, as far as it means something to it; empty where it has no trials."""
        best = self.settings[self.best(arm)] if arm in self.scores else {}
        return {knob: value for knob, value in best.items() if knob in self.knobs.get(arm, best)}

    def at_edge(self, arm: str) -> bool:
        """Whether the best of several settings is the first or the last of its knob, beyond which may lie a better."""
        for knob in self.settings[0]:
            values = list(dict.fromkeys(setting[knob] for setting in self.settings))
            if len(values) > 1 and self.chosen(arm).get(knob, self) in (values[0], values[-1]):
                return True
        return False

    def applied(self, arms: Sequence[Arm]) -> tuple[Arm, ...]:
        """The arms at their own best; the placebo at that of its control."""
        by_name = {arm.name: arm.control if arm.name == PLACEBO and arm.control else arm.name for arm in arms}
        return tuple(at(arm, self.chosen(by_name[arm.name])) for arm in arms)

    def best(self, arm: str) -> int:
        """The number of the setting with the best score; the first where all failed."""
        scores = np.array(self.scores[arm], float) * (1 if self.higher_is_better else -1)
        return int(np.nanargmax(scores)) if not np.isnan(scores).all() else 0


def at(arm: Arm, setting: Setting) -> Arm:
    """The arm at a setting: fields of the task as overrides, those of tricks on its tricks of that name.

    >>> arm = at(Arm("both", ["dropout", "batch_norm"]), {"lr": 0.1, "dropout.p": 0.3})
    >>> arm.overrides, arm.tricks[0].p
    ({'lr': 0.1}, 0.3)
    """
    fields = {knob: value for knob, value in setting.items() if "." not in knob}
    return attrs.evolve(
        arm, overrides={**fields, **arm.overrides}, tricks=[_trick_at(entry, setting) for entry in arm.tricks]
    )


def _trick_at(entry: Any, setting: Setting) -> Any:
    name, trick = _named(entry)
    changes = {knob.rpartition(".")[2]: v for knob, v in setting.items() if knob.rpartition(".")[0] == name}
    for knob in changes:
        if knob not in fields_of(trick):
            hint = f"it has {', '.join(fields_of(trick)) or 'none'}.{near(knob, fields_of(trick))}"
            raise ConfigError(f"study: tune: {name} has no setting {knob!r}; {hint}")
    changed = fresh(trick, **changes)
    return (name, changed) if isinstance(entry, tuple) else changed


def _named(entry: Any) -> tuple[str, Any]:
    return entry if isinstance(entry, tuple) else (name_of(entry), entry)


def knobs_of(arm: Arm, setting: Setting) -> list[str]:
    """The knobs of a setting that mean something to an arm: the task's, and those of its tricks."""
    names = {"", *(_named(entry)[0] for entry in arm.tricks)}
    return [knob for knob in setting if knob.rpartition(".")[0] in names]


def check_settings(arms: Sequence[Arm], settings: Sequence[Setting]) -> None:
    """Raise `ConfigError` for a setting of a trick that no arm has."""
    names = sorted({_named(entry)[0] for arm in arms for entry in arm.tricks} - {PLACEBO})
    for knob in settings[0]:
        name = knob.rpartition(".")[0]
        if name and name not in names:
            hint = f"there are {', '.join(names) or 'none'}.{near(name, names)}"
            raise ConfigError(f"study: tune: {knob!r} is of a trick that no arm has; {hint}")


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
        (arm.name, number): attrs.evolve(at(arm, setting), name=f"{arm.name}, trial {number}")
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
    knobs = {arm.name: knobs_of(arm, settings[0]) for arm in arms}
    return Tuning(settings, scores, metric.higher_is_better, knobs=knobs)


def _score(run: Result, metric: Metric) -> float:
    return float(run["metrics"][metric.name]) if run["status"] == "ok" else math.nan
