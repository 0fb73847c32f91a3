"""Recommending: which tricks to use on a task, found within a budget of time and confirmed on fresh seeds."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Unpack

import attrs
import numpy as np
from attrs import NOTHING, define, field

from trickbox import catalog, tasks
from trickbox.errors import ConfigError
from trickbox.study import runner, stats, words
from trickbox.study.design import BASELINE, PLACEBO, Arm, named, own
from trickbox.study.findings import Findings
from trickbox.study.planning import PILOT, duration, seconds_of
from trickbox.study.recommendation import Recommendation
from trickbox.study.store import MemoryStore
from trickbox.study.study import How, Study
from trickbox.study.task import Metric, Task
from trickbox.study.verdicts import LEAST
from trickbox.trick import fields_of

FINALISTS = 3
FIRST_ROUND = 3
"""Seeds on which every trick is tried."""
_MOST_SEEDS = 30
_MOST_COMBINED = 12
_SCREEN, _COMBINATIONS = 0.5, 0.65
"""The parts of the budget by which the screen and the combinations should be over."""
_SLOWER, _STARTS = 1.5, 25.0
"""How much longer a run takes with tricks than without, at most on average, and the seconds in which workers start."""
_RATES = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Multiples of the task's learning rate that are tried."""
_FRESH = 2_000_000
"""The first seed of confirmations; no step before comes to it."""

Scored = tuple[tuple[str, Any], float]
"""A trick by name, and how much better it looks than the baseline."""


def recommend(
    task: Task | str = "waveforms",
    tricks: Iterable[Any] | None = None,
    *,
    budget: str | float = "10 min",
    metric: str | Metric | None = None,
    margin: float | None = None,
    device: str = "cpu",
    **how: Unpack[How],
) -> Recommendation:
    """Find out within *budget* which tricks to use on *task*, and confirm the best on fresh seeds.

    The baseline gets the learning rate that suits it best. All *tricks* are tried on three seeds, the better half of
    them on six, and so on to the last three; these in all their combinations; the best of those at every rate, as the
    baseline was. It meets the tuned baseline on fresh seeds, and the test set is read, once.

    Without *tricks*, all that come with trickbox and need no setting are tried. *how* is that of `Study.run`, the
    others are as in `Study`. Raises `ConfigError` where the budget is too small to confirm anything, or without tricks.
    """
    found = tasks.get(task) if isinstance(task, str) else task
    ways: How = {**how, "store": how.get("store") or MemoryStore()}
    search = _Search(found, {"metric": metric, "margin": margin, "device": device}, seconds_of(budget), ways)
    entries: list[Any] = candidates() if tricks is None else list(tricks)
    if own(entries) or not entries:
        raise ConfigError(f"recommend: tricks must be one trick or more, got {entries!r}; it makes the arms itself")
    return search.run(named(entries))


def candidates() -> list[str]:
    """The tricks that come with trickbox and can be made without a setting, but the placebo."""
    own = [entry.name for entry in catalog.entries() if catalog.distribution(entry).split()[0] == "trickbox"]
    settings = {name: fields_of(catalog.get(name)).values() for name in own if name != PLACEBO}
    return [name for name, given in settings.items() if all(one.default is not NOTHING for one in given)]


@define(eq=False)
class _Search:
    """The steps of one recommendation, and the time that they have taken."""

    task: Task
    options: Mapping[str, Any]
    budget: float
    how: How
    steps: list[str] = field(factory=list)
    run_seconds: float = 1.0
    """What a run took, on average over the last study."""
    started: float = field(factory=time.monotonic)

    def run(self, tricks: list[tuple[str, Any]]) -> Recommendation:
        self._check_budget(len(tricks))
        control = self._at_its_rate(Arm(BASELINE, control=None), {})
        best = self._screen(tricks, control)
        arm = self._at_its_rate(self._combine(best, control), control.overrides) if best else None
        confirmed = self._confirm(control, arm) if arm else None
        return Recommendation(self.task, control, arm, confirmed, tuple(self.steps), self._spent(), self.budget)

    def _check_budget(self, tricks: int) -> None:
        """Raise `ConfigError` where the fewest runs that make sense take longer than the budget."""
        plan = self._study([], 2).plan(self.budget, **self.how)
        runs = PILOT + FIRST_ROUND * (tricks + 2 * len(_RATES)) + 2 * LEAST
        starts = 0.0 if self.how.get("executor") else _STARTS
        least = _SLOWER * runs * plan.seconds / plan.workers + starts
        if least > self.budget:
            raise ConfigError(
                f"recommend: {tricks} tricks need at least {duration(least)} here, got {duration(self.budget)}; give "
                "more time, or name fewer tricks"
            )

    def _at_its_rate(self, arm: Arm, otherwise: Mapping[str, Any]) -> Arm:
        """The arm at the learning rate that suits it best, where the task has one."""
        rate = getattr(self.task, "lr", None)
        if not isinstance(rate, float):
            return attrs.evolve(arm, overrides=otherwise)
        rates = [float(f"{factor * rate:.3g}") for factor in _RATES]
        tried = attrs.evolve(arm, name="tried", control=BASELINE)
        tuning = self._study([tried], 2, tune={"lr": rates}).tune(**self.how)
        chosen = tuning.chosen("tried")
        edge = ", at the edge of what was tried" if tuning.at_edge("tried") else ""
        self.steps.append(f"{arm.name}: lr={chosen['lr']:g} is the best of {len(rates)}{edge}")
        return attrs.evolve(arm, overrides=chosen)

    def _screen(self, tricks: list[tuple[str, Any]], control: Arm) -> list[Scored]:
        """The tricks that look best, in rounds of half as many on twice as many seeds."""
        seeds = FIRST_ROUND
        while True:
            found = self._found(tricks, seeds, control)
            scored = _scored(found, tricks)
            self.steps += _first_look(found) if seeds == FIRST_ROUND else []
            self.steps.append(f"{len(scored)} tricks on {seeds} seeds: {_in_short(scored[:FINALISTS])}")
            tricks = [trick for trick, _ in scored[: max(FINALISTS, len(scored) // 2)]]
            if len(scored) <= FINALISTS or self._affordable(len(tricks) + 2, _SCREEN) < seeds:
                return [(trick, mean) for trick, mean in scored[:FINALISTS] if mean > 0]
            seeds *= 2

    def _combine(self, best: list[Scored], control: Arm) -> Arm:
        """The combination of the best tricks that looks best; the best alone where there is no other."""
        tricks = [trick for trick, _ in best]
        if len(tricks) == 1:
            return Arm(tricks[0][0], tricks)
        seeds = min(_MOST_COMBINED, max(FIRST_ROUND, self._affordable(2 ** len(tricks) + 1, _COMBINATIONS)))
        found = self._found(tricks, seeds, control, design="factorial")
        means = {arm.name: float(_gains(found, arm.name).mean()) for arm in found.arms if len(arm.tricks)}
        del means[PLACEBO]
        name = max(means, key=lambda arm: means[arm])
        self.steps.append(f"{len(means)} combinations on {seeds} seeds: {name} {words.number(means[name], True)}")
        return next(arm for arm in found.arms if arm.name == name)

    def _confirm(self, control: Arm, arm: Arm) -> Findings:
        """The arm against the baseline on as many fresh seeds as there is time for, but six at the least."""
        seeds = min(_MOST_SEEDS, max(LEAST, self._affordable(2, 1.0)))
        pair = (control, attrs.evolve(arm, control=BASELINE))
        return self._study([], 2).confirm_pair(pair, range(_FRESH, _FRESH + seeds), **self.how)

    # -- studies and time ----------------------------------------------------------------------------------------------

    def _found(self, tricks: Sequence[Any], seeds: int, control: Arm, design: str = "add_one") -> Findings:
        """A study at the settings of the baseline."""
        task: Any = self.task
        found = self._study(tricks, seeds, task=attrs.evolve(task, **control.overrides), design=design).run(**self.how)
        self.run_seconds = float(np.mean([run["wall_seconds"] for run in found.results.values()]))
        return found

    def _study(self, tricks: Sequence[Any], seeds: int, task: Task | None = None, **options: Any) -> Study:
        return Study(task or self.task, tricks, seeds=seeds, costs=False, **self.options, **options)

    def _spent(self) -> float:
        return time.monotonic() - self.started

    def _affordable(self, arms: int, part: float) -> int:
        """How many seeds of so many arms fit into what is left of a part of the budget."""
        left = part * self.budget - self._spent()
        return max(0, math.floor(left * (self.how.get("workers") or runner.cores()) / (arms * self.run_seconds)))


def _scored(found: Findings, tricks: list[tuple[str, Any]]) -> list[Scored]:
    """The tricks that could run, the best first."""
    unfit = _unfit(found)
    scored = [(trick, float(_gains(found, trick[0]).mean())) for trick in tricks if trick[0] not in unfit]
    return sorted(scored, key=lambda each: -each[1])


def _gains(found: Findings, arm: str) -> stats.Array:
    """How much better an arm looks than the baseline on each seed; a run that failed counts as guessing."""
    gains = np.nan_to_num(found.scored(arm) - found.scored(BASELINE))
    return gains if found.metric.higher_is_better else -gains


def _unfit(found: Findings) -> list[str]:
    """The arms that could not be trained at all."""
    return [arm.name for arm in found.arms if all(run["status"] == "error" for run in found.runs(arm.name))]


def _in_short(scored: Sequence[Scored]) -> str:
    return ", ".join(f"{name} {words.number(mean, True)}" for (name, _), mean in scored)


def _first_look(found: Findings) -> list[str]:
    """What one seed would have made of it, and which tricks are nothing for this task."""
    unfit = _unfit(found)
    said = [f"nothing for this task: {', '.join(unfit)}"] if unfit else []
    fit = [arm.name for arm in found.arms if arm.tricks and arm.name not in (PLACEBO, *unfit)]
    if fit:
        gains = {name: _gains(found, name) for name in fit}
        best = max(fit, key=lambda name: float(gains[name][0]))
        one, others = (words.number(float(value), True) for value in (gains[best][0], gains[best][1:].mean()))
        said.append(f"a single look at {len(fit)} would have chosen {best}, {one}; on other seeds it is {others}")
    return said
