"""The study: which tricks help on this task, by how much, at what cost, and how sure that is."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from typing import Any

import attrs

from trickbox import tasks
from trickbox.errors import ConfigError, near
from trickbox.study import design as designs
from trickbox.study import runner
from trickbox.study.outcome import Outcome
from trickbox.study.spec import plan, versions
from trickbox.study.store import MemoryStore, Store, open_store
from trickbox.study.task import METRICS, Metric, Task


class Study:
    """A comparison of tricks on one task over paired seeds, checked and planned when it is made, trained by `run`.

    task     a name, ``Waveforms(noise=0.3)``, or anything like `Task`
    tricks   tricks in any spelling, ``(alias, trick)`` pairs, or whole `Arm` objects
    design   ``"add_one"`` or ``"leave_one_out"``
    seeds    how many (0, 1, ...) or which; below 6 every verdict rests on normality, 10 is a fair start
    margin   the smallest effect that you care about, in the metric's unit: declare it before you look. Left out it is
             the metric's own (1 point of accuracy), and reports say that it is a default
    metric   a name such as ``"val_loss"`` or a `Metric`; default: the task's
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
        device: str = "cpu",
    ) -> None:
        if design not in designs.DESIGNS:
            known = ", ".join(designs.DESIGNS)
            raise ConfigError(f"study: no design {design!r}; there are {known}.{near(design, designs.DESIGNS)}")
        self.task: Task = tasks.get(task) if isinstance(task, str) else task
        self.design = design
        self.metric = _metric(metric, self.task)
        self.margin_is_default = margin is None
        self.margin = self.metric.margin if margin is None else margin
        if not self.margin > 0:
            raise ConfigError(f"study: margin must be > 0, got {margin}; it is the smallest effect that you care about")
        self.seeds = _seeds(seeds)
        self.arms = tuple(designs.DESIGNS[design](tricks))
        designs.check(self.arms)
        self.specs = plan(self.task, self.arms, self.seeds, device)
        self._memory = MemoryStore()

    def run(
        self,
        workers: int | None = None,
        store: Store | str | os.PathLike[str] | None = None,
        progress: bool | None = None,
        executor: Executor | None = None,
    ) -> Outcome:
        """Train what *store* does not hold yet and return the outcome; the same numbers for any number of *workers*.

        workers   processes of one thread each (default: one per core); with 1, times are those of an idle machine
        store     a folder, or `None` for this object's memory
        progress  a bar with the time left (default: on a terminal only)
        executor  any `concurrent.futures` executor of processes, instead of *workers*

        Ctrl-C keeps every finished run in the store. In a script, call it under ``if __name__ == "__main__":``.
        """
        runner.check_executor(workers, executor)
        kept = self._memory if store is None else open_store(store)
        looks = kept.freeze(self._plan())
        from tqdm import tqdm

        runs = len({spec.key for spec in self.specs})
        with tqdm(
            total=runs, desc=self.task.name, unit="run", disable=None if progress is None else not progress
        ) as bar:
            found = runner.execute(
                self.specs, kept, workers=workers, executor=executor, on_done=lambda *_: bar.update()
            )
        return Outcome(
            task=self.task,
            design=self.design,
            arms=self.arms,
            seeds=self.seeds,
            metric=self.metric,
            margin=self.margin,
            margin_is_default=self.margin_is_default,
            results={(spec.arm, spec.seed): found[spec.key] for spec in self.specs},
            looks=looks,
            versions=versions(),
        )

    def _plan(self) -> dict[str, Any]:
        """What was declared before anything was known."""
        first = [spec for spec in self.specs if spec.seed == self.seeds[0]]
        return {
            "task": self.task.name,
            "design": self.design,
            "arms": {spec.arm: spec.to_json() for spec in first},
            "controls": {arm.name: arm.control for arm in self.arms},
            "seeds": list(self.seeds),
            "margin": self.margin,
            "metric": attrs.asdict(self.metric),
        }


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
