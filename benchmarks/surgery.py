"""What does it cost to put tricks on a model? Time and memory of opening, as multiples of one forward.

Chains of 25 to 400 linear layers, a residual net of the size of ResNet-50 and a transformer of the size of ViT-B, at
random weights on the CPU. Opening records two forwards and tries the edited model out in two more; the aim is at most
4 forwards without gradients in time, and 1.3 times the memory of one, whatever the depth and the number of edits.
Memory is the highest sum of living tensors' storage that is allocated while it runs, beside what the model holds.

    python benchmarks/surgery.py
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import trickbox as tb
from trickbox.surgery import evaluating


class Bottleneck(nn.Module):
    """Three convolutions around which the input is added."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        projected = stride > 1 or channels != out
        projection = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.downsample = projection if projected else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn3(self.conv3(self.bn2(self.conv2(y)).relu()))
        return (y + self.downsample(x)).relu()


def resnet_50() -> nn.Module:
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    channels = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            layers.append(Bottleneck(channels, 64 << stage, 2 if stage and not block else 1))
            channels = 4 * (64 << stage)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


class Block(nn.Module):
    """Attention and two layers, each added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 12, -1)).transpose(1, 3).unbind(2)
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


def vit_b() -> nn.Module:
    return nn.Sequential(nn.Linear(768, 768), *(Block(768) for _ in range(12)), nn.LayerNorm(768), nn.Linear(768, 1000))


def chain(depth: int) -> nn.Module:
    return nn.Sequential(
        *(layer for _ in range(depth) for layer in (nn.Linear(256, 256), nn.ReLU())), nn.Linear(256, 10)
    )


CASES: list[tuple[str, Callable[[], nn.Module], tuple[int, ...], list[Any]]] = [
    *(
        (f"chain of {depth}", lambda depth=depth: chain(depth), (64, 256), ["dropout", "layer_norm"])
        for depth in (25, 100, 400)
    ),  # type: ignore[misc]
    ("ResNet-50 size", resnet_50, (8, 3, 224, 224), ["group_norm"]),
    ("ResNet-50 size", resnet_50, (8, 3, 224, 224), ["dropout"]),
    ("ViT-B size", vit_b, (4, 197, 768), ["dropout"]),
]


def seconds(run: Callable[[], object], times: int = 5) -> float:
    found = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return float(np.median(found))


def memory(run: Callable[[], object]) -> int:
    """The highest number of bytes that tensors hold at once while *run* runs, beyond what they held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"1 thread, {platform.machine()}, torch {torch.__version__}\n")
    for name, build, shape, tricks in CASES:
        model, inputs = build(), torch.randn(shape)

        def forward(model: nn.Module = model, inputs: Tensor = inputs) -> None:
            with torch.no_grad(), evaluating(model):
                model(inputs)

        def opening(model: nn.Module = model, inputs: Tensor = inputs, tricks: list[Any] = tricks) -> None:
            tb.apply(model, tricks, inputs)
            tb.undo(model)

        forward()
        opening()
        once = seconds(forward)
        time_ratio, memory_ratio = seconds(opening, 3) / once, memory(opening) / memory(forward)
        print(
            f"{name:<15} {' and '.join(tricks):<24} {time_ratio:5.2f} forwards of {once * 1e3:7.1f} ms, "
            f"{memory_ratio:5.2f} times the memory of one"
        )


if __name__ == "__main__":
    main()
