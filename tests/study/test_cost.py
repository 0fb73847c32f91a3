"""What a step costs: the memory of closed forms, times of steps alone, and what equal time means."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import trickbox as tb
from trickbox.study import Study, words
from trickbox.study.cost import measure
from trickbox.study.findings import Findings
from trickbox.study.pace import at_equal_time, epochs_to, to_target
from trickbox.tasks.waveforms import Waveforms

Make = Callable[..., Findings]
WIDTH, SAMPLES = 32, 8


def session(optimizer: Any, tricks: Any = ()) -> tb.Session:
    model = nn.Sequential(nn.Linear(4, WIDTH, bias=False), nn.Sigmoid(), nn.Linear(WIDTH, 1, bias=False))
    data = torch.randn(10 * SAMPLES, 4), torch.randn(10 * SAMPLES, 1)
    return tb.Session(
        model, data, loss=nn.MSELoss(), optimizer=optimizer, tricks=tricks, max_epochs=3, batch_size=SAMPLES,
        device="cpu",
    )  # fmt: skip


def test_memory_is_weights_gradients_state_and_what_the_forward_keeps() -> None:
    weights = 4 * (4 * WIDTH + WIDTH)
    # The inputs, what the sigmoid gave, and for the squares the outputs and the targets.
    kept = 4 * SAMPLES * (4 + WIDTH + 1 + 1)

    plain = measure(session(partial(torch.optim.SGD, lr=0.1)))
    adam = measure(session(partial(torch.optim.Adam, lr=0.1)))

    assert plain["memory"] == 2 * weights + kept
    assert adam["memory"] == pytest.approx(4 * weights + kept, abs=16)  # and two counters
    assert plain["parameters"] == 5 * WIDTH


def test_two_forwards_in_a_step_do_not_add_up() -> None:
    factory = partial(torch.optim.SGD, lr=0.1)

    assert measure(session(factory, ["sam"]))["memory"] == measure(session(factory))["memory"]


def test_a_step_takes_time_and_a_short_training_is_no_error() -> None:
    factory = partial(torch.optim.SGD, lr=0.1)

    assert 0 < measure(session(factory))["step_seconds"] < math.inf
    assert math.isnan(measure(session(factory), steps=3)["step_seconds"])


def test_a_study_times_each_arm_alone_and_once(here: Any, tmp_path: Any) -> None:
    study = Study(Waveforms(samples=300, max_epochs=3, fresh_samples=30), ["sam"], seeds=4)

    found = study.run(executor=here, store=tmp_path)
    again = study.run(executor=here, store=tmp_path)

    assert here.count == 2 * 4 * 3
    assert found.costs == again.costs
    (placebo, sam) = found.comparisons
    least = {arm: min(run["step_seconds"] for run in runs) for arm, runs in found.costs.items()}
    assert sam.time_ratio == pytest.approx(least["sam"] / least["baseline"])
    assert (sam.time_low, sam.time_high) == (0.0, math.inf), "four seeds have no interval"
    assert placebo.memory_ratio == 1.0


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (1.0, 0.9 - 0.7),
        (2.0, 0.6 - 0.7),  # after 1.5 of its epochs
        (0.5, 0.9 - (0.5 + 0.1 * 0.5)),  # when the arm is done, the control has trained for 1.5 epochs
        (9.0, 0.5 - 0.7),
    ],
)
def test_equal_time_is_that_of_the_shorter(ratio: float, expected: float) -> None:
    assert at_equal_time([0.5, 0.7, 0.9], [0.5, 0.6, 0.7], ratio) == pytest.approx(expected)


def test_a_miss_takes_for_ever() -> None:
    found = to_target([math.inf, math.inf, 3.0], [2.0, 4.0, 3.0], 0.5)

    assert (found.ratio, found.sooner, found.later, found.misses) == (math.inf, 0, 2, (2, 0))
    assert to_target([2.0], [math.inf], 0.5).ratio == 0
    assert epochs_to([0.1, math.nan, 0.6], 0.5, True) == 3


def test_a_slower_arm_is_judged_in_the_same_time_too(make_outcome: Make) -> None:
    base = np.linspace(0.7, 0.72, 8)
    slow = {"step_seconds": 0.2, "curves": {"val_accuracy": [0.5, 0.6, 0.7, 0.8]}}
    facts: dict[str, dict[str, Any]] = {"baseline": {"curves": {"val_accuracy": [0.5, 0.6, 0.7, 0.75]}}, "a": slow}

    (found,) = make_outcome({"baseline": base, "a": base + 0.05}, facts=facts, target=70.0).comparisons

    assert found.time_ratio == pytest.approx(2.0)
    assert found.at_equal_time is not None
    assert found.at_equal_time.mean == pytest.approx(60 - 75)
    assert "2.0 times as long, in the same time -15.00 points (-15.00 to -15.00) on validation" in words.sentence(found)
    assert found.to_target is not None
    assert (found.to_target.ratio, found.to_target.later) == (pytest.approx(2.0), 8)
    assert (
        "reaches 70 points of validation accuracy in 2 times the time, sooner on 0 of 8 seeds, later on 8"
        in words.sentence(found)
    )
