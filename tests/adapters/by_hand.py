"""The loop that every trainer runs, in plain torch, with each trick written into it by hand.

Nothing of trickbox is in it but the numbers that draws begin from.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attrs import define, evolve, field, frozen
from torch import Tensor, nn
from trickbox_tricks import EMA, SAM, BatchNorm, ClipGradients, Dropout, EarlyStopping, LabelSmoothing, Mixup, OneCycle
from trickbox_tricks.mixup import draw_lambda, draw_partners

from trickbox.streams import derive
from trickbox.surgery.draws import mixed
from trickbox.testing import tiny_data, tiny_model

SEED, EPOCHS, STEPS, RATE = 5, 4, 4, 0.1
TRAIN, VALID = tiny_data(64), tiny_data(24, seed=1)
BATCHES = list(zip(TRAIN[0].split(16), TRAIN[1].split(16), strict=True))


class SpySGD(torch.optim.SGD):
    """Writes down the learning rate of each step."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=RATE, momentum=0.5)
        self.rates: list[float] = []

    def step(self, closure: Any = None) -> Any:
        self.rates.append(float(self.param_groups[0]["lr"]))
        return super().step(closure)


def start() -> nn.Module:
    """The net. Its own dropout, which no two loops draw alike, is off."""
    model = tiny_model()
    model.own_dropout.p = 0.0
    return model


@define
class Trace:
    """What a training has left behind: weights, the rate of each step, the validation loss of each epoch."""

    weights: dict[str, Tensor]
    rates: list[float] = field(factory=list)
    losses: list[float] = field(factory=list)

    def must_be(self, other: Trace, bits: bool = True) -> None:
        """Fail unless *other* is the same, in its weights to the last bit, or nearly."""
        assert self.losses == pytest.approx(other.losses, rel=1e-5)
        assert self.rates == pytest.approx(other.rates, rel=1e-9)
        assert self.weights.keys() == other.weights.keys()
        for name, value in self.weights.items():
            expected = other.weights[name]
            assert torch.equal(value, expected) if bits else torch.allclose(value, expected, atol=1e-6), name


class Plain:
    """The loop, with a place for each thing that a trick does; `prefix` is where the trainer's module has the net."""

    rule: Any = None
    stops_after_the_worst_loss = False

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.net = self.model = self.measured = start()
        self.optimizer: Any = None
        self.epoch = self.batch = 0

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.model(x), y)

    def gradients(self, x: Tensor, y: Tensor) -> None:
        self.loss(x, y).backward()

    def updated(self) -> None:
        pass

    def weights(self) -> dict[str, Tensor]:
        return {f"{self.prefix}{name}": value for name, value in self.measured.state_dict().items()}

    def run(self) -> Trace:
        self.optimizer = SpySGD(self.model.parameters())
        rule = self.rule(self.optimizer) if self.rule else None
        losses: list[float] = []
        best = None
        for self.epoch in range(EPOCHS):
            self.model.train()
            for self.batch, (x, y) in enumerate(BATCHES):
                self.optimizer.zero_grad()
                self.gradients(x, y)
                self.optimizer.step()
                if rule is not None and len(self.optimizer.rates) < EPOCHS * STEPS:
                    rule.step()
                self.updated()
            self.measured.eval()
            with torch.no_grad():
                losses.append(float(F.cross_entropy(self.measured(VALID[0]), VALID[1])))
            if self.stops_after_the_worst_loss:
                if losses[-1] < max(losses):
                    self.model.load_state_dict(best)
                    break
                best = copy.deepcopy(self.model.state_dict())
        return Trace(self.weights(), self.optimizer.rates, losses)


class Dressed(nn.Module):
    """The net with batch norms behind both convolutions, then dropouts, and one in the place of the net's own."""

    def __init__(self, net: nn.Module, loop: Plain) -> None:
        super().__init__()
        self.net, self.loop = net, loop
        self.conv1, self.conv2 = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def drop(self, x: Tensor, name: str) -> Tensor:
        if not self.training:
            return x
        seed = derive(SEED, "trick:dropout", f"{self.loop.prefix}{name}")
        seed = mixed(seed, (self.loop.epoch << 28) + self.loop.batch, 0)
        return x * torch.empty_like(x).bernoulli_(0.7, generator=torch.Generator().manual_seed(seed)).div_(0.7)

    def forward(self, x: Tensor) -> Tensor:
        net = self.net
        x = net.pool(F.relu(self.drop(self.conv1(net.conv1(x)), "conv1")))
        x = net.pool(F.relu(self.drop(self.conv2(net.conv2(x)), "conv2")))
        return net.fc2(self.drop(F.relu(net.fc1(x.flatten(1))), "fc1"))


class WithLayers(Plain):
    def __init__(self, prefix: str) -> None:
        super().__init__(prefix)
        self.model = self.measured = Dressed(self.net, self)

    def weights(self) -> dict[str, Tensor]:
        named = {}
        for name, value in self.model.state_dict().items():
            part, _, rest = name.partition(".")
            named[f"{self.prefix}{rest}" if part == "net" else f"{self.prefix}{part}.trickbox.batch_norm.{rest}"] = (
                value
            )
        return named


class WithOneCycle(Plain):
    def rule(self, optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=RATE, total_steps=EPOCHS * STEPS, base_momentum=0.5 * 0.85 / 0.95, max_momentum=0.5
        )


class WithEarlyStopping(Plain):
    """The loss falls, so a run that wants it to rise stops after two epochs, with the weights of the first."""

    stops_after_the_worst_loss = True


class WithClipping(Plain):
    def gradients(self, x: Tensor, y: Tensor) -> None:
        super().gradients(x, y)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.05)


class WithAverage(Plain):
    """Validation and the end have the averages, training goes on with the weights."""

    def __init__(self, prefix: str) -> None:
        super().__init__(prefix)
        self.measured = copy.deepcopy(self.model)
        self.sums = [torch.zeros_like(weight, dtype=torch.float64) for weight in self.model.parameters()]

    def updated(self) -> None:
        decay, updates = 0.5 ** (1 / (0.3 * EPOCHS * STEPS)), len(self.optimizer.rates)
        with torch.no_grad():
            for total, weight, average in zip(
                self.sums, self.model.parameters(), self.measured.parameters(), strict=True
            ):
                total.mul_(decay).add_(weight)
                average.copy_(total * (1 - decay) / (1 - decay**updates))


class WithSharpness(Plain):
    def gradients(self, x: Tensor, y: Tensor) -> None:
        super().gradients(x, y)
        weights = list(self.model.parameters())
        norm = torch.stack([weight.grad.norm() for weight in weights]).norm()
        before = [weight.detach().clone() for weight in weights]
        with torch.no_grad():
            for weight in weights:
                weight.add_(0.1 * weight.grad / norm)
        self.optimizer.zero_grad()
        super().gradients(x, y)
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)


class WithMixup(Plain):
    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(derive(SEED, "trick:mixup", self.epoch) + self.batch)
        share = draw_lambda(0.4, generator)
        partners = draw_partners(len(x), generator)
        outputs = self.model(share * x + (1 - share) * x[partners])
        return share * F.cross_entropy(outputs, y) + (1 - share) * F.cross_entropy(outputs, y[partners])


class WithSmoothing(Plain):
    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.model(x), y, label_smoothing=0.2)


@frozen
class Case:
    """The loop with tricks written into it, the tricks, and whether both are the same to the last bit."""

    loop: type[Plain]
    made: tuple[Any, ...]
    bits: bool = True

    def tricks(self, monitor: str) -> list[Any]:
        """The tricks, looking at the metric of that name where they look at one."""
        return [evolve(trick, monitor=monitor) if hasattr(trick, "monitor") else trick for trick in self.made]


CASES = {
    "nothing": Case(Plain, ()),
    "layers": Case(WithLayers, (Dropout(0.3), BatchNorm())),
    "one_cycle": Case(WithOneCycle, (OneCycle(),), bits=False),
    "early_stopping": Case(WithEarlyStopping, (EarlyStopping(patience=1, mode="max"),)),
    "clip_gradients": Case(WithClipping, (ClipGradients(0.05),)),
    "ema": Case(WithAverage, (EMA(half_life=0.3),), bits=False),
    "sam": Case(WithSharpness, (SAM(0.1),), bits=False),
    "mixup": Case(WithMixup, (Mixup(0.4),), bits=False),
    "label_smoothing": Case(WithSmoothing, (LabelSmoothing(0.2),), bits=False),
}
