"""A plan says what fits into a budget and what it would show, from a few runs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from trickbox.errors import ConfigError
from trickbox.study import ACCURACY, Plan, Study
from trickbox.study.planning import PILOT, seconds_of
from trickbox.study.verdicts import infer
from trickbox.tasks.waveforms import Waveforms

EASY = Waveforms(samples=150, max_epochs=4, fresh_samples=300)


def made(**changes: Any) -> Plan:
    facts = {"metric": ACCURACY, "seconds": 2.0, "deviation": 1.0, "runs": 5, "comparisons": 3, "workers": 2}
    return Plan(**{**facts, "budget": 100.0, **changes})


def test_seeds_fill_the_budget_and_no_more() -> None:
    plan = made()

    assert plan.seeds == 20
    assert plan.time(plan.seeds) == 100.0
    assert made(budget=99.9).seeds == 19
    assert (made(trials=10).seeds, made(trials=10).time(18)) == (18, 100.0)
    assert "5 runs a seed and 10 trials, 2 s each" in str(made(trials=10))


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
        "5 runs a seed, 2 s each on 2 workers; the baseline spreads by about 1.00 points",
        "budget 1.7 min: 20 seeds",
    ]
    assert "20     1.7 min  1.11             <- fits" in text
    assert "too little, 6 seeds are the fewest" in str(made(budget=20.0))


def test_a_study_plans_from_three_runs_that_it_keeps(here: Any) -> None:
    study = Study(EASY, ["dropout"], seeds=3, costs=False)

    plan = study.plan("1 min", executor=here)

    assert (here.count, plan.runs, plan.comparisons, plan.budget) == (PILOT, 3, 1, 60.0)
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
