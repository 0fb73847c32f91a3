"""A plan says what fits into a budget and what it would show, from a few runs."""

from __future__ import annotations

import math
from typing import Any

import attrs
import numpy as np
import pytest

from trickbox.errors import ConfigError
from trickbox.study import ACCURACY, Plan, Study
from trickbox.study.planning import PILOT, Size, seconds_of
from trickbox.study.verdicts import infer
from trickbox.tasks.waveforms import Waveforms

EASY = Waveforms(samples=150, max_epochs=4, fresh_samples=300)


def made(**changes: Any) -> Plan:
    facts = {"metric": ACCURACY, "seconds": 2.0, "deviation": 1.0, "workers": 2, "budget": 100.0, "design": "add_one"}
    plan = {name: changes.pop(name) for name in facts if name in changes}
    return Plan(**{**facts, **plan}, sizes={"add_one": Size(**{"runs": 5, "comparisons": 3, **changes})})


def test_seeds_fill_the_budget_and_no_more() -> None:
    plan = made()

    assert plan.seeds == 20
    assert plan.time(plan.seeds) == 100.0
    assert made(budget=99.9).seeds == 19
    assert (made(trials=10).seeds, made(trials=10).time(18)) == (18, 100.0)
    assert "add_one: 5 runs a seed and 10 trials, 2 s each" in str(made(trials=10))


def test_what_it_sees_is_called_in_four_of_five_studies() -> None:
    plan = made(comparisons=1)
    generator = np.random.default_rng(0)

    pairs = generator.normal(plan.detectable(12), math.sqrt(2), (400, 12, 1))
    called = [infer(study, margin=1.0)[0].verdict == "helps" for study in pairs]

    assert np.mean(called) == pytest.approx(0.8, abs=0.07)
    assert made(comparisons=10).detectable(12) > plan.detectable(12)
    assert math.isinf(plan.detectable(5))


def test_it_is_printed_for_people() -> None:
    text = str(made())

    assert text.splitlines()[:2] == [
        "add_one: 5 runs a seed, 2 s each on 2 workers; the baseline spreads by about 1.00 points",
        "budget 1.7 min: 20 seeds",
    ]
    assert "20     1.7 min  1.11             <- fits" in text
    assert "too little, 6 seeds are the fewest" in str(made(budget=20.0))


def test_a_study_plans_from_three_runs_that_it_keeps(here: Any) -> None:
    study = Study(EASY, ["dropout"], seeds=3, costs=False)

    plan = study.plan("1 min", executor=here)

    assert (here.count, plan.size, plan.budget) == (PILOT, Size(runs=3, comparisons=1), 60.0)
    assert plan.deviation > 0
    study.run(executor=here)
    assert here.count == 9


@pytest.mark.parametrize("budget", ["soon", "0", "-3 min", "3 weeks", ""])
def test_what_is_no_time_is_refused(budget: str) -> None:
    with pytest.raises(ConfigError, match="a time is written as '10 min'"):
        seconds_of(budget)


def test_a_baseline_that_fails_is_said(here: Any) -> None:
    with pytest.raises(ConfigError, match="study: the baseline fails: diverged"):
        Study(Waveforms(samples=60, max_epochs=4, fresh_samples=30, lr=1e18), seeds=2).plan("1 min", executor=here)


def test_other_designs_of_the_same_tricks_stand_beside_it(here: Any) -> None:
    study = Study(EASY, ["dropout", "batch_norm", "ema", "residual"], tune={"lr": [0.001, 0.01]}, costs=False)

    plan = study.plan("10 min", executor=here)

    assert plan.sizes == {
        "add_one": Size(runs=6, comparisons=4, trials=2 * 3 * 5),
        "leave_one_out": Size(runs=7, comparisons=5, trials=2 * 3 * 6),
        "factorial": Size(runs=17, comparisons=4, trials=2 * 3 * 16, spread=0.5),
        "shapley": Size(runs=17, comparisons=4, trials=2 * 3 * 16, spread=plan.sizes["shapley"].spread),
    }
    assert attrs.evolve(plan, design="factorial").detectable(10) < 0.5 * plan.detectable(10)
    rows = [line.split()[:2] for line in str(plan).split("asks of each trick")[1].splitlines()[1:5]]
    assert rows == [["add_one", "6"], ["leave_one_out", "7"], ["factorial", "17"], ["shapley", "17"]]
