"""Three classic tasks of time series, drawn by their published formulas: CBF, SyntheticControl and TwoPatterns."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from attrs import field, frozen
from numpy.typing import NDArray
from torch import nn

from trickbox.study.task import Pair
from trickbox.tasks.drawn import Drawn
from trickbox.tasks.waveforms import PlainNet
from trickbox.validators import integer, interval

Array = NDArray[np.float64]


def _as_pair(series: Array, targets: NDArray[np.int64]) -> Pair:
    return torch.from_numpy(series.astype(np.float32)[:, None]), torch.from_numpy(targets)


def cbf(samples: int, noise: float = 1.0, seed: int | tuple[int, ...] = 0) -> Pair:
    """Draw cylinders, bells and funnels of 128 points: (samples, 1, 128) float32 and targets int64, in turn.

    A plateau, a rise or a fall of height 6 and a normal deviation, from a whole number of 16 to 32 on, for 32 to 96
    points, with normal noise (Saito 1994).

    >>> inputs, targets = cbf(6)
    >>> inputs.shape, targets.tolist()
    (torch.Size([6, 1, 128]), [0, 1, 2, 0, 1, 2])
    """
    generator = np.random.default_rng(seed)
    start = generator.integers(16, 33, (samples, 1))
    duration = generator.integers(32, 97, (samples, 1))
    height = 6.0 + generator.standard_normal((samples, 1))
    targets = np.arange(samples) % 3
    time = np.arange(1, 129)[None]
    inside = (time >= start) & (time <= start + duration)
    rise = (time - start) / duration
    shape = np.choose(targets[:, None], (np.ones_like(rise), rise, 1.0 - rise))
    return _as_pair(height * inside * shape + noise * generator.standard_normal((samples, 128)), targets)


def synthetic_control(samples: int, noise: float = 1.0, seed: int | tuple[int, ...] = 0) -> Pair:
    """Draw six kinds of control charts of 60 points, each with mean 0 and deviation 1: (samples, 1, 60) float32.

    Normal, cyclic, increasing, decreasing, shifted upward and downward, around 30 with uniform noise of 3 deviations of
    2 to either side (Alcock & Manolopoulos 1999). *noise* multiplies that noise.

    >>> inputs, targets = synthetic_control(6)
    >>> inputs.shape, targets.tolist()
    (torch.Size([6, 1, 60]), [0, 1, 2, 3, 4, 5])
    """
    generator = np.random.default_rng(seed)
    targets, time = np.arange(samples) % 6, np.arange(1, 61)[None]
    amplitude, period = generator.uniform(10, 15, (2, samples, 1))
    slope = generator.uniform(0.2, 0.5, (samples, 1))
    shift = generator.uniform(7.5, 20, (samples, 1)) * (time >= generator.uniform(20, 40, (samples, 1)))
    cycle = amplitude * np.sin(2 * np.pi * time / period)
    trends = (np.zeros_like(cycle), cycle, slope * time, -slope * time, shift, -shift)
    series = 30.0 + np.choose(targets[:, None], trends) + noise * 2.0 * generator.uniform(-3, 3, (samples, 60))
    series = (series - series.mean(1, keepdims=True)) / series.std(1, keepdims=True)
    return _as_pair(series, targets)


def two_patterns(samples: int, noise: float = 1.0, seed: int | tuple[int, ...] = 0) -> Pair:
    """Draw series of 128 points with two steps, each up or down: (samples, 1, 128) float32, four classes in turn.

    A step goes from -5 to 5, or back, within 16 to 40 points; the first lies in the first half, the second in the
    other, and normal noise everywhere (after Geurts 2002).

    >>> inputs, targets = two_patterns(4)
    >>> inputs.shape, targets.tolist()
    (torch.Size([4, 1, 128]), [0, 1, 2, 3])
    """
    generator = np.random.default_rng(seed)
    targets, time = np.arange(samples) % 4, np.arange(128)[None]
    series = noise * generator.standard_normal((samples, 128))
    for half, is_down in enumerate((targets // 2, targets % 2)):
        length = generator.integers(8, 21, (samples, 1))  # of each level
        start = 64 * half + np.floor(generator.uniform(0, 1, (samples, 1)) * (64 - 2 * length))
        levels = np.where(time < start + length, -5.0, 5.0) * (1 - 2 * is_down[:, None])
        series += levels * ((time >= start) & (time < start + 2 * length))
    return _as_pair(series, targets)


@frozen
class CBF(Drawn):
    """Tell cylinders, bells and funnels apart, with twice the published noise; see `cbf`.

    >>> CBF().draw(3, (0,))[0].shape
    torch.Size([3, 1, 128])
    """

    name: ClassVar[str] = "cbf"
    class_names: ClassVar[tuple[str, ...]] = ("cylinder", "bell", "funnel")

    samples: int = field(default=100, validator=integer(15))
    max_epochs: int = field(default=30, validator=integer(1))
    noise: float = field(default=2.0, validator=interval("[0, inf)"))

    def model(self) -> nn.Module:
        """Build the lesson's plain network."""
        return PlainNet(128, len(self.class_names))

    def draw(self, samples: int, seed: tuple[int, ...]) -> Pair:
        """Draw series; see `cbf`."""
        return cbf(samples, self.noise, seed)


@frozen
class SyntheticControl(Drawn):
    """Tell six kinds of control charts apart, with half as much noise again as published; see `synthetic_control`.

    >>> SyntheticControl().draw(6, (0,))[0].shape
    torch.Size([6, 1, 60])
    """

    name: ClassVar[str] = "synthetic_control"
    class_names: ClassVar[tuple[str, ...]] = ("normal", "cyclic", "increasing", "decreasing", "upward", "downward")

    samples: int = field(default=200, validator=integer(15))
    max_epochs: int = field(default=30, validator=integer(1))
    noise: float = field(default=1.5, validator=interval("[0, inf)"))

    def model(self) -> nn.Module:
        """Build the lesson's plain network."""
        return PlainNet(60, len(self.class_names))

    def draw(self, samples: int, seed: tuple[int, ...]) -> Pair:
        """Draw series; see `synthetic_control`."""
        return synthetic_control(samples, self.noise, seed)


@frozen
class TwoPatterns(Drawn):
    """Tell the four orders of two steps apart, with three times the published noise; see `two_patterns`.

    >>> TwoPatterns().draw(4, (0,))[0].shape
    torch.Size([4, 1, 128])
    """

    name: ClassVar[str] = "two_patterns"
    class_names: ClassVar[tuple[str, ...]] = ("up, up", "up, down", "down, up", "down, down")

    samples: int = field(default=300, validator=integer(15))
    noise: float = field(default=3.0, validator=interval("[0, inf)"))

    def model(self) -> nn.Module:
        """Build the lesson's plain network."""
        return PlainNet(128, len(self.class_names))

    def draw(self, samples: int, seed: tuple[int, ...]) -> Pair:
        """Draw series; see `two_patterns`."""
        return two_patterns(samples, self.noise, seed)
