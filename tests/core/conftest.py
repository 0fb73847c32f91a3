"""What the tests of the core share: one small run, and a look at everything that a run must leave alone."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import trickbox as tb
from trickbox.authoring import forked


def small_net() -> nn.Sequential:
    with forked(1):
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def small_data(samples: int = 20, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 4, generator=generator), torch.arange(samples) % 3


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture
def net():
    return small_net()


@pytest.fixture
def data():
    return small_data()


@pytest.fixture
def valid():
    return small_data(10, seed=1)


@pytest.fixture
def run():
    """Run `fit` on the small net and data; every argument can be changed."""

    def run(tricks=(), **changes):
        arguments = {
            "model": changes.pop("model", None) or small_net(),
            "train": small_data(),
            "loss": nn.CrossEntropyLoss(),
            "optimizer": partial(torch.optim.SGD, lr=0.1),
            "max_epochs": 2,
            "batch_size": 8,
            "progress": False,
            "device": "cpu",
        }
        return tb.fit(tricks=tricks, **(arguments | changes))

    return run


@pytest.fixture
def same_bits():
    """Assert that two state dicts have the same keys, in order, and the same bits."""

    def compare(one, other):
        one, other = (thing.state_dict() if isinstance(thing, nn.Module) else thing for thing in (one, other))
        assert list(one) == list(other)
        for name, value in one.items():
            assert value.dtype == other[name].dtype
            assert torch.equal(value, other[name]), name

    return compare


@pytest.fixture
def untouched():
    """A context: the model inside and all global random generators are afterwards as they were before."""

    class Untouched:
        def __init__(self, model):
            self.model = model

        def look(self):
            modules = list(self.model.modules()) if isinstance(self.model, nn.Module) else []
            return {
                "torch": torch.get_rng_state().tolist(),
                "python": random.getstate(),
                "numpy": [np.asarray(part).tolist() for part in np.random.get_state()[1:]],
                "grad": torch.is_grad_enabled(),
                "weights": {} if not modules else {k: v.tolist() for k, v in self.model.state_dict().items()},
                "modules": [id(module) for module in modules],
                "modes": [module.training for module in modules],
                "trainable": [p.requires_grad for module in modules for p in module.parameters(recurse=False)],
                "hooks": [[*m._forward_hooks.values(), *m._forward_pre_hooks.values()] for m in modules],
                "attributes": [sorted(module.__dict__) for module in modules],
            }

        def __enter__(self):
            self.before = self.look()
            return self.model

        def __exit__(self, *_):
            after = self.look()
            for what, value in self.before.items():
                assert after[what] == value, f"{what} changed"

    return Untouched
