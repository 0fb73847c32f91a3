"""What tasks share that draw their own samples: as many as one likes, so that small differences can be told apart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from attrs import field, frozen
from torch import nn

from trickbox.study.task import ACCURACY, Metric, Pair, Splits
from trickbox.validators import integer, interval

_COMPARISON_STREAM = 0xC0DE  # both sets are facts of the task, the same for every seed
_TEST_STREAM = 0x7E57


@frozen
class Drawn:
    """Tell classes apart, with samples that a subclass draws.

    *samples* labeled ones are redrawn for each seed and split 60/20/20; the last 20 % stay unused: arms are compared on
    *fresh_samples* fresh ones, and the test set are as many others, the same for every seed.
    """

    metric: ClassVar[Metric] = ACCURACY

    samples: int = field(default=600, validator=integer(15))
    lr: float = field(default=0.01, validator=interval("(0, inf)"))
    max_epochs: int = field(default=15, validator=integer(1))
    batch_size: int = field(default=32, validator=integer(1))
    fresh_samples: int = field(default=5000, validator=integer(3))

    @property
    def loss(self) -> nn.Module:
        """Cross-entropy of logits against class numbers."""
        return nn.CrossEntropyLoss()

    def draw(self, samples: int, seed: tuple[int, ...]) -> Pair:
        """Draw labeled samples, the classes in turn, as a pure function of the settings and *seed*."""
        raise NotImplementedError

    def data(self, seed: int) -> Splits:
        """Draw and split the samples of *seed*; large sets take the place of the last 20 %."""
        inputs, targets = self.draw(self.samples, (seed, 0))
        order = torch.from_numpy(np.random.default_rng((seed, 1)).permutation(self.samples))
        train, valid, _ = order.tensor_split([self.samples * 3 // 5, self.samples * 4 // 5])
        comparison, test = (self.draw(self.fresh_samples, (stream,)) for stream in (_COMPARISON_STREAM, _TEST_STREAM))
        return Splits((inputs[train], targets[train]), (inputs[valid], targets[valid]), test, comparison)

    def optimizer(self, parameters: Iterable[Any]) -> torch.optim.Optimizer:
        """Build Adam at the task's learning rate."""
        return torch.optim.Adam(parameters, lr=self.lr)
