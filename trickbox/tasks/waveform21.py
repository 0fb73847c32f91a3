"""The waveform recognition problem of the CART book: 21 noisy attributes, of which the best rule misses 13 %."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from attrs import field, frozen
from torch import nn

from trickbox.study.task import Pair
from trickbox.tasks.drawn import Drawn
from trickbox.validators import integer, interval

_PLACES = np.arange(1, 22)
WAVES = np.stack([np.maximum(6 - np.abs(_PLACES - middle), 0) for middle in (11, 15, 7)]).astype(float)
"""The three triangles of which each class mixes two."""
_MIXED = np.array([(0, 1), (0, 2), (1, 2)])


def waveform21(samples: int, seed: int | tuple[int, ...] = 0) -> Pair:
    """Draw random mixtures of two of three triangles with normal noise: (samples, 21) float32 and targets int64.

    The classes come in turn; the best possible rule is right in 86.7 % of cases (by integration over
    400 000 samples; Breiman et al. 1984 say 86).

    >>> inputs, targets = waveform21(6)
    >>> inputs.shape, targets.tolist()
    (torch.Size([6, 21]), [0, 1, 2, 0, 1, 2])
    """
    generator = np.random.default_rng(seed)
    targets = np.arange(samples) % 3
    share = generator.uniform(0, 1, (samples, 1))
    first, second = WAVES[_MIXED[targets, 0]], WAVES[_MIXED[targets, 1]]
    inputs = share * first + (1 - share) * second + generator.standard_normal((samples, 21))
    return torch.from_numpy(inputs.astype(np.float32)), torch.from_numpy(targets)


@frozen
class Waveform21(Drawn):
    """Tell three mixtures of triangles apart, a table of 21 attributes; see `waveform21`.

    >>> Waveform21().draw(3, (0,))[0].shape
    torch.Size([3, 21])
    """

    name: ClassVar[str] = "waveform21"
    class_names: ClassVar[tuple[str, ...]] = ("1 and 2", "1 and 3", "2 and 3")

    samples: int = field(default=500, validator=integer(15))
    lr: float = field(default=0.003, validator=interval("(0, inf)"))
    max_epochs: int = field(default=10, validator=integer(1))
    hidden: int = field(default=64, validator=integer(1))

    def model(self) -> nn.Module:
        """Build a perceptron with two hidden layers."""
        return nn.Sequential(
            nn.Linear(21, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, 3),
        )

    def draw(self, samples: int, seed: tuple[int, ...]) -> Pair:
        """Draw samples; see `waveform21`."""
        return waveform21(samples, seed)
