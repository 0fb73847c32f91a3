"""What a study found: the value of every arm on every seed; for each comparison an effect, a verdict and its price."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from attrs import define

from trickbox.errors import ConfigError, near
from trickbox.study import stats
from trickbox.study.comparison import Comparison
from trickbox.study.design import INTERACTION, PLACEBO, Arm, Question
from trickbox.study.looks import Looks
from trickbox.study.pace import Curve, ToTarget, at_equal_time, epochs_to, to_target
from trickbox.study.stats import Array
from trickbox.study.store import Outcome as Result
from trickbox.study.task import Metric, Task
from trickbox.study.tuning import Tuning
from trickbox.study.verdicts import LEAST, Inference, infer


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
    questions: tuple[Question, ...]
    notes: tuple[str, ...] = ()
    """What must be known to read the answers, such as an alias table."""
    costs: Mapping[str, Sequence[Result]] = {}
    """What `trickbox.study.cost.measure` found, for each arm on a few seeds; empty where nothing was timed."""
    target: float | None = None
    """A value of the metric on validation, in its unit, of which is told when arms reach it."""
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

    @property
    def warnings(self) -> dict[str, list[str]]:
        """What runs warned of: each text with the arms that did."""
        found: dict[str, list[str]] = {}
        for arm in self.arms:
            for text in dict.fromkeys(text for run in self.runs(arm.name) for text in run.get("warnings", ())):
                found.setdefault(text, []).append(arm.name)
        return found

    @cached_property
    def guess(self) -> float:
        """What guessing gives, in the metric's unit; nan where it is not known."""
        guesses = [run["guess"][self.metric.name] for run in self.results.values() if run.get("guess")]
        return self.metric.scale * float(np.median(guesses)) if guesses else math.nan

    def scored(self, arm: str) -> Array:
        """As `value`, with every run that failed scored as guessing."""
        value = self.value(arm)
        return np.where(np.isnan(value), self.guess, value)

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """The answer to every question, in their order; those of one family are judged together."""
        table = np.stack([self._oriented(self._contrast(each, self.value)) for each in self.questions], axis=1)
        found: dict[int, tuple[Inference, int]] = {}
        for family in dict.fromkeys(map(_family, self.questions)):
            members = [index for index, each in enumerate(self.questions) if _family(each) == family]
            # The placebo is no hypothesis: it must not make the others pay for it.
            placebo = family == PLACEBO
            asked = 1 if placebo else max(self.looks.asked(family), len(members))
            sequential = self.looks.are_sequential and not placebo
            judged = infer(table[:, members], self.margin, asked=asked, sequential=sequential)
            found |= {index: (one, asked) for index, one in zip(members, judged, strict=True)}
        return [
            self._compare(question, table[:, index], *found[index]) for index, question in enumerate(self.questions)
        ]

    def _contrast(self, question: Question, values: Callable[[str], Array]) -> Array:
        weighted = [weight * values(arm) for arm, weight in question.weights.items()]
        return np.asarray(np.sum(weighted, axis=0), float)

    def _oriented(self, differences: Array) -> Array:
        return differences if self.metric.higher_is_better else -differences

    def _compare(self, question: Question, oriented: Array, inference: Inference, family: int) -> Comparison:
        failures = self._count(question, lambda run: self.status(run) != "ok")
        ratio, low, high = self._time(question)
        return Comparison(
            question=question,
            metric=self.metric,
            margin=self.margin,
            differences=self._oriented(oriented),
            inference=inference,
            family=family,
            sequential=self.looks.are_sequential and question.name != PLACEBO,
            time_ratio=ratio,
            time_low=low,
            time_high=high,
            memory_ratio=self._memory(question),
            parameters=self._parameters(question),
            at_equal_time=self._at_equal_time(question, ratio) if low > 1 or high < 1 else None,
            to_target=self._to_target(question, ratio),
            epochs=(self._epochs(question.arms), self._epochs(question.controls)),
            failures=failures,
            collapses=self._count(question, lambda run: self.status(run) == "collapsed"),
            runs=(len(self.seeds) * len(question.arms), len(self.seeds) * len(question.controls)),
            all_runs=self._with_failures(question) if any(failures) else None,
            correlation=self._correlation(question, ~np.isnan(oriented)),
            same_bits=self._same_bits(question),
            outliers=tuple(self.seeds[index] for index in stats.outliers(oriented)),
            turns=self._turns(question),
        )

    def _count(self, question: Question, counts: Callable[[Result], bool]) -> tuple[int, int]:
        """How many runs of the arms for a question, and of those against it, are of a kind."""
        for_it, against = (
            sum(counts(run) for arm in side for run in self.runs(arm)) for side in (question.arms, question.controls)
        )
        return for_it, against

    def _time(self, question: Question) -> tuple[float, float, float]:
        """The ratio of the least times of a step, and from six passes on the range of the ratios of single passes."""
        logs = self._cost(question, "step_seconds")
        if not logs.size:
            return math.nan, 0.0, math.inf
        weights = np.array(list(question.weights.values()))
        ratios = np.exp(weights @ logs)
        # Whatever disturbs a pass makes it slower, so the least is nearest to the truth. The least and the largest of
        # six ratios enclose the median in 97 % of cases.
        low, high = (float(ratios.min()), float(ratios.max())) if len(ratios) >= LEAST else (0.0, math.inf)
        return float(np.exp(weights @ logs.min(1))), low, high

    def _memory(self, question: Question) -> float:
        logs = self._cost(question, "memory")
        return float(np.exp(np.array(list(question.weights.values())) @ logs[:, 0])) if logs.size else math.nan

    def _cost(self, question: Question, name: str) -> Array:
        """The logarithm of a cost, (arms of the question, passes), of the passes in which it was measured for all."""
        known = [[run.get(name, math.nan) for run in self.costs.get(arm, [])] for arm in question.weights]
        logs = np.log(np.array(known, float)) if all(known) else np.empty((len(known), 0))
        return np.asarray(logs[:, ~np.isnan(logs).any(0)], float)

    def _at_equal_time(self, question: Question, ratio: float) -> Inference | None:
        """What validation shows of an arm and its control after the same time."""
        found = [
            self.metric.scale * at_equal_time(mine, theirs, ratio) if mine and theirs else math.nan
            for mine, theirs in self.validation(question)
        ]
        differences = self._oriented(np.array(found, float))
        return None if np.isnan(differences).all() else infer(differences[:, None], self.margin)[0]

    def _to_target(self, question: Question, ratio: float) -> ToTarget | None:
        if self.target is None or question.arm is None:
            return None
        target, higher = self.target / self.metric.scale, self.metric.higher_is_better
        epochs = [[epochs_to(curve, target, higher) for curve in pair] for pair in self.validation(question)]
        ratio = 1.0 if math.isnan(ratio) else ratio
        return to_target([ratio * mine for mine, _ in epochs], [theirs for _, theirs in epochs], self.target)

    def validation(self, question: Question) -> list[tuple[Curve, Curve]]:
        """The metric on validation of an arm and its control by epoch, for each seed; empty where a run has none."""
        column, sides = f"val_{self.metric.name}", (question.arm, question.control)
        curves = [[run.get("curves", {}).get(column, []) for run in self.runs(side)] for side in sides if side]
        return list(zip(*curves, strict=True)) if len(curves) == 2 else []

    def _parameters(self, question: Question) -> int:
        """How many parameters there are more; zero where an arm never got as far as having some."""
        counts = {arm: [run["parameters"] for run in self.runs(arm) if "parameters" in run] for arm in question.weights}
        if not all(counts.values()):
            return 0
        return round(sum(weight * int(counts[arm][0]) for arm, weight in question.weights.items()))

    def _epochs(self, arms: Sequence[str]) -> float:
        counts = [run["epochs"] for arm in arms for run in self.runs(arm) if self.status(run) == "ok"]
        return sum(counts) / len(counts) if counts else math.nan

    def _correlation(self, question: Question, sound: Array) -> float:
        """How the two sides of a question go up and down together."""
        sides = [
            np.sum([abs(question.weights[arm]) * self.value(arm) for arm in side], axis=0)[sound]
            for side in (question.arms, question.controls)
        ]
        return stats.correlation(*sides)

    def _same_bits(self, question: Question) -> int:
        """The seeds on which an arm and its control ended in the same bits."""
        if question.arm is None or question.control is None:
            return 0
        pairs = zip(self.runs(question.arm), self.runs(question.control), strict=True)
        return sum(
            bool(mine["weights"] == theirs["weights"])
            for mine, theirs in pairs
            if self.status(mine) == self.status(theirs) == "ok"
        )

    def _turns(self, question: Question) -> bool:
        """Whether an interaction of accuracies points the other way in log odds: then it is one of the scale alone."""
        if question.family != INTERACTION or self.metric.name != "accuracy":
            return False
        least = 0.5 / min((run["samples"] for run in self.results.values() if "samples" in run), default=1)
        odds = self._contrast(question, lambda arm: stats.log_odds(self.value(arm) / self.metric.scale, least))
        plain = self._contrast(question, self.value)
        return bool(np.nansum(odds) * np.nansum(plain) < 0)

    def _with_failures(self, question: Question) -> Inference | None:
        """The inference with failed runs scored as guessing, where it is known what guessing gives."""
        if math.isnan(self.guess):
            return None
        return infer(self._oriented(self._contrast(question, self.scored))[:, None], self.margin)[0]


def _family(question: Question) -> str:
    """Which questions are judged together."""
    return PLACEBO if question.name == PLACEBO else question.family


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
                "name": each.name,
                "weights": dict(each.question.weights),
                "verdict": each.verdict,
                "mean": each.mean,
                "low": each.low,
                "high": each.high,
                "p": each.p,
                "family": each.question.family,
                "asked": each.family,
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
