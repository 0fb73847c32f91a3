"""What the adapters have in common, and what is said where a framework is missing."""

from __future__ import annotations

import importlib
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from trickbox.adapters import Wraps, first_batch, join, split, unchanged
from trickbox.state import Batch


@pytest.mark.parametrize(
    ("framework", "hidden"),
    [
        ("lightning", ("lightning", "pytorch_lightning")),
        ("transformers", ("transformers",)),
        ("transformers", ("accelerate",)),
    ],
)
def test_a_missing_framework_is_named_with_its_extra(monkeypatch, framework, hidden):
    for name in (f"trickbox.adapters.{framework}", "lightning.pytorch"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in hidden:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"pip install 'trickbox\[{framework}\]'"):
        importlib.import_module(f"trickbox.adapters.{framework}")


def test_nothing_imports_a_framework_unasked():
    script = (
        "import sys, trickbox.adapters, trickbox_tricks; trickbox_tricks.EMA; trickbox_tricks.SAM; "
        "assert not {'lightning', 'pytorch_lightning', 'transformers', 'accelerate', 'ignite'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


class Drawn(torch.utils.data.Dataset):
    """Every item is drawn anew, as augmentation does it."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.tensor([index, random.random(), np.random.rand(), torch.rand(()).item()])


class Stream(IterableDataset):
    def __iter__(self):
        yield from range(8)


def test_the_first_batch_is_the_one_that_comes_and_moves_nothing():
    generator = torch.Generator().manual_seed(0)
    sampler = torch.utils.data.RandomSampler(Drawn(), generator=torch.Generator().manual_seed(1))
    loaders = {
        "own": DataLoader(Drawn(), 4, shuffle=True, generator=generator),
        "sampler": DataLoader(Drawn(), batch_sampler=torch.utils.data.BatchSampler(sampler, 4, False)),
        "stream": [DataLoader(Stream(), 4), range(7, 9)],
    }
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    states = generator.get_state(), sampler.generator.get_state()
    first = first_batch(loaders)
    again = first_batch(loaders)
    assert (torch.equal(torch.get_rng_state(), before[0]), random.getstate()) == (True, before[1])
    assert np.random.get_state()[1].tolist() == before[2]
    assert torch.equal(generator.get_state(), states[0])
    assert torch.equal(sampler.generator.get_state(), states[1])
    for name in ("own", "sampler"):
        assert torch.equal(first[name], again[name])
        assert torch.equal(first[name][:, 0], next(iter(loaders[name]))[:, 0])
    assert first["stream"][0].tolist() == [0, 1, 2, 3]
    assert first["stream"][1] == 7


def test_the_first_batch_does_not_take_one_from_workers_that_wait():
    loader = DataLoader(TensorDataset(torch.arange(8)), 4, num_workers=1, persistent_workers=True)
    waiting = iter(loader)
    assert first_batch(loader)[0].tolist() == [0, 1, 2, 3]
    assert next(waiting)[0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "batch",
    [(1, 2), [1, 2], {"x": 1, "labels": 2}, {"x": 1}, "whole", (1, 2, 3), {"x": 1, "start": 2, "end": 3}],
    ids=str,
)
def test_a_batch_is_put_together_as_it_came(batch):
    labels = ("start", "end") if "end" in batch else ("labels",)
    parts = split(batch, labels)
    assert join(parts, parts, batch, labels) == batch
    assert type(join(parts, parts, batch, labels)) is type(batch)
    if parts.targets is not None:
        other = Batch(parts.inputs, (8, 9) if "end" in batch else 8, 1)
        changed = join(other, parts, batch, labels)
        assert {8, *((9,) if "end" in batch else ())} <= set(changed.values() if isinstance(batch, dict) else changed)


def test_a_dry_step_leaves_nothing_behind():
    class Noisy(nn.BatchNorm1d):
        def __init__(self):
            super().__init__(2)
            self.count, self.seen, self.nested = 0, [1], {"a": [set()]}
            self.total = torch.zeros(2)

        def step(self):
            self(torch.randn(4, 2))
            self.count += 1
            self.seen.append(2)
            self.nested["a"][0].add(3)
            self.nested["b"] = []
            self.total += 1
            self.new = "attribute"

    module = nn.Sequential(Noisy())
    seen, total = module[0].seen, module[0].total
    with unchanged(module):
        module[0].step()
        assert module[0].running_mean.any()
    assert (module[0].count, module[0].seen, module[0].nested) == (0, [1], {"a": [set()]})
    assert module[0].seen is seen
    assert module[0].total is total
    assert not total.any()
    assert not module[0].running_mean.any()
    assert not hasattr(module[0], "new")


def test_wrapped_methods_are_put_back_in_order():
    class Owner:
        def method(self, one):
            return one

    owner, wraps = Owner(), Wraps()
    owner.method = own = lambda one: -one
    wraps.add(owner, "method", lambda original, one: original(one) + 1)
    wraps.add(owner, "method", lambda original, one: original(one) * 2)
    assert owner.method(3) == -4
    wraps.put_back()
    assert owner.method is own
