"""Outcomes without training, for all that only reads them, and an executor that needs no process."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
import pytest
from study.made import made_plan, made_run

from trickbox.study.design import Arm, Question, paired
from trickbox.study.findings import Findings
from trickbox.study.looks import Looks
from trickbox.study.task import ACCURACY, Metric
from trickbox.tasks.waveforms import Waveforms


class Here(Executor):
    """Runs everything at once in this process, and counts."""

    def __init__(self) -> None:
        self.count = 0

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.count += 1
        future: Future[Any] = Future()
        future.set_result(function(*args, **kwargs))
        return future


@pytest.fixture
def here() -> Here:
    return Here()


@pytest.fixture(scope="session")
def make_outcome() -> Callable[..., Findings]:
    """Make an outcome from raw values of each arm; `facts` change the runs of an arm."""

    def make(
        values: dict[str, Sequence[float]],
        *,
        margin: float = 1.0,
        metric: Metric = ACCURACY,
        controls: Mapping[str, str | None] = {"baseline": None},
        facts: Mapping[str, dict[str, Any]] = {},
        plans: Sequence[dict[str, Any]] = (),
        questions: tuple[Question, ...] = (),
        target: float | None = None,
    ) -> Findings:
        arms = [Arm(arm, control=controls.get(arm, "baseline")) for arm in values]
        costs = {
            arm: [{"step_seconds": facts.get(arm, {}).get("step_seconds", 0.1), "memory": 1000}] * 6 for arm in values
        }
        return Findings(
            costs=costs,
            target=target,
            task=Waveforms(fresh_samples=30),
            design="add_one",
            arms=tuple(arms),
            questions=questions or paired(arms).questions,
            seeds=tuple(range(len(next(iter(values.values()))))),
            metric=metric,
            margin=margin,
            margin_is_default=False,
            results={
                (arm, seed): made_run(float(value), metric.name, **facts.get(arm, {}))
                for arm, of_arm in values.items()
                for seed, value in enumerate(of_arm)
            },
            looks=Looks([*plans, made_plan(margin=margin, seeds=len(next(iter(values.values()))))]),
            versions={"trickbox": "0", "torch": "2"},
        )

    return make


@pytest.fixture(scope="session")
def outcome(make_outcome: Callable[..., Findings]) -> Findings:
    """Ten seeds with an arm of every verdict, a failure, and names that must be escaped or cut."""
    noise = np.random.default_rng(0).normal(0, 0.01, (6, 10))
    base = 0.8 + noise[0]
    values = {
        "baseline": base,
        "placebo": base,
        "helper": base + 0.05 + noise[1],
        "<b>hurter</b> & co": base - 0.05 + noise[2],
        "equal": base + 0.1 * noise[3],
        "a_trick_with_a_very_long_name": base + 10 * (noise[4] - noise[4].mean()),
        "failing": np.where(np.arange(10) == 3, math.nan, base + 0.02 + noise[5]),
    }
    return make_outcome(values, facts={"helper": {"parameters": 196, "step_seconds": 0.15}})
