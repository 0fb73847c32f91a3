"""Small models and data to test tricks on: a few milliseconds a run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trickbox.streams import derive, forked


class TinyNet(nn.Module):
    """A small convolutional net with everything that naive tools miss: functional ReLU, one pool used twice, an
    inline flatten, and a dropout of its own.

    Shapes: (N, 2, 24) to (N, 3).
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(2, 4, 3, padding=1)
        self.conv2 = nn.Conv1d(4, 4, 3, padding=1)
        self.pool = nn.MaxPool1d(2)
        self.fc1 = nn.Linear(24, 24)
        self.own_dropout = nn.Dropout(0.1)
        self.fc2 = nn.Linear(24, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.pool(F.relu(self.conv1(inputs)))
        hidden = self.pool(F.relu(self.conv2(hidden)))
        return self.fc2(self.own_dropout(F.relu(self.fc1(hidden.flatten(1)))))  # type: ignore[no-any-return]


class Bare(nn.Module):
    """A model without any layer: one factor for each class. Shapes: (N, 2, 24) to (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(3))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.sum((1, 2))[:, None] * self.factor


def tiny_model(seed: int = 0) -> nn.Module:
    """A `TinyNet` whose weights are a function of *seed*."""
    with forked(derive(seed, "init")):
        return TinyNet()


def tiny_data(samples: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Series of three learnable classes: float32 (N, 2, 24) and int64 (N,)."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(samples) % 3
    time = torch.linspace(0, 1, 24)
    waves = torch.sin(2 * torch.pi * (1.0 + 2.0 * targets[:, None]) * time)
    inputs = torch.stack([waves, -waves], 1) + 0.3 * torch.randn(samples, 2, 24, generator=generator)
    return inputs, targets
