"""What guessing gives: closed forms, and runs that did no better."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from trickbox.study.guess import guess, is_guessing
from trickbox.tasks.waveforms import Waveforms


def test_the_best_constant_of_classes_knows_their_shares() -> None:
    targets = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    data = torch.zeros(100, 4), targets

    found = guess(nn.Linear(4, 3), data, data, nn.CrossEntropyLoss())

    shares = (0.6, 0.3, 0.1)
    assert found["accuracy"] == pytest.approx(0.6)
    assert found["loss"] == pytest.approx(-sum(share * math.log(share) for share in shares), abs=1e-4)


@pytest.mark.parametrize("shape", [(), (2,)])
def test_the_best_constant_of_numbers_is_their_mean(shape: tuple[int, ...]) -> None:
    targets = torch.randn(50, *shape, generator=torch.Generator().manual_seed(0)) + 3
    data = torch.zeros(50, 4), targets
    net = nn.Linear(4, 2) if shape else nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))

    found = guess(net, data, data, nn.MSELoss())

    assert found == {"loss": pytest.approx(targets.var(0, correction=0).mean().item(), rel=1e-4)}


def test_several_labels_have_a_best_constant_too() -> None:
    targets = (torch.arange(40)[:, None] % torch.tensor([2, 4]) == 0).float()
    data = torch.zeros(40, 4), targets

    found = guess(nn.Linear(4, 2), data, data, nn.BCEWithLogitsLoss())

    entropy = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (0.5, 0.25)]
    assert found["loss"] == pytest.approx(sum(entropy) / 2, abs=1e-4)


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return x, x


def test_where_no_constant_fits_there_is_no_guess() -> None:
    data = torch.zeros(10, 4), torch.zeros(10, dtype=torch.long)

    arrays: Any = tuple(part.numpy() for part in data)

    assert guess(Pair(), data, data, nn.CrossEntropyLoss()) == {}
    assert guess(nn.Linear(4, 2), arrays, arrays, nn.CrossEntropyLoss()) == {}
    assert not is_guessing({"accuracy": 0.0}, {}, samples=10)


def test_guessing_leaves_the_model_and_the_generators_alone() -> None:
    task = Waveforms(samples=60, fresh_samples=300)
    splits, model, state = task.data(0), task.model().train(), torch.get_rng_state()

    first, second = (guess(model, splits.train, splits.comparison, task.loss) for _ in range(2))

    assert first == second
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"accuracy": 0.33, "loss": 1.1}, True),
        ({"accuracy": 0.42, "loss": 1.1}, True),
        ({"accuracy": 0.44, "loss": 1.1}, False),
        ({"accuracy": 0.33, "loss": 1.0}, False),
        ({"accuracy": 0.95, "loss": 9.0}, False),
    ],
)
def test_a_run_guesses_where_neither_accuracy_nor_loss_are_better(metrics: dict[str, float], expected: bool) -> None:
    assert is_guessing(metrics, {"accuracy": 1 / 3, "loss": 1.0986}, samples=100) is expected
