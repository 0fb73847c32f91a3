"""Class numbers as probabilities, and the losses that take them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trickbox.targets import probabilities, takes_probabilities


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(5,), (5, 4), (5, 2, 3)])
def test_probabilities_are_torchs_one_hot_with_the_classes_on_axis_one(shape: tuple[int, ...]) -> None:
    targets = torch.randint(0, 7, shape, generator=seeded())
    found = probabilities(targets, 7, torch.float64)
    assert torch.equal(found, F.one_hot(targets, 7).movedim(-1, 1).double())
    assert torch.equal(found.argmax(1), targets)


class Focal(nn.Module):
    """A loss of the user's own, for class numbers and probabilities."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        terms = F.cross_entropy(outputs, targets, reduction="none")
        return ((1 - torch.exp(-terms)) ** 2 * terms).mean()


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 4)])
def test_losses_that_take_probabilities(shape: tuple[int, ...]) -> None:
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    smooth = partial(F.cross_entropy, label_smoothing=0.1)
    outputs = torch.randn(shape, generator=seeded())
    targets = torch.randint(0, 3, (5, *shape[2:]), generator=seeded())
    for loss in (nn.CrossEntropyLoss(), weighted, F.cross_entropy, smooth, Focal()):
        assert takes_probabilities(loss, outputs, targets)
    for loss in (nn.NLLLoss(), F.nll_loss, nn.MultiMarginLoss()):
        assert not takes_probabilities(loss, outputs, targets)
