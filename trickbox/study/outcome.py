"""What a study found: the value of every arm on every seed; for each comparison an effect, a verdict and its price."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from attrs import define, frozen

from trickbox.errors import ConfigError, near
from trickbox.study import stats
from trickbox.study.design import PLACEBO, Arm
from trickbox.study.looks import Looks
from trickbox.study.stats import Array
from trickbox.study.store import Outcome as Result
from trickbox.study.task import Metric, Task
from trickbox.study.tuning import Tuning
from trickbox.study.verdicts import Inference, Verdict, infer


@frozen(eq=False)
class Comparison:
    """One arm against its control over the seeds that both came through; effects in the metric's unit, as measured.

    `differences` has one entry for each seed, nan where a run failed. `inference` has the signs turned so that
    positive is better; its verdict and p hold for all `family` comparisons together. `time_ratio` compares the median
    epoch, with its 95 % interval `time_low` to `time_high`; `parameters` is how many the arm has more. `failures`
    counts failed runs of the arm and of its control, among `runs` each, and `collapses` those of them that learned
    nothing; `all_runs` is the inference with every failed run scored as guessing, where any failed. `same_bits` counts
    the seeds whose weights ended in the same bits, `outliers` names those whose difference stands far apart.
    """

    arm: str
    control: str
    metric: Metric
    margin: float
    differences: Array
    inference: Inference
    family: int
    sequential: bool
    time_ratio: float
    time_low: float
    time_high: float
    parameters: int
    epochs: tuple[float, float]
    failures: tuple[int, int]
    collapses: tuple[int, int]
    runs: int
    all_runs: Inference | None
    correlation: float
    same_bits: int
    outliers: tuple[int, ...]
    warnings: tuple[str, ...] = ()
    """What the runs of the arm warned of, each text once."""

    @property
    def verdict(self) -> Verdict:
        """helps, hurts, equivalent or inconclusive."""
        return "equivalent" if self.is_identical else self.inference.verdict

    @property
    def p(self) -> float:
        """The p value, adjusted for the family."""
        return self.inference.p

    @property
    def mean(self) -> float:
        """The mean difference, arm minus control."""
        return self.inference.mean if self.metric.higher_is_better else -self.inference.mean

    @property
    def low(self) -> float:
        """The lower end of the 95 % interval of the mean difference."""
        return self.inference.low if self.metric.higher_is_better else -self.inference.high

    @property
    def high(self) -> float:
        """The upper end of the 95 % interval of the mean difference."""
        return self.inference.high if self.metric.higher_is_better else -self.inference.low

    @property
    def n(self) -> int:
        """Pairs that the effect rests on."""
        return self.inference.n

    @property
    def detectable(self) -> float:
        """The smallest true effect that four of five such studies would call."""
        return self.inference.detectable

    @property
    def is_identical(self) -> bool:
        """Whether every pair of runs ended in the same bits."""
        return self.n > 0 and self.same_bits == self.n


@define(eq=False, slots=False)
class Outcome:
    """All results of a study. `results` maps (arm, seed) to what `trickbox.study.run.run_spec` returned."""

    task: Task
    design: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    metric: Metric
    margin: float
    margin_is_default: bool
    results: Mapping[tuple[str, int], Result]
    looks: Looks
    versions: Mapping[str, str]
    final: bool = False
    """Whether the test set was read, or the set on which arms are compared."""
    tuning: Tuning | None = None
    """The trials by which each arm's own setting was chosen, where there were any."""

    def runs(self, arm: str) -> list[Result]:
        """The results of an arm, in the order of the seeds. Raises `ConfigError` for an unknown arm."""
        names = [each.name for each in self.arms]
        if arm not in names:
            raise ConfigError(f"outcome: no arm {arm!r}; there are {', '.join(names)}.{near(arm, names)}")
        return [self.results[arm, seed] for seed in self.seeds]

    def status(self, run: Result) -> str:
        """What became of a run: ``ok``, ``diverged``, ``error``, or ``collapsed`` where it did no better than guessing.

        Where most runs of a study do no better, that is the task's difficulty, and no run's failure.
        """
        collapsed = run["status"] == "ok" and run.get("is_guessing") and self.is_learned
        return "collapsed" if collapsed else str(run["status"])

    @cached_property
    def is_learned(self) -> bool:
        """Whether at least half of the runs that came through did better than guessing."""
        sound = [run for run in self.results.values() if run["status"] == "ok"]
        return 2 * sum(not run.get("is_guessing") for run in sound) >= len(sound)

    def value(self, arm: str) -> Array:
        """The metric of an arm on every seed, in the metric's unit; nan where the run failed."""
        runs = self.runs(arm)
        found = [run["metrics"][self.metric.name] if self.status(run) == "ok" else math.nan for run in runs]
        return self.metric.scale * np.array(found, float)

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Every arm that has a control, compared with it, in the order of the arms."""
        pairs = [(arm.name, arm.control) for arm in self.arms if arm.control is not None]
        table = np.stack([self._oriented(self.value(arm) - self.value(control)) for arm, control in pairs], axis=1)
        # The placebo is no hypothesis: it must not make the others pay for it.
        placebos = [index for index, (arm, _) in enumerate(pairs) if arm == PLACEBO]
        family = [index for index in range(len(pairs)) if index not in placebos]
        found = dict(zip(placebos, infer(table[:, placebos], self.margin), strict=True))
        asked, sequential = max(self.looks.asked, len(family)), self.looks.are_sequential
        judged = infer(table[:, family], self.margin, asked=asked, sequential=sequential)
        found |= dict(zip(family, judged, strict=True))
        return [
            self._compare(arm, control, table[:, index], found[index], asked if index in family else 1)
            for index, (arm, control) in enumerate(pairs)
        ]

    def _oriented(self, differences: Array) -> Array:
        return differences if self.metric.higher_is_better else -differences

    def _compare(self, arm: str, control: str, oriented: Array, inference: Inference, family: int) -> Comparison:
        both = ~np.isnan(oriented)
        first, second = self.value(arm), self.value(control)
        failures = (int(np.isnan(first).sum()), int(np.isnan(second).sum()))
        ratio, low, high = self._time(arm, control, both)
        return Comparison(
            arm=arm,
            control=control,
            metric=self.metric,
            margin=self.margin,
            differences=self._oriented(oriented),
            inference=inference,
            family=family,
            sequential=self.looks.are_sequential and arm != PLACEBO,
            time_ratio=ratio,
            time_low=low,
            time_high=high,
            parameters=self._parameters(arm, control),
            epochs=(self._epochs(arm), self._epochs(control)),
            failures=failures,
            collapses=(self._collapses(arm), self._collapses(control)),
            runs=len(self.seeds),
            all_runs=self._with_failures(arm, control) if any(failures) else None,
            correlation=stats.correlation(first[both], second[both]),
            same_bits=self._same_bits(arm, control, both),
            outliers=tuple(self.seeds[index] for index in stats.outliers(oriented)),
            warnings=tuple(dict.fromkeys(text for run in self.runs(arm) for text in run.get("warnings", ()))),
        )

    def _time(self, arm: str, control: str, both: Array) -> tuple[float, float, float]:
        """The geometric mean over seeds of the ratio of median epochs, and its interval."""
        logs = [
            math.log(float(np.median(mine["seconds"]) / np.median(theirs["seconds"])))
            for mine, theirs, sound in zip(self.runs(arm), self.runs(control), both, strict=True)
            if sound
        ]
        if len(logs) < 2:
            return math.exp(logs[0]) if logs else math.nan, 0.0, math.inf
        low, high = stats.interval(logs)
        return math.exp(sum(logs) / len(logs)), math.exp(low), math.exp(high)

    def _parameters(self, arm: str, control: str) -> int:
        """How many parameters an arm has more; zero where either never got as far as having some."""
        counts = [[int(run["parameters"]) for run in self.runs(name) if "parameters" in run] for name in (arm, control)]
        return counts[0][0] - counts[1][0] if all(counts) else 0

    def _epochs(self, arm: str) -> float:
        counts = [run["epochs"] for run in self.runs(arm) if self.status(run) == "ok"]
        return sum(counts) / len(counts) if counts else math.nan

    def _collapses(self, arm: str) -> int:
        return sum(self.status(run) == "collapsed" for run in self.runs(arm))

    def _same_bits(self, arm: str, control: str, both: Array) -> int:
        pairs = zip(self.runs(arm), self.runs(control), both, strict=True)
        return sum(bool(mine["weights"] == theirs["weights"]) for mine, theirs, sound in pairs if sound)

    def _with_failures(self, arm: str, control: str) -> Inference | None:
        """The inference with failed runs scored as guessing, where it is known what guessing gives."""
        guesses = [run["guess"][self.metric.name] for run in self.results.values() if run.get("guess")]
        if not guesses:
            return None
        values = [self.value(name) for name in (arm, control)]
        guessed = self.metric.scale * float(np.median(guesses))
        scored = [np.where(np.isnan(value), guessed, value) for value in values]
        return infer(self._oriented(scored[0] - scored[1])[:, None], self.margin)[0]


def raw(outcome: Outcome) -> dict[str, Any]:
    """Everything measured and every verdict, as plain JSON."""
    runs: Sequence[dict[str, Any]] = [
        {"arm": arm, "seed": seed, **{name: value for name, value in run.items() if name != "record"}}
        for (arm, seed), run in outcome.results.items()
    ]
    facts = {
        "task": outcome.task.name,
        "metric": outcome.metric.name,
        "set": "test" if outcome.final else "comparison",
        "margin": outcome.margin,
        "seeds": list(outcome.seeds),
        "looks": outcome.looks.count,
        "tuning": _trials(outcome.tuning),
        "comparisons": [
            {
                "arm": each.arm,
                "control": each.control,
                "verdict": each.verdict,
                "mean": each.mean,
                "low": each.low,
                "high": each.high,
                "p": each.p,
                "family": each.family,
                "n": each.n,
            }
            for each in outcome.comparisons
        ],
    }
    return {**facts, "versions": dict(outcome.versions), "runs": runs}


def _trials(tuning: Tuning | None) -> dict[str, Any] | None:
    if tuning is None:
        return None
    chosen = {arm: dict(tuning.chosen(arm)) for arm in tuning.scores}
    return {"settings": list(map(dict, tuning.settings)), "scores": dict(tuning.scores), "chosen": chosen}
