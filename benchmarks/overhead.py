"""What does trickbox cost? The lesson's training job, six ways, in turns of one epoch each.

    notebook    DataLoader, ``.item()`` each step: the loop that people write
    by hand     resident tensors, fused Adam, no sync in a step: the best loop that can be written by hand
    attached    the loop of `by hand`, with trickbox.attach and the lines that it needs
    tensors     the loop of trickbox.fit on the same tensors, same optimizer as `by hand`
    idle        the same with eight idle tricks
    loader      the loop of trickbox.fit on the DataLoader, same optimizer as `notebook`

360 series, batch 32, Adam, 15 epochs, validation of 120 series in each epoch. Every ratio is taken in a sandwich: two
runs of what an arm is compared with and one of the arm between them, all three in turns of an epoch, so that a machine
that gets slower or faster disturbs it least. A block is such a run of 15 epochs, and its ratio the median of theirs;
the median over blocks is printed with its quartiles. `by hand` against itself is the noise floor. What happens once,
before the first epoch, is shown apart. Final weights must be equal bit for bit.

    python benchmarks/overhead.py [BLOCKS]
"""

from __future__ import annotations

import copy
import gc
import platform
import sys
import time
from collections.abc import Callable, Iterator
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
STEPS = -(-len(TARGETS) // BATCH)
LOSS = nn.CrossEntropyLoss()
ADAM = partial(torch.optim.Adam, lr=0.01)
FUSED = partial(torch.optim.Adam, lr=0.01, fused=True)


def loaders() -> tuple[DataLoader[tuple[Tensor, ...]], DataLoader[tuple[Tensor, ...]]]:
    train = DataLoader(TensorDataset(*DATA.train), batch_size=BATCH, shuffle=True, generator=torch.Generator())
    return train, DataLoader(TensorDataset(*DATA.valid), batch_size=BATCH)


def notebook(model: nn.Module) -> Iterator[None]:
    train, valid = loaders()
    optimizer = ADAM(model.parameters())
    yield
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
        yield


def by_hand(model: nn.Module) -> Iterator[None]:
    optimizer = FUSED(model.parameters())
    yield
    for epoch in range(EPOCHS):
        one_epoch(model, optimizer, epoch)
        yield


def attached(model: nn.Module) -> Iterator[None]:
    run = tb.attach(model, [], INPUTS[:BATCH], epochs=EPOCHS, steps_per_epoch=STEPS)
    optimizer = run.watch(FUSED(model.parameters()))
    yield
    for epoch in range(EPOCHS):
        val_loss = one_epoch(model, optimizer, epoch)
        if run.epoch_end(val_loss=val_loss):
            break
        yield
    run.close()


def one_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> float:
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
        numbers: list[float] = torch.stack([*losses, correct, LOSS(outputs, VALID_TARGETS), valid_correct]).tolist()
    return numbers[-2]


def with_tensors(model: nn.Module, tricks: tuple[object, ...] = ()) -> Iterator[None]:
    return fit(model, DATA.train, DATA.valid, FUSED, tricks)


def with_idle_tricks(model: nn.Module) -> Iterator[None]:
    return with_tensors(model, tuple((f"idle{number}", "placebo") for number in range(8)))


def with_loader(model: nn.Module) -> Iterator[None]:
    return fit(model, *loaders(), ADAM, ())


def fit(model: nn.Module, train: object, valid: object, optimizer: Any, tricks: object) -> Iterator[None]:
    """The loop of `trickbox.fit`, which stops after each epoch, its tail and the start of the next included."""
    session = tb.Session(
        model, train, valid, loss=LOSS, optimizer=optimizer, tricks=tricks, max_epochs=EPOCHS, batch_size=BATCH,
        device="cpu",
    )  # fmt: skip
    with session:
        epochs = session.epochs()
        next(epochs)
        yield
        for _ in range(EPOCHS):
            for batch in session.batches():
                session.step(batch)
            next(epochs, None)
            yield


ARMS: dict[str, Callable[[nn.Module], Iterator[None]]] = {
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
    ("notebook", "notebook", "noise floor"),
    ("tensors", "notebook", ""),
    ("loader", "notebook", "aim: at most 1.00"),
)


class Run:
    """One run of an arm on a copy of a model, an epoch at a time; what it does before the first is timed apart."""

    def __init__(self, start: nn.Module, arm: str) -> None:
        # Where tensors lie in memory is worth a percent, so every run lies elsewhere.
        self._spread = [torch.empty(int(size)) for size in np.random.default_rng().integers(1, 1 << 14, 32)]
        self.model = copy.deepcopy(start)
        self.seconds: list[float] = []
        """Of each epoch."""
        began = time.perf_counter()
        self._epochs = ARMS[arm](self.model)
        next(self._epochs)
        self.opening = time.perf_counter() - began

    def advance(self) -> None:
        began = time.perf_counter()
        next(self._epochs)
        self.seconds.append(time.perf_counter() - began)

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


def together(start: nn.Module, *arms: str) -> list[Run]:
    """Runs of several arms, in turns of an epoch."""
    gc.collect()
    runs = [Run(start, arm) for arm in arms]
    for _ in range(EPOCHS):
        for run in runs:
            run.advance()
    return runs


def main(blocks: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    start = PlainNet()
    weights = {name: together(start, name)[0].weights() for name in ARMS}
    pairs = (("attached", "by hand"), ("tensors", "by hand"), ("idle", "by hand"), ("loader", "notebook"))
    for name, like in pairs:
        same = "equal" if torch.equal(weights[name], weights[like]) else "NOT EQUAL"
        print(f"final weights of {name} and {like}: {same}, bit for bit")
    found: dict[str, list[Run]] = {name: [] for name in ARMS}
    ratios: dict[tuple[str, str], list[float]] = {(name, like): [] for name, like, _ in RATIOS}
    for _ in range(blocks):
        for name, like, _ in RATIOS:
            before, middle, after = together(start, like, name, like)
            epochs = zip(before.seconds, middle.seconds, after.seconds, strict=True)
            ratios[name, like].append(float(np.median([2 * mine / (one + other) for one, mine, other in epochs])))
            found[name].append(middle)
    print(f"\n{blocks} blocks, 1 thread, {platform.machine()}, torch {torch.__version__}\n")
    for name, runs in found.items():
        step = np.median([run.seconds for run in runs]) * 1e6 / STEPS
        opening = np.median([run.opening for run in runs]) * 1e3
        print(f"{name:<9} {step:7.1f} microseconds a step, validation included; {opening:5.2f} ms before the first")
    print()
    for name, like, aim in RATIOS:
        low, middle, high = np.percentile(ratios[name, like], (25, 50, 75))
        print(f"{name:>8} / {like:<8}  {middle:.3f}  ({low:.3f} to {high:.3f})  {aim}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
