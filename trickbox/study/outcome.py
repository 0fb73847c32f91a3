"""What a study found: the value of every arm on every seed; for each comparison an effect, a verdict and its price."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from attrs import define, frozen

from trickbox.errors import ConfigError, near
from trickbox.study import stats, words
from trickbox.study.design import PLACEBO, Arm
from trickbox.study.stats import Array, Inference, Verdict
from trickbox.study.store import Outcome as Result
from trickbox.study.task import Metric, Task


@frozen(eq=False)
class Comparison:
    """One arm against its control over the seeds that both came through; effects in the metric's unit, as measured.

    `differences` has one entry for each seed, nan where a run failed. `inference` has the signs turned so that
    positive is better. `p` is adjusted for the `family` of contrasts that were looked at together. `time_ratio`
    compares the median epoch, with its 95 % interval `time_low` to `time_high`; `parameters` is how many the arm has
    more. `failures` counts failed runs of the arm and of its control, among `runs` each; `all_runs` is the inference
    with every failed run scored at chance level, where any failed.
    """

    arm: str
    control: str
    metric: Metric
    margin: float
    differences: Array
    inference: Inference
    p: float
    family: int
    time_ratio: float
    time_low: float
    time_high: float
    parameters: int
    epochs: tuple[float, float]
    failures: tuple[int, int]
    runs: int
    all_runs: Inference | None
    correlation: float
    warnings: tuple[str, ...] = ()
    """What the runs of the arm warned of, each text once."""

    @property
    def verdict(self) -> Verdict:
        """helps, hurts, equivalent or inconclusive."""
        return self.inference.verdict

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
        """The smallest true effect that as many pairs see in four of five studies."""
        return self.inference.detectable

    @property
    def sentence(self) -> str:
        """The comparison in one plain sentence."""
        return words.sentence(self)

    @property
    def notes(self) -> list[str]:
        """What a careful reader should know besides."""
        return words.notes(self)


@define(eq=False, slots=False)
class Outcome:
    """All results of a study. `results` maps (arm, seed) to what `trickbox.study.run.run_spec` returned.

    `looks` counts how often results of this store were evaluated, which is how often the test set was looked at.
    """

    task: Task
    design: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    metric: Metric
    margin: float
    margin_is_default: bool
    results: Mapping[tuple[str, int], Result]
    looks: int
    versions: Mapping[str, str]

    def runs(self, arm: str) -> list[Result]:
        """The results of an arm, in the order of the seeds. Raises `ConfigError` for an unknown arm."""
        names = [each.name for each in self.arms]
        if arm not in names:
            raise ConfigError(f"outcome: no arm {arm!r}; there are {', '.join(names)}.{near(arm, names)}")
        return [self.results[arm, seed] for seed in self.seeds]

    def value(self, arm: str) -> Array:
        """The metric of an arm on every seed, in the metric's unit; nan where the run failed."""
        found = [run["metrics"][self.metric.name] if run["status"] == "ok" else math.nan for run in self.runs(arm)]
        return self.metric.scale * np.array(found, float)

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Every arm that has a control, compared with it, in the order of the arms."""
        pairs = [(arm.name, arm.control) for arm in self.arms if arm.control is not None]
        table = np.stack([self._oriented(self.value(arm) - self.value(control)) for arm, control in pairs], axis=1)
        # The placebo is no hypothesis: it must not make the others pay for it.
        family = [index for index, (arm, _) in enumerate(pairs) if arm != PLACEBO]
        adjusted = np.array([stats.sign_flip(column[~np.isnan(column)]) for column in table.T])
        adjusted[family] = stats.max_t(table[:, family])
        return [
            self._compare(arm, control, column, float(p), len(family) if arm != PLACEBO else 1)
            for (arm, control), column, p in zip(pairs, table.T, adjusted, strict=True)
        ]

    def sentences(self) -> list[str]:
        """One plain sentence for each comparison."""
        return [comparison.sentence for comparison in self.comparisons]

    def table(self) -> str:
        """The comparisons as a table for the terminal, at most 100 columns wide."""
        return words.table(self)

    def save(self, path: str | Path) -> Path:
        """Write the report, one HTML file that needs nothing else, and return its path. Takes a few seconds."""
        from trickbox.study import report  # matplotlib is slow to import, and not every study is printed

        return report.save(self, Path(path))

    def _oriented(self, differences: Array) -> Array:
        return differences if self.metric.higher_is_better else -differences

    def _compare(self, arm: str, control: str, oriented: Array, p: float, family: int) -> Comparison:
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
            inference=stats.infer(oriented[both], self.margin),
            p=p,
            family=family,
            time_ratio=ratio,
            time_low=low,
            time_high=high,
            parameters=self._parameters(arm, control),
            epochs=(self._epochs(arm), self._epochs(control)),
            failures=failures,
            runs=len(self.seeds),
            all_runs=self._with_failures(first, second) if any(failures) else None,
            correlation=stats.correlation(first[both], second[both]),
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
        counts = [run["epochs"] for run in self.runs(arm) if run["status"] == "ok"]
        return sum(counts) / len(counts) if counts else math.nan

    def _with_failures(self, first: Array, second: Array) -> Inference | None:
        """The inference with failed runs scored as guessing, for a metric where that has a value."""
        if not self.metric.name.endswith("accuracy"):
            return None
        chance = self.metric.scale / len(self.task.class_names)
        scored = [np.where(np.isnan(values), chance, values) for values in (first, second)]
        return stats.infer(self._oriented(scored[0] - scored[1]), self.margin)


def raw(outcome: Outcome) -> dict[str, Any]:
    """Everything measured, as plain JSON."""
    runs: Sequence[dict[str, Any]] = [
        {"arm": arm, "seed": seed, **{name: value for name, value in run.items() if name != "record"}}
        for (arm, seed), run in outcome.results.items()
    ]
    facts = {
        "task": outcome.task.name,
        "metric": outcome.metric.name,
        "margin": outcome.margin,
        "seeds": list(outcome.seeds),
    }
    return {**facts, "versions": dict(outcome.versions), "runs": runs}
