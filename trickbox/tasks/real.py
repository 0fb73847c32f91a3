"""Two small real data sets that come with scikit-learn: images of digits, and a table of patients for regression.

Of real data there are no fresh samples: a test set is held out once and for all, and the rest is split anew for each
seed, so that the sets on which arms are compared overlap from seed to seed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor, nn

from trickbox.errors import ConfigError
from trickbox.study.task import ACCURACY, Metric, Splits
from trickbox.validators import integer, interval

_TEST_STREAM = 0x7E57


@functools.cache
def _loaded(name: str) -> tuple[Tensor, Tensor]:
    """A data set of scikit-learn. Raises `ConfigError` where that is not installed."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ConfigError(f"{name}: scikit-learn is missing; pip install 'trickbox[tasks]'") from error
    inputs, targets = getattr(datasets, f"load_{name}")(return_X_y=True)
    return torch.from_numpy(inputs.astype(np.float32)), torch.from_numpy(targets)


def split(inputs: Tensor, targets: Tensor, train: int, valid: int, test: int, seed: int) -> Splits:
    """Hold out *test* samples, the same for every seed; of the others *train* and *valid* ones, and all that is left.

    What is left is the set on which arms are compared.
    """
    held_out, rest = np.split(np.random.default_rng(_TEST_STREAM).permutation(len(targets)), [test])
    rest = rest[np.random.default_rng(seed).permutation(len(rest))]
    parts = [torch.from_numpy(part) for part in np.split(rest, [train, train + valid])]
    first, second, third = ((inputs[part], targets[part]) for part in parts)
    return Splits(first, second, (inputs[held_out], targets[held_out]), third)


class SmallConvNet(nn.Module):
    """A small convolutional network for gray images of 8 by 8 points."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.head = nn.Linear(32 * 4, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 1, 8, 8) to logits (N, classes)."""
        x = nn.functional.max_pool2d(nn.functional.relu(self.conv1(x)), 2)
        x = nn.functional.max_pool2d(nn.functional.relu(self.conv2(x)), 2)
        logits: Tensor = self.head(x.flatten(1))
        return logits


@frozen
class Digits:
    """Tell handwritten digits apart: 1 797 images of 8 by 8 points (Alpaydin & Kaynak 1998), few of them for training.

    *samples* are for training and validation, three to one; 500 are the test set; arms are compared on the rest.

    >>> splits = Digits().data(seed=0)
    >>> splits.train[0].shape, [len(part[1]) for part in (splits.valid, splits.comparison, splits.test)]
    (torch.Size([150, 1, 8, 8]), [50, 1097, 500])
    """

    name: ClassVar[str] = "digits"
    metric: ClassVar[Metric] = ACCURACY
    class_names: ClassVar[tuple[str, ...]] = tuple("0123456789")

    samples: int = field(default=200, validator=integer(40))
    lr: float = field(default=0.003, validator=interval("(0, inf)"))
    max_epochs: int = field(default=20, validator=integer(1))
    batch_size: int = field(default=16, validator=integer(1))

    @property
    def loss(self) -> nn.Module:
        """Cross-entropy of logits against class numbers."""
        return nn.CrossEntropyLoss()

    def model(self) -> nn.Module:
        """Build a small convolutional network."""
        return SmallConvNet(len(self.class_names))

    def data(self, seed: int) -> Splits:
        """Split the images of *seed*; values lie between 0 and 1."""
        images, targets = _loaded("digits")
        valid = self.samples // 4
        return split(images.reshape(-1, 1, 8, 8) / 16.0, targets, self.samples - valid, valid, 500, seed)

    def optimizer(self, parameters: Iterable[Any]) -> torch.optim.Optimizer:
        """Build Adam at the task's learning rate."""
        return torch.optim.Adam(parameters, lr=self.lr)


@frozen
class Diabetes:
    """Predict how diabetes goes on, from ten facts about each of 442 patients (Efron et al. 2004): a regression.

    Facts and outcome are scaled by what the training part knows of them, so that the loss is the share of its variance
    that is not explained. 100 patients are the test set; arms are compared on 122.

    >>> splits = Diabetes().data(seed=0)
    >>> splits.train[0].shape, [len(part[1]) for part in (splits.valid, splits.comparison, splits.test)]
    (torch.Size([170, 10]), [50, 122, 100])
    """

    name: ClassVar[str] = "diabetes"
    metric: ClassVar[Metric] = Metric("loss", higher_is_better=False, unit="% of the variance", scale=100.0, margin=1.0)
    class_names: ClassVar[tuple[str, ...]] = ()

    lr: float = field(default=0.003, validator=interval("(0, inf)"))
    max_epochs: int = field(default=30, validator=integer(1))
    batch_size: int = field(default=32, validator=integer(1))
    hidden: int = field(default=32, validator=integer(1))

    @property
    def loss(self) -> nn.Module:
        """Mean squared error."""
        return nn.MSELoss()

    def model(self) -> nn.Module:
        """Build a perceptron with two hidden layers."""
        return nn.Sequential(
            nn.Linear(10, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, 1),
        )

    def data(self, seed: int) -> Splits:
        """Split and scale the patients of *seed*."""
        facts, outcome = _loaded("diabetes")
        splits = split(facts, outcome.float()[:, None], 170, 50, 100, seed)
        (inputs, targets), test = splits.train, splits.test
        assert test is not None

        def scaled(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return (pair[0] - inputs.mean(0)) / inputs.std(0), (pair[1] - targets.mean(0)) / targets.std(0)

        return Splits(scaled(splits.train), scaled(splits.valid), scaled(test), scaled(splits.comparison))

    def optimizer(self, parameters: Iterable[Any]) -> torch.optim.Optimizer:
        """Build Adam at the task's learning rate."""
        return torch.optim.Adam(parameters, lr=self.lr)
