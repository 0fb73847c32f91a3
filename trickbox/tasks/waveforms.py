"""The lesson's task: tell a sine from a triangle from a square wave, with the lesson's plain convolutional network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from attrs import field, frozen
from numpy.typing import NDArray
from torch import Tensor, nn

from trickbox.errors import ConfigError
from trickbox.study.task import Pair
from trickbox.tasks.drawn import Drawn
from trickbox.validators import integer, interval

__all__ = ["PlainNet", "Waveforms", "waveforms"]

CLASS_NAMES = ("sine", "triangle", "square")
SHORTEST = 31  # the shortest series of which the two convolutions and two poolings leave anything


def shapes(angle: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Turn angles in radians into the three waves of amplitude 1: sine, triangle (starts at -1), square (starts at +1).

    >>> [round(float(wave), 3) for wave in shapes(np.array(np.pi / 2))]
    [1.0, 0.0, 1.0]
    """
    turns = angle / (2 * np.pi) % 1.0
    return np.sin(angle), 1.0 - 2.0 * np.abs(2.0 * turns - 1.0), np.where(turns < 0.5, 1.0, -1.0)


def waveforms(
    samples: int,
    *,
    length: int = 128,
    noise: float = 0.05,
    frequencies: Sequence[float] = (1.0, 10.0),
    seed: int | tuple[int, ...] = 0,
) -> Pair:
    """Draw noisy waves over one second: inputs (samples, 1, length) float32 and targets int64, the classes in turn.

    Frequency is uniform in *frequencies* (Hz), amplitude in 0.5..1.5, phase in 0..2 pi; *noise* is the standard
    deviation of the Gaussian noise. A pure function of its arguments: about 0.1 s for 5 000 series.

    >>> inputs, targets = waveforms(6, length=64)
    >>> inputs.shape, targets.tolist()
    (torch.Size([6, 1, 64]), [0, 1, 2, 0, 1, 2])
    """
    generator = np.random.default_rng(seed)
    frequency, amplitude, phase = (
        generator.uniform(low, high, (samples, 1)) for low, high in (frequencies, (0.5, 1.5), (0.0, 2 * np.pi))
    )
    targets = np.arange(samples) % len(CLASS_NAMES)
    angle = 2 * np.pi * frequency * np.arange(length) / length + phase
    clean = amplitude * np.choose(targets[:, None], shapes(angle))
    inputs = clean + noise * generator.standard_normal((samples, length))
    return torch.from_numpy(inputs.astype(np.float32)[:, None]), torch.from_numpy(targets)


class PlainNet(nn.Module):
    """The lesson's network, written as anyone would: functional ReLU, one pool used twice, an inline flatten.

    >>> sum(parameter.numel() for parameter in PlainNet().parameters())
    17283
    """

    def __init__(self, length: int = 128, classes: int = len(CLASS_NAMES)) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(1, 16, 5, stride=2)
        self.conv2 = nn.Conv1d(16, 32, 5, stride=2)
        self.pool = nn.MaxPool1d(2)
        width = length
        for _ in (self.conv1, self.conv2):
            width = ((width - 5) // 2 + 1) // 2
        self.fc1 = nn.Linear(32 * width, 64)
        self.fc2 = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map series (N, 1, length) to logits (N, classes)."""
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = x.flatten(1)
        x = F.relu(self.fc1(x))
        logits: Tensor = self.fc2(x)
        return logits


def _pair(value: Iterable[float]) -> tuple[float, ...]:
    return tuple(value)


def _rising(task: Any, attribute: Any, value: Any) -> None:
    if len(value) != 2 or not 0 < value[0] <= value[1] < math.inf:
        raise ConfigError(f"{task.name}: {attribute.name} must be (low, high) with 0 < low <= high, got {value!r}")


@frozen
class Waveforms(Drawn):
    """Tell sine, triangle and square waves apart.

    Series of *length* points, noise in standard deviations, frequencies in Hz; the rest as in `Drawn`. The defaults are
    the lesson's. At noise 0.05 little is left to gain: 0.3 gives tricks room.

    >>> splits = Waveforms().data(seed=0)
    >>> [len(part[1]) for part in (splits.train, splits.valid, splits.comparison, splits.test)]
    [360, 120, 5000, 5000]
    """

    name: ClassVar[str] = "waveforms"
    class_names: ClassVar[tuple[str, ...]] = CLASS_NAMES

    length: int = field(default=128, validator=integer(SHORTEST))
    noise: float = field(default=0.05, validator=interval("[0, inf)"))
    frequencies: tuple[float, ...] = field(default=(1.0, 10.0), converter=_pair, validator=_rising)

    def model(self) -> nn.Module:
        """Build the lesson's plain network."""
        return PlainNet(self.length)

    def draw(self, samples: int, seed: tuple[int, ...]) -> Pair:
        """Draw noisy waves; see `waveforms`."""
        return waveforms(samples, length=self.length, noise=self.noise, frequencies=self.frequencies, seed=seed)
