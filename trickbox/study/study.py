"""The study: which tricks help on this task, by how much, at what cost, and how sure that is."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import attrs

from trickbox import tasks
from trickbox.errors import ConfigError, near
from trickbox.study import runner, stats
from trickbox.study.design import (
    EFFECT,
    PLACEBO,
    Arm,
    Design,
    add_one,
    leave_one_out,
    paired,
    winner,
)
from trickbox.study.dose import dose
from trickbox.study.factorial import factorial, screen, shapley
from trickbox.study.findings import Findings
from trickbox.study.looks import Looks
from trickbox.study.outcome import Outcome
from trickbox.study.planning import PILOT, Plan, Size, seconds_of
from trickbox.study.spec import Spec, part_of_task, plan, versions
from trickbox.study.store import MemoryStore, Store, open_store
from trickbox.study.store import Outcome as Result
from trickbox.study.task import METRICS, Metric, Task
from trickbox.study.tuning import SEEDS, Tuning, at, check_settings, settings_of, tuned

if TYPE_CHECKING:
    from tqdm import tqdm


DESIGNS: dict[str, Callable[[Iterable[Any]], Design]] = {
    "add_one": add_one,
    "leave_one_out": leave_one_out,
    "dose": dose,
    "factorial": factorial,
    "screen": screen,
    "shapley": shapley,
}
"""What a study may ask, by name."""


TIMED = 6
"""Seeds on which steps are timed: of so many the median is known to lie between the least and the largest."""


class How(TypedDict, total=False):
    """How runs are made; see `Study.run`."""

    workers: int | None
    store: Store | str | os.PathLike[str] | None
    progress: bool
    executor: Executor | None
    retry: bool
    limit: float | None


class Study:
    """A comparison of tricks on one task over paired seeds, checked and planned when it is made, trained by `run`.

    task     a name, ``Waveforms(noise=0.3)``, or anything like `Task`
    tricks   tricks in any spelling, ``(alias, trick)`` pairs, or whole `Arm` objects
    design   ``"add_one"``, ``"leave_one_out"``, ``"dose"``, ``"factorial"``, ``"screen"`` or ``"shapley"``
    seeds    how many (0, 1, ...) or which; below 6 nothing is decided, 10 is a fair start
    margin   the smallest effect that you care about, in the metric's unit: declare it before you look. Left out it is
             the metric's own (1 point of accuracy), and reports say that it is a default
    metric   a name such as ``"loss"`` or a `Metric`; default: the task's
    target   a value of the metric on validation, in its unit, such as 95 points: then is told when arms reach it
    tune     fields of the task, and settings of tricks, with the values that each arm may choose from, such as
             ``{"lr": [0.001, 0.003, 0.01], "dropout.p": [0.1, 0.3]}``: all arms have the same trials, on seeds of
             their own, and are compared at their own best
    costs    whether steps are timed, alone on the machine, on up to six seeds for each arm
    device   where workers train

    Raises `ConfigError` for whatever cannot work, before anything is trained.
    """

    def __init__(
        self,
        task: Task | str = "waveforms",
        tricks: Iterable[Any] = (),
        *,
        design: str = "add_one",
        seeds: int | Sequence[int] = 10,
        margin: float | None = None,
        metric: str | Metric | None = None,
        target: float | None = None,
        tune: Mapping[str, Sequence[Any]] | None = None,
        costs: bool = True,
        device: str = "cpu",
    ) -> None:
        if design not in DESIGNS:
            known = ", ".join(DESIGNS)
            raise ConfigError(f"study: no design {design!r}; there are {known}.{near(design, DESIGNS)}")
        self.task: Task = tasks.get(task) if isinstance(task, str) else task
        self.design = design
        self.metric = _metric(metric, self.task)
        self.margin_is_default = margin is None
        self.margin = self.metric.margin if margin is None else margin
        if not self.margin > 0:
            raise ConfigError(f"study: margin must be > 0, got {margin}; it is the smallest effect that you care about")
        self.target = target
        self.seeds = _seeds(seeds)
        self._tricks = list(tricks)
        made = DESIGNS[design](self._tricks)
        self.arms, self.questions, self.notes = made.arms, made.questions, made.notes
        self.costs = costs
        self.device = device
        self.specs = plan(self.task, self.arms, self.seeds, device)
        self.settings = settings_of(tune) if tune else ()
        if self.settings:
            check_settings(self.arms, self.settings)
            plan(self.task, [at(arm, setting) for setting in self.settings for arm in self.arms], [0])
        self._memory = MemoryStore()

    def run(self, **how: Unpack[How]) -> Findings:
        """Train what the store does not hold yet and return the outcome; the same numbers for any number of workers.

        workers   processes of one thread each (default: one per core); with 1, times are those of an idle machine
        store     a folder, or `None` for this object's memory
        progress  a bar with the time left; where there is no terminal, a line every half minute
        executor  any `concurrent.futures` executor of processes, instead of *workers*
        retry     make runs again that are stored as errors, such as for want of memory
        limit     seconds that a run may take (default: twenty times the longest so far, and ten minutes at the least)

        The test set is not read: see `confirm`. Ctrl-C keeps every finished run in the store. In a script with a task
        or a trick of its own, call it under ``if __name__ == "__main__":``, because workers import that script.
        """
        tuning = self.tune(**how) if self.settings else None
        arms = tuning.applied(self.arms) if tuning else self.arms
        return self._found(Design(arms, self.questions, self.notes), self.seeds, False, tuning, how)

    def confirm(self, found: Outcome, **how: Unpack[How]) -> Findings | None:
        """Train the best arm that helps, and its control, on as many fresh seeds, and measure both on the test set.

        *found* is what `run` gave, the others are as there. The best of many looks better than it is; on seeds that had
        no part in the choice it does not. None, and the test set stays unread, where no arm helps.
        """
        helping = [each for each in found.comparisons if each.verdict == "helps" and each.name != PLACEBO]
        best_first = sorted(helping, key=lambda each: -each.inference.mean)
        pair = winner(found.arms, [each.question for each in best_first])
        if pair is None:
            return None
        first = max(self.seeds) + 1
        return self.confirm_pair(pair, range(first, first + len(self.seeds)), **how)

    def confirm_pair(self, pair: tuple[Arm, Arm], seeds: Sequence[int], **how: Unpack[How]) -> Findings:
        """Train an arm behind its control on *seeds* that had no part in choosing it, and measure on the test set."""
        return self._found(paired(pair), _seeds(seeds), True, None, how)

    def plan(self, budget: str | float, **how: Unpack[How]) -> Plan:
        """Say how many seeds fit into *budget*, such as ``"10 min"``, and how small an effect they would show.

        Trains a few runs of the first arm, the baseline, of which the store keeps the results. Raises `ConfigError` for
        what is no time, or where these runs fail.
        """
        seconds = seconds_of(budget)
        pilot = plan(self.task, self.arms[:1], range(PILOT), self.device)
        found = self._trained(pilot, f"{self.task.name}, pilot", how)
        runs = [found[spec.key] for spec in pilot]
        if bad := [run["message"] for run in runs if run["status"] != "ok"]:
            raise ConfigError(f"study: the baseline fails: {bad[0]}")
        return Plan(
            metric=self.metric,
            seconds=min(run["wall_seconds"] for run in runs),  # the first of a worker loads what all others find
            deviation=self.metric.scale * stats.spread([run["metrics"][self.metric.name] for run in runs]),
            workers=how.get("workers") or runner.cores(),
            budget=seconds,
            design=self.design,
            sizes=self._sizes(),
        )

    def _sizes(self) -> dict[str, Size]:
        """How much each of the designs would train and ask that the tricks of this study allow."""
        found = {}
        for name, make in DESIGNS.items():
            with contextlib.suppress(ConfigError):
                found[name] = self._size(make(self._tricks))
        return found

    def _size(self, design: Design) -> Size:
        asked = [each for each in design.questions if each.family == EFFECT and each.name != PLACEBO]
        return Size(
            runs=len({spec.key for spec in plan(self.task, design.arms, self.seeds[:1], self.device)}),
            comparisons=len(asked),
            trials=len(self.settings) * SEEDS * sum(arm.name != PLACEBO for arm in design.arms),
            spread=max((math.hypot(*each.weights.values()) for each in asked), default=0.0),
        )

    def tune(self, **how: Unpack[How]) -> Tuning:
        """Try the settings of *tune* with every arm, the baseline included, on seeds of their own; as `run` does."""
        return tuned(
            self.arms,
            self.settings,
            self.metric,
            plan=lambda arms, seeds: plan(self.task, arms, seeds, self.device),
            train=lambda specs: self._trained(specs, f"{self.task.name}, trials", how),
        )

    def _found(self, design: Design, seeds: tuple[int, ...], final: bool, tuning: Tuning | None, how: How) -> Findings:
        specs = plan(self.task, design.arms, seeds, self.device, final)
        found = self._trained(specs, self.task.name, how)
        return Findings(
            task=self.task,
            design=self.design,
            arms=design.arms,
            questions=design.questions,
            notes=design.notes,
            seeds=seeds,
            metric=self.metric,
            margin=self.margin,
            margin_is_default=self.margin_is_default,
            results={(spec.arm, spec.seed): found[spec.key] for spec in specs},
            looks=Looks(self._store(how).look(self._plan(design, specs, final))),
            versions=versions(),
            costs=self._timed(design.arms, seeds, how) if self.costs and not final else {},
            target=None if final else self.target,
            final=final,
            tuning=tuning,
        )

    def _timed(self, arms: tuple[Arm, ...], seeds: Sequence[int], how: How) -> dict[str, list[Result]]:
        """What steps cost, measured one arm after the other by a single worker, with nothing beside it."""
        specs = plan(self.task, arms, seeds[:TIMED], self.device, is_timed=True)
        found = self._trained(specs, f"{self.task.name}, costs", {**how, "workers": None if "executor" in how else 1})
        return {arm.name: [found[spec.key] for spec in specs if spec.arm == arm.name] for arm in arms}

    def _store(self, how: How) -> Store:
        place = how.get("store")
        return self._memory if place is None else open_store(place)

    def _trained(self, specs: list[Spec], name: str, how: How) -> dict[str, Result]:
        """The results of *specs* by key."""
        runner.check_executor(how.get("workers"), how.get("executor"))
        with _progress(name, len({spec.key for spec in specs}), how.get("progress", True)) as bar:
            return runner.execute(
                specs,
                self._store(how),
                workers=how.get("workers"),
                executor=how.get("executor"),
                on_done=lambda *_: bar.update(),
                retry=how.get("retry", False),
                limit=how.get("limit"),
            )

    def _plan(self, design: Design, specs: Sequence[Spec], final: bool) -> dict[str, Any]:
        """What is asked by a look, for those who look later."""
        hashes = {spec.arm: spec.without_seed() for spec in specs}
        questions: dict[str, list[dict[str, float]]] = {each.family: [] for each in design.questions}
        for each in design.questions:
            if each.name != PLACEBO:
                questions[each.family].append({hashes[arm]: weight for arm, weight in each.weights.items()})
        return {
            "task": attrs.asdict(part_of_task(self.task)),
            "design": self.design,
            "arms": hashes,
            "questions": questions,
            "seeds": sorted({spec.seed for spec in specs}),
            "margin": self.margin,
            "metric": self.metric.name,
            "final": final,
            "versions": versions(),
        }


def _progress(name: str, runs: int, shown: bool) -> tqdm[Any]:
    """A bar of so many runs; where there is no terminal, a line every half minute."""
    from tqdm import tqdm

    if sys.stderr.isatty():
        return tqdm(total=runs, desc=name, unit="run", disable=not shown)
    line = "{desc}: {n_fmt} of {total_fmt} runs, {remaining} left\n"
    return tqdm(total=runs, desc=name, disable=not shown, bar_format=line, mininterval=30, miniters=1)


def _metric(metric: str | Metric | None, task: Task) -> Metric:
    if metric is None:
        return task.metric
    if isinstance(metric, Metric):
        return metric
    if metric not in METRICS:
        known = ", ".join(METRICS)
        raise ConfigError(f"study: no metric {metric!r}; there are {known}, or give a Metric.{near(metric, METRICS)}")
    return METRICS[metric]


def _seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if len(chosen) < 2:
        raise ConfigError(f"study: seeds must be at least 2, got {len(chosen)}; 10 is a fair start")
    if len(set(chosen)) < len(chosen):
        raise ConfigError(f"study: seeds must differ, got {list(chosen)}")
    return chosen
