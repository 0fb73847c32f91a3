"""Small models and data to test tricks on: a few milliseconds a run."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trickbox.errors import NoEffectError
from trickbox.loops import explain
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


class TinyResNet(TinyNet):
    """The same net with a norm behind each convolution, and with a shortcut around the second one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm1d(4)
        self.norm2 = nn.BatchNorm1d(4)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.pool(F.relu(self.norm1(self.conv1(inputs))))
        hidden = self.pool(F.relu(hidden + self.norm2(self.conv2(hidden))))
        return self.fc2(self.own_dropout(F.relu(self.fc1(hidden.flatten(1)))))  # type: ignore[no-any-return]


class TinyTransformer(TinyNet):
    """The same net with an attention between its convolutions. Shapes: (N, 2, 24) to (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.qkv = nn.Linear(4, 12)
        self.proj = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.pool(F.relu(self.conv1(inputs))).transpose(1, 2)
        q, k, v = self.qkv(self.norm(hidden)).chunk(3, -1)
        hidden = (hidden + self.proj(F.scaled_dot_product_attention(q, k, v))).transpose(1, 2)
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


TINY = (TinyNet, TinyResNet, TinyTransformer)
"""The nets on which a trick is checked: the first on which it acts."""


def tiny_model_for(*tricks: Any) -> nn.Module:
    """The first of `TINY` on which all *tricks* act: some need norms or shortcuts of the model's own.

    >>> from trickbox import get
    >>> type(tiny_model_for(get("dropout")())).__name__, type(tiny_model_for(get("convert_norm")("rms_norm"))).__name__
    ('TinyNet', 'TinyResNet')
    """
    for kind in TINY:
        with forked(derive(0, "init")), contextlib.suppress(NoEffectError):
            explain(model := kind(), tiny_data()[0], tricks)
            return model
    return tiny_model()


def tiny_data(samples: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Series of three learnable classes: float32 (N, 2, 24) and int64 (N,)."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(samples) % 3
    time = torch.linspace(0, 1, 24)
    waves = torch.sin(2 * torch.pi * (1.0 + 2.0 * targets[:, None]) * time)
    inputs = torch.stack([waves, -waves], 1) + 0.3 * torch.randn(samples, 2, 24, generator=generator)
    return inputs, targets
