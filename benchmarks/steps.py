"""What does a trick on a model cost in every step? Each next to the same net with the trick written into it.

A step is a forward, a loss and a backward in training mode. The nets are small, so that what is measured is the way to
the trick and not its arithmetic: the lesson's network, a residual net of 16 x 16 images, a GPT of four blocks, an LSTM
of two layers. Every ratio is taken in a sandwich: the written net, the tricked one, the written one again, a few steps
each; the median over many sandwiches is printed with its quartiles. The written net against itself is the noise floor.
The aim is at most 1.03.

    python benchmarks/steps.py [SANDWICHES]
"""

from __future__ import annotations

import copy
import math
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trickbox as tb
from trickbox.tasks.waveforms import PlainNet

STEPS = 4


class WrittenNet(PlainNet):
    """The lesson's network with a place behind each layer but the last."""

    def __init__(self, *behind: nn.Module) -> None:
        super().__init__()
        self.one, self.two, self.three = behind

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.one(self.conv1(x))))
        x = self.pool(F.relu(self.two(self.conv2(x))))
        return self.fc2(F.relu(self.three(self.fc1(x.view(x.shape[0], -1)))))


class RowDropout(nn.Module):
    """Stochastic depth as torchvision writes it."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return x * torch.empty(x.shape[0], 1, 1, 1).bernoulli_(1 - self.p).div_(1 - self.p)


class Scale(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full(shape, 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class Block(nn.Module):
    """Two convolutions around which the input is added; `end` is a place on the branch."""

    def __init__(self, end: nn.Module | None) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(x + (y if self.end is None else self.end(y)))


def resnet(ends: list[nn.Module | None]) -> nn.Module:
    blocks = [Block(end) for end in ends]
    return nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


class Attention(nn.Module):
    """Causal attention; `dropout` is that of its probabilities, `norms` those of queries and keys."""

    def __init__(self, dropout: float, norms: bool) -> None:
        super().__init__()
        self.qkv, self.proj, self.p = nn.Linear(64, 192), nn.Linear(64, 64), dropout
        self.q_norm, self.k_norm = (nn.LayerNorm(16) if norms else nn.Identity() for _ in range(2))
        self.norms = norms

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 16)).transpose(1, 3).unbind(2)
        if self.norms:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.p and self.training:
            scores = q @ k.transpose(-2, -1) * (1 / math.sqrt(16))
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
            made = F.dropout(scores.masked_fill(~mask, -math.inf).softmax(-1), self.p) @ v
        else:
            made = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(made.transpose(1, 2).flatten(2))


class GPTBlock(nn.Module):
    def __init__(self, dropout: float = 0.0, norms: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attn = nn.LayerNorm(64), nn.LayerNorm(64), Attention(dropout, norms)
        self.fc1, self.fc2 = nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


def gpt(**settings: Any) -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), *(GPTBlock(**settings) for _ in range(4)), nn.Linear(64, 10))


class Recurrent(nn.Module):
    """Two LSTM layers with one mask for all times behind each."""

    def __init__(self, p: float) -> None:
        super().__init__()
        sizes = (16, 32) if p else (16,)
        self.layers = nn.ModuleList(nn.LSTM(n, 32, 1 if p else 2, batch_first=True) for n in sizes)
        self.head, self.p = nn.Linear(32, 10), p

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)[0]
            if self.p and self.training:
                x = x * x.new_empty(x.shape[0], 1, x.shape[2]).bernoulli_(1 - self.p).div_(1 - self.p)
        return self.head(x)


SERIES, IMAGES = (32, 1, 128), (16, 3, 32, 32)
TOKENS, STEPS_OF_TIME = (8, 48, 64), (16, 20, 16)
CASES: list[tuple[str, Callable[[], nn.Module], Callable[[], nn.Module], tuple[int, ...], Any]] = [
    ("dropout", lambda: WrittenNet(*(nn.Dropout(0.2) for _ in range(3))), PlainNet, SERIES, tb.get("dropout")(0.2)),
    (
        "channel dropout",
        lambda: WrittenNet(nn.Dropout1d(0.2), nn.Dropout1d(0.2), nn.Dropout(0.2)),
        PlainNet,
        SERIES,
        tb.get("dropout")(0.2, kind="channel"),
    ),
    (
        "batch norm",
        lambda: WrittenNet(nn.BatchNorm1d(16), nn.BatchNorm1d(32), nn.Identity()),
        PlainNet,
        SERIES,
        tb.get("batch_norm")(),
    ),
    (
        "group norm",
        lambda: WrittenNet(nn.GroupNorm(4, 16), nn.GroupNorm(8, 32), nn.Identity()),
        PlainNet,
        SERIES,
        tb.get("group_norm")(),
    ),
    (
        "stochastic depth",
        lambda: resnet([RowDropout(0.2) for _ in range(4)]),
        lambda: resnet([None] * 4),
        IMAGES,
        tb.get("stochastic_depth")(0.2, rule="constant"),
    ),
    (
        "layer scale",
        lambda: resnet([Scale(16, 1, 1) for _ in range(4)]),
        lambda: resnet([None] * 4),
        IMAGES,
        tb.get("layer_scale")(0.1),
    ),
    (
        "attention dropout",
        lambda: gpt(dropout=0.2),
        gpt,
        TOKENS,
        tb.get("dropout")(0.2, where="attention"),
    ),
    ("QK norm", lambda: gpt(norms=True), gpt, TOKENS, tb.get("qk_norm")()),
    ("dropout in an LSTM", lambda: Recurrent(0.2), lambda: Recurrent(0.0), STEPS_OF_TIME, tb.get("dropout")(0.2)),
]


def steps(model: nn.Module, inputs: Tensor) -> float:
    """The seconds of a few steps."""
    began = time.perf_counter()
    for _ in range(STEPS):
        model(inputs).square().mean().backward()
    return time.perf_counter() - began


def ratios(written: nn.Module, tricked: nn.Module, inputs: Tensor, sandwiches: int) -> np.ndarray:
    for model in (written, tricked):
        model.train()
        steps(model, inputs)
    found = []
    for _ in range(sandwiches):
        first, inside, last = (steps(model, inputs) for model in (written, tricked, written))
        found.append(2 * inside / (first + last))
    return np.array(found)


def shown(found: np.ndarray) -> str:
    low, middle, high = np.quantile(found, [0.25, 0.5, 0.75])
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    sandwiches = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    torch.set_num_threads(1)
    print(f"{sandwiches} sandwiches of {STEPS} steps, 1 thread, {platform.machine()}, torch {torch.__version__}\n")
    print(f"{'trick':<20} {'tricked / written':<26} written / written")
    for name, write, build, shape, trick in CASES:
        torch.manual_seed(0)
        written, inputs = write(), torch.randn(shape)
        tricked = tb.apply(build(), [trick], inputs)
        parameters = [sum(p.numel() for p in model.parameters()) for model in (written, tricked)]
        assert parameters[0] == parameters[1] or "LSTM" in name, (name, parameters)
        floor = ratios(written, copy.deepcopy(written), inputs, sandwiches)
        print(f"{name:<20} {shown(ratios(written, tricked, inputs, sandwiches)):<26} {shown(floor)}")


if __name__ == "__main__":
    main()
