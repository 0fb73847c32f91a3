"""What does trickbox cost? The lesson's training job, six ways, interleaved in one process.

    notebook    DataLoader, ``.item()`` each step: the loop that people write
    by hand     resident tensors, fused Adam, no sync in a step: the best loop that can be written by hand
    attached    the loop of `by hand`, with trickbox.attach and the four lines that it needs
    tensors     trickbox.fit on the same tensors, same optimizer as `by hand`
    idle        the same with eight idle tricks
    loader      trickbox.fit on the DataLoader, same optimizer as `notebook`

360 series, batch 32, Adam, 15 epochs, validation of 120 series in each epoch. Every ratio is taken in a sandwich: the
arm between two runs of what it is compared with, so that a machine that gets slower or faster disturbs it least. The
median over blocks is printed with its quartiles. `by hand` against itself is the noise floor. Final weights must be
equal bit for bit.

    python benchmarks/overhead.py [BLOCKS]
"""

from __future__ import annotations

import copy
import gc
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import trickbox as tb
from trickbox.authoring import derive
from trickbox.tasks.waveforms import PlainNet, Waveforms

EPOCHS, BATCH = 15, 32
DATA = Waveforms().data(seed=0)
(INPUTS, TARGETS), (VALID_INPUTS, VALID_TARGETS) = DATA.train, DATA.valid
LOSS = nn.CrossEntropyLoss()
ADAM = partial(torch.optim.Adam, lr=0.01)
FUSED = partial(torch.optim.Adam, lr=0.01, fused=True)


def loaders() -> tuple[DataLoader[tuple[Tensor, ...]], DataLoader[tuple[Tensor, ...]]]:
    train = DataLoader(TensorDataset(*DATA.train), batch_size=BATCH, shuffle=True, generator=torch.Generator())
    return train, DataLoader(TensorDataset(*DATA.valid), batch_size=BATCH)


def notebook(model: nn.Module) -> None:
    train, valid = loaders()
    optimizer = ADAM(model.parameters())
    for epoch in range(EPOCHS):
        train.generator.manual_seed(derive(0, "order", epoch))
        model.train()
        total, correct = 0.0, 0
        for inputs, targets in train:
            optimizer.zero_grad()
            outputs = model(inputs)
            loss = LOSS(outputs, targets)
            loss.backward()
            optimizer.step()
            total += loss.item()
            correct += (outputs.argmax(1) == targets).sum().item()
        model.eval()
        with torch.no_grad():
            for inputs, targets in valid:
                outputs = model(inputs)
                total += LOSS(outputs, targets).item()
                correct += (outputs.argmax(1) == targets).sum().item()


def by_hand(model: nn.Module, run: Any = None) -> None:
    optimizer = FUSED(model.parameters())
    if run is not None:
        run.watch(optimizer)
    for epoch in range(EPOCHS):
        order = torch.randperm(len(TARGETS), generator=torch.Generator().manual_seed(derive(0, "order", epoch)))
        model.train()
        losses, kept = [], []
        for index in order.split(BATCH):
            inputs, targets = INPUTS[index], TARGETS[index]
            outputs = model(inputs)
            loss = LOSS(outputs, targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
            kept.append(outputs.detach())
        model.eval()
        with torch.no_grad():
            outputs = model(VALID_INPUTS)
            correct = (torch.cat(kept).argmax(1) == TARGETS[order]).float().mean()
            valid_correct = (outputs.argmax(1) == VALID_TARGETS).float().mean()
            numbers = torch.stack([*losses, correct, LOSS(outputs, VALID_TARGETS), valid_correct]).tolist()
        if run is not None and run.epoch_end(val_loss=numbers[-2]):
            break
    if run is not None:
        run.close()


def attached(model: nn.Module) -> None:
    by_hand(model, tb.attach(model, [], INPUTS[:BATCH], epochs=EPOCHS, steps_per_epoch=-(-len(TARGETS) // BATCH)))


def with_tensors(model: nn.Module, tricks: tuple[object, ...] = ()) -> None:
    fit(model, DATA.train, DATA.valid, FUSED, tricks)


def with_idle_tricks(model: nn.Module) -> None:
    with_tensors(model, tuple((f"idle{number}", "placebo") for number in range(8)))


def with_loader(model: nn.Module) -> None:
    fit(model, *loaders(), ADAM, ())


def fit(model: nn.Module, train: object, valid: object, optimizer: object, tricks: object) -> None:
    tb.fit(
        model, train, valid, loss=LOSS, optimizer=optimizer, tricks=tricks, max_epochs=EPOCHS, batch_size=BATCH,
        device="cpu", progress=False,
    )  # fmt: skip


ARMS: dict[str, Callable[[nn.Module], None]] = {
    "notebook": notebook,
    "by hand": by_hand,
    "attached": attached,
    "tensors": with_tensors,
    "idle": with_idle_tricks,
    "loader": with_loader,
}
RATIOS = (
    ("by hand", "by hand", "noise floor"),
    ("attached", "by hand", "aim: at most 1.02"),
    ("tensors", "by hand", "aim: at most 1.02"),
    ("idle", "by hand", "aim: at most 1.02"),
    ("by hand", "notebook", ""),
    ("tensors", "notebook", ""),
    ("loader", "notebook", "aim: at most 1.00"),
)


def run(start: nn.Module, arm: Callable[[nn.Module], None]) -> tuple[float, Tensor]:
    model = copy.deepcopy(start)
    gc.collect()
    began = time.perf_counter()
    arm(model)
    return time.perf_counter() - began, torch.cat([p.detach().flatten() for p in model.parameters()])


def main(blocks: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    start = PlainNet()
    weights = {name: run(start, arm)[1] for name, arm in ARMS.items()}
    for name, like in (("attached", "by hand"), ("tensors", "by hand"), ("idle", "by hand"), ("loader", "notebook")):
        same = "equal" if torch.equal(weights[name], weights[like]) else "NOT EQUAL"
        print(f"final weights of {name} and {like}: {same}, bit for bit")
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    ratios: dict[tuple[str, str], list[float]] = {(name, like): [] for name, like, _ in RATIOS}
    for _ in range(blocks):
        for name, like, _ in RATIOS:
            before, middle, after = (run(start, ARMS[arm])[0] for arm in (like, name, like))
            ratios[name, like].append(2 * middle / (before + after))
            seconds[like] += [before, after]
            seconds[name].append(middle)
    steps = EPOCHS * -(-len(TARGETS) // BATCH)
    print(f"\n{blocks} blocks, 1 thread, {platform.machine()}, torch {torch.__version__}\n")
    for name, found in seconds.items():
        print(f"{name:<9} {np.median(found) * 1e6 / steps:7.1f} microseconds a step, validation included")
    print()
    for name, like, aim in RATIOS:
        low, middle, high = np.percentile(ratios[name, like], (25, 50, 75))
        print(f"{name:>8} / {like:<8}  {middle:.3f}  ({low:.3f} to {high:.3f})  {aim}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
