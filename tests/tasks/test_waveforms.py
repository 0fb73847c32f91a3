"""The lesson's task is the lesson's: its waves, its split, its network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch
import torch.nn.functional as F
from torch import nn

from trickbox import tasks
from trickbox.errors import ConfigError
from trickbox.tasks.waveforms import PlainNet, Waveforms, shapes, waveforms


def test_shapes_are_those_of_scipy() -> None:
    angle = np.random.default_rng(0).uniform(-30, 30, 1000)

    sine, triangle, square = shapes(angle)

    assert sine == pytest.approx(np.sin(angle))
    assert triangle == pytest.approx(scipy.signal.sawtooth(angle, width=0.5))
    assert square == pytest.approx(scipy.signal.square(angle))


def test_a_clean_series_is_its_wave_at_some_frequency_and_phase() -> None:
    inputs, targets = waveforms(30, noise=0.0, frequencies=(3.0, 3.0), seed=5)

    phases = np.linspace(0, 2 * np.pi, 2000)
    angle = 2 * np.pi * 3 * np.arange(128) / 128 + phases[:, None]
    templates = np.stack(shapes(angle))
    templates /= np.linalg.norm(templates, axis=-1, keepdims=True)
    series = inputs[:, 0].double().numpy()
    match = (templates @ (series / np.linalg.norm(series, axis=1, keepdims=True)).T).max(1)

    assert match.argmax(0).tolist() == targets.tolist()
    assert match.max(0) == pytest.approx(np.ones(30), abs=0.02)


def test_amplitude_frequency_and_noise_are_in_range() -> None:
    clean, targets = waveforms(3000, noise=0.0, seed=1)
    noisy, _ = waveforms(3000, noise=0.3, seed=1)

    squares = clean[targets == 2].abs().amax((1, 2))
    assert 0.5 <= squares.min() < 0.51
    assert 1.49 < squares.max() <= 1.5
    assert (noisy - clean).std() == pytest.approx(0.3, rel=0.01)
    crossings = (clean[targets == 0, 0].sign().diff(dim=1) != 0).sum(1)
    assert crossings.min() in (1, 2, 3)
    assert crossings.max() in (19, 20)


def test_the_split_is_the_lessons() -> None:
    splits = Waveforms(fresh_samples=300).data(seed=3)

    assert splits.train[0].shape == (360, 1, 128)
    assert splits.valid[0].shape == (120, 1, 128)
    assert splits.test[0].shape == (300, 1, 128)
    assert (splits.train[0].dtype, splits.train[1].dtype) == (torch.float32, torch.int64)
    assert set(splits.train[1].tolist()) == {0, 1, 2}


def test_classes_are_balanced_over_all_series() -> None:
    assert waveforms(600)[1].bincount().tolist() == [200, 200, 200]


def test_a_seed_redraws_everything_but_the_test_set() -> None:
    task = Waveforms(fresh_samples=30)

    first, again, other = task.data(1), task.data(1), task.data(2)

    assert torch.equal(first.train[0], again.train[0])
    assert not torch.equal(first.train[0], other.train[0])
    assert torch.equal(first.test[0], other.test[0])
    assert not any((series == first.train[0]).all(-1).any() for series in first.valid[0])


def test_data_leave_the_global_generators_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr]

    Waveforms(fresh_samples=30).data(0)

    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # type: ignore[index]


def test_the_network_is_the_lessons() -> None:
    net = PlainNet()

    assert sum(parameter.numel() for parameter in net.parameters()) == 17_283
    assert [name for name, _ in net.named_children()] == ["conv1", "conv2", "pool", "fc1", "fc2"]
    assert sum(isinstance(module, nn.MaxPool1d) for module in net.modules()) == 1


def test_the_network_computes_what_the_lesson_wrote() -> None:
    net, x = PlainNet(), torch.randn(4, 1, 128)

    hidden = F.max_pool1d(F.relu(F.conv1d(x, net.conv1.weight, net.conv1.bias, 2)), 2)
    hidden = F.max_pool1d(F.relu(F.conv1d(hidden, net.conv2.weight, net.conv2.bias, 2)), 2)
    hidden = F.relu(F.linear(hidden.reshape(4, 224), net.fc1.weight, net.fc1.bias))

    assert torch.equal(net(x), F.linear(hidden, net.fc2.weight, net.fc2.bias))


@pytest.mark.parametrize("length", [31, 64, 100, 300])
def test_any_length_from_the_shortest_on_fits(length: int) -> None:
    task = Waveforms(length=length, samples=15, fresh_samples=3)

    assert task.model()(task.data(0).train[0]).shape == (9, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": -1}, r"waveforms: noise must be in \[0, inf\), got -1"),
        ({"noise": float("nan")}, "noise must be"),
        ({"samples": 14}, "samples must be a whole number of at least 15, got 14"),
        ({"samples": 20.5}, "samples must be a whole number"),
        ({"length": 30}, "length must be a whole number of at least 31, got 30"),
        ({"lr": 0}, "lr must be"),
        ({"max_epochs": 0}, "max_epochs must be"),
        ({"frequencies": (5, 2)}, r"frequencies must be \(low, high\) with 0 < low <= high, got \(5, 2\)"),
        ({"frequencies": (5,)}, "frequencies must be"),
        ({"nois": 1}, "no option 'nois'.*Did you mean 'noise'"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tasks.get("waveforms", **options)


def test_an_unknown_task_is_refused_with_a_hint() -> None:
    with pytest.raises(ConfigError, match=r"task 'waveform' is unknown.*Did you mean 'waveforms'"):
        tasks.get("waveform")
