"""Several tasks: each in its own margins, judged together over the seeds, and no single task decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats

from trickbox.cli import main
from trickbox.errors import ConfigError
from trickbox.study import LOSS, aggregate
from trickbox.study.averages import table
from trickbox.study.findings import Findings

Make = Callable[..., Findings]
SEEDS = 8


def effects(make: Make, *gains: float, **options: Any) -> Findings:
    """An outcome of arms that gain so much, in raw units, with noise."""
    noise = np.random.default_rng(len(gains)).normal(0, 0.01, (len(gains) + 1, SEEDS))
    arms = {f"trick {number}": 0.7 + gain + noise[number] for number, gain in enumerate(gains)}
    return make({"baseline": 0.7 + noise[-1], "placebo": 0.7 + noise[-1], **arms}, **options)


def test_the_mean_over_tasks_is_tested_over_seeds_in_margins(make_outcome: Make) -> None:
    one = effects(make_outcome, 0.05, 0.0)
    other = effects(make_outcome, 0.02, 0.0, margin=2.0)

    helper, _ = aggregate([one, other])

    first, second = (outcome.comparisons[1].differences for outcome in (one, other))
    expected = scipy.stats.ttest_1samp((first / 1.0 + second / 2.0) / 2, 0.0)
    assert helper.inference.mean == pytest.approx(float(((first + second / 2) / 2).mean()))
    assert (helper.inference.low, helper.inference.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert helper.inference.verdict == "helps"
    assert helper.count("helps") == 2


def test_a_loss_that_falls_counts_for_a_trick(make_outcome: Make) -> None:
    rising, falling = effects(make_outcome, 0.05), effects(make_outcome, -0.5, metric=LOSS, margin=0.1)

    (found,) = aggregate([rising, falling])

    assert found.better == 1.0
    assert found.inference.mean > 0


def test_one_task_does_not_pull_the_middle_half(make_outcome: Make) -> None:
    tasks = [effects(make_outcome, gain) for gain in (0.01, 0.01, 0.01, 5.0)]

    (found,) = aggregate(tasks)

    differences = np.sort(np.concatenate([task.comparisons[1].differences for task in tasks]))
    assert found.inference.mean > 100
    assert found.middle == pytest.approx(differences[8:-8].mean())
    assert found.middle < 5


def test_what_differs_is_not_averaged(make_outcome: Make) -> None:
    with pytest.raises(ConfigError, match="at least two tasks, got 1"):
        aggregate([effects(make_outcome, 0.1)])
    with pytest.raises(ConfigError, match="asks placebo, trick 0, trick 1 over 8 seeds, and "):
        aggregate([effects(make_outcome, 0.1), effects(make_outcome, 0.1, 0.2)])


def test_the_table_has_the_best_first(make_outcome: Make) -> None:
    outcomes = [effects(make_outcome, 0.0, 0.05), effects(make_outcome, 0.0, 0.05)]

    lines = table(aggregate(outcomes)).splitlines()

    assert lines[2].startswith("trick 1 ")
    assert lines[2].endswith("helps       2/0 of 2")
    assert all(len(line) <= 110 for line in lines)


def test_the_command_refuses_a_task_beside_the_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "waveforms", "--aggregate", "waveforms,waveforms", "--tricks", "dropout"]) == 2
    assert "--aggregate names the tasks itself" in capsys.readouterr().err
