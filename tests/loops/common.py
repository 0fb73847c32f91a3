"""What the loops share: a small net, data, optimizers that write down the rate of each step, and a record."""

from __future__ import annotations

from typing import Any

import torch
from attrs import define, field
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from trickbox.testing import tiny_data, tiny_model

EPOCHS, STEPS = 4, 4
CRITERION = nn.CrossEntropyLoss()


@define
class Trace:
    """What one run of a loop did, as seen from outside."""

    model: nn.Module
    rates: list[float] = field(factory=list)
    losses: list[float] = field(factory=list)
    epochs: int = 0
    extra: dict[str, Any] = field(factory=dict)


class SpySGD(torch.optim.SGD):
    """Writes down the learning rate of the first group in every step."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr=lr)
        self.rates: list[float] = []

    def step(self, closure: Any = None) -> Any:
        self.rates.append(float(self.param_groups[0]["lr"]))
        return super().step(closure)


def start() -> nn.Module:
    """The net that every loop trains."""
    torch.manual_seed(0)
    model = tiny_model()
    model.own_dropout.p = 0.0
    return model


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Four batches of 16 in a seeded order, and one of 24."""
    generator = torch.Generator().manual_seed(0)
    train = DataLoader(TensorDataset(*tiny_data(64)), batch_size=16, shuffle=True, generator=generator)
    return train, DataLoader(TensorDataset(*tiny_data(24, seed=1)), batch_size=24)


def evaluate(model: nn.Module, valid: DataLoader[Any]) -> float:
    """The mean loss."""
    model.eval()
    with torch.no_grad():
        return float(sum(CRITERION(model(x), y) for x, y in valid))


def example() -> Tensor:
    """One batch of inputs."""
    return tiny_data(16)[0]
