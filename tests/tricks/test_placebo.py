"""The placebo changes no bit."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import nn
from trickbox_tricks.placebo import Placebo

from trickbox import fit


def test_a_run_with_a_placebo_is_bit_for_bit_the_run_without() -> None:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(40, 3, generator=generator), torch.arange(40) % 2
    plain = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2))
    treated = copy.deepcopy(plain)
    run = partial(
        fit, train=data, valid=data, loss=nn.CrossEntropyLoss(), optimizer=partial(torch.optim.Adam, lr=0.1),
        max_epochs=3, seed=1,
    )  # fmt: skip
    without, treated_result = run(plain), run(treated, tricks=[Placebo()])
    assert treated_result.history == without.history
    assert treated_result.metrics == without.metrics
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in treated.state_dict().items())
    assert treated.state_dict().keys() == plain.state_dict().keys()
