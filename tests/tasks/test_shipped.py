"""The shipped tasks are those of their papers: written once more with loops, and learned by their nets."""

from __future__ import annotations

import math
import sys
from functools import partial

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

import trickbox as tb
from trickbox import tasks
from trickbox.errors import ConfigError
from trickbox.streams import forked
from trickbox.tasks.real import _loaded, split
from trickbox.tasks.series import cbf, synthetic_control, two_patterns
from trickbox.tasks.waveform21 import WAVES, waveform21

NAMES = tasks.available()
DRAWN = ("cbf", "synthetic_control", "two_patterns", "waveform21", "waveforms")


def rows(inputs: Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in inputs}


@pytest.mark.parametrize("name", NAMES)
def test_no_sample_is_in_two_sets_and_the_test_set_is_one_for_all_seeds(name: str) -> None:
    first, again, other = (tasks.get(name).data(seed) for seed in (0, 0, 1))
    assert first.test is not None
    assert other.test is not None

    sets = [rows(part[0]) for part in (first.train, first.valid, first.comparison, first.test)]

    assert sum(map(len, sets)) == len(set().union(*sets))
    assert torch.equal(first.train[0], again.train[0])
    assert rows(first.train[0]) != rows(other.train[0])
    if name != "diabetes":  # which is scaled by its training part
        assert torch.equal(first.test[0], other.test[0])


@pytest.mark.parametrize("name", NAMES)
def test_its_net_takes_its_data_and_tricks_find_a_place_there(name: str) -> None:
    task = tasks.get(name)
    inputs, targets = task.data(0).train

    outputs = task.model()(inputs[:4])

    assert math.isfinite(task.loss(outputs, targets[:4]).item())
    assert len(task.class_names) == (outputs.shape[1] if task.class_names else 0)
    assert "batch_norm" in str(tb.explain(task.model(), inputs[:32], ["batch_norm", "dropout", "initialize"]))


@pytest.mark.parametrize("name", NAMES)
def test_its_net_learns_and_leaves_room(name: str) -> None:
    task = tasks.get(name, max_epochs=8)
    splits = task.data(0)
    with forked(0):
        model = task.model()
    factory = partial(torch.optim.Adam, lr=task.lr)

    result = tb.fit(
        model, splits.train, splits.comparison, loss=task.loss, optimizer=factory, max_epochs=8,
        batch_size=task.batch_size, device="cpu", progress=False,
    )  # fmt: skip

    if task.class_names:
        chance = 1 / len(task.class_names)
        assert chance + 0.2 < result.metrics["val_accuracy"] < 0.99
    else:
        assert 0.3 < result.metrics["val_loss"] < 0.9


@pytest.mark.parametrize("name", [name for name in DRAWN if name != "waveforms"])
def test_classes_come_in_turn(name: str) -> None:
    _, targets = tasks.get(name).draw(120, (3,))

    classes = len(tasks.get(name).class_names)
    assert targets.tolist() == [number % classes for number in range(120)]


def test_cylinders_bells_and_funnels_are_saitos() -> None:
    """With the same draws, point by point."""
    inputs, targets = cbf(30, noise=1.0, seed=4)
    generator = np.random.default_rng(4)
    start, duration = generator.integers(16, 33, (30, 1)), generator.integers(32, 97, (30, 1))
    height, noise = 6 + generator.standard_normal((30, 1)), generator.standard_normal((30, 128))

    for series, target, a, length, h, deviations in zip(
        inputs[:, 0].tolist(), targets.tolist(), start[:, 0], duration[:, 0], height[:, 0], noise, strict=True
    ):
        b = a + length
        for t in range(1, 129):
            inside = 1.0 if a <= t <= b else 0.0
            shape = {0: 1.0, 1: (t - a) / (b - a), 2: (b - t) / (b - a)}[target]
            assert series[t - 1] == pytest.approx(h * inside * shape + deviations[t - 1], abs=1e-5)


def test_control_charts_are_those_of_the_paper_before_they_are_scaled() -> None:
    inputs, targets = synthetic_control(60, seed=4)
    generator = np.random.default_rng(4)
    a, period = generator.uniform(10, 15, (2, 60, 1))
    slope, size = generator.uniform(0.2, 0.5, (60, 1)), generator.uniform(7.5, 20, (60, 1))
    moment, noise = generator.uniform(20, 40, (60, 1)), generator.uniform(-3, 3, (60, 60))

    for row, (series, target) in enumerate(zip(inputs[:, 0].numpy(), targets.tolist(), strict=True)):
        chart = []
        for t in range(1, 61):
            k = 1 if t >= moment[row, 0] else 0
            trend = [
                0.0,
                a[row, 0] * math.sin(2 * math.pi * t / period[row, 0]),
                slope[row, 0] * t,
                -slope[row, 0] * t,
                k * size[row, 0],
                -k * size[row, 0],
            ][target]
            chart.append(30 + 2 * noise[row, t - 1] + trend)
        assert series == pytest.approx(scipy.stats.zscore(chart), abs=1e-4)


def test_two_patterns_are_two_steps_of_ten() -> None:
    inputs, targets = two_patterns(200, noise=0.0, seed=1)

    for series, target in zip(inputs[:, 0], targets.tolist(), strict=True):
        found = []
        for half in (series[:64], series[64:]):
            (inside,) = half.nonzero(as_tuple=True)
            length = len(inside)
            assert 16 <= length <= 40
            assert inside.tolist() == list(range(int(inside[0]), int(inside[0]) + length))
            levels = half[inside]
            assert levels[: length // 2].unique().tolist() == [-levels[-1]]
            assert levels[length // 2 :].unique().tolist() == [levels[-1]]
            found.append(0 if levels[-1] == 5 else 1)
        assert 2 * found[0] + found[1] == target


def test_the_best_rule_for_waveform21_misses_13_percent() -> None:
    """Bayes' rule by integrating the mixing share out on a grid."""
    inputs, targets = waveform21(6000, seed=2)
    shares = np.linspace(0, 1, 101)[:, None]
    x = inputs.double().numpy()
    likelihoods = []
    for first, second in ((0, 1), (0, 2), (1, 2)):
        centers = shares * WAVES[first] + (1 - shares) * WAVES[second]
        distances = ((x[:, None] - centers[None]) ** 2).sum(-1) / 2
        likelihoods.append(np.exp(-distances + 30).mean(1))

    error = (np.argmax(likelihoods, 0) != targets.numpy()).mean()

    assert error == pytest.approx(0.133, abs=0.006)
    assert WAVES[0].tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 5, 4, 3, 2, 1, 0, 0, 0, 0, 0]


def test_real_data_are_scikit_learns_and_scaled_by_the_training_part_alone() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    digits, diabetes = tasks.get("digits").data(5), tasks.get("diabetes").data(5)

    images, _ = datasets.load_digits(return_X_y=True)
    assert rows(digits.train[0].reshape(-1, 64)) <= rows(torch.from_numpy(images.astype(np.float32)) / 16)
    inputs, targets = diabetes.train
    assert inputs.mean(0).abs().max() < 1e-5
    assert targets.std() == pytest.approx(1.0, abs=1e-5)
    assert 0.01 < diabetes.comparison[0].mean(0).abs().max() < 0.5


def test_a_split_uses_every_sample_once() -> None:
    inputs = torch.arange(50.0)[:, None]
    splits = split(inputs, inputs, 20, 5, 10, seed=3)
    assert splits.test is not None

    parts = [part[0].flatten().tolist() for part in (splits.train, splits.valid, splits.test, splits.comparison)]

    assert list(map(len, parts)) == [20, 5, 10, 15]
    assert sorted(sum(parts, [])) == list(range(50))  # noqa: RUF017


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    _loaded.cache_clear()

    with pytest.raises(ConfigError, match=r"digits: scikit-learn is missing; pip install 'trickbox\[tasks\]'"):
        tasks.get("digits").data(0)


def test_a_noise_below_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="noise"):
        tasks.get("cbf", noise=-1.0)
