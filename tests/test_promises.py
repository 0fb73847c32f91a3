"""The promises of the design, each with all built-in tricks at once or in pairs. See also test_conformance.py."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
from functools import partial

import pytest
import torch
from built_ins import every_trick
from torch import nn

import trickbox as tb
from trickbox.catalog import available
from trickbox.session import Session
from trickbox.tasks.waveforms import PlainNet, waveforms
from trickbox.testing import tiny_data, tiny_model, tiny_model_for
from trickbox.trick import fresh


@pytest.fixture(scope="module")
def tricks(tmp_path_factory):
    return every_trick(tmp_path_factory.mktemp("weights"))


def train(tricks, model=None, max_epochs=2, data=None):
    return tb.fit(
        model or tiny_model(),
        data or tiny_data(40),
        tiny_data(20, seed=1) if data is None else data,
        loss=nn.CrossEntropyLoss(),
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.01),
        tricks=tricks,
        max_epochs=max_epochs,
        batch_size=16,
        device="cpu",
    )


def assert_same(one, other):
    assert one.history.rows == other.history.rows
    assert list(one.model.state_dict()) == list(other.model.state_dict()) or set(one.model.state_dict()) == set(
        other.model.state_dict()
    )
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name


def compatible(tricks):
    """As many tricks as act in one run on the tiny net: of two that conflict, the first."""
    chosen = []
    for trick in tricks.values():
        try:
            tb.explain(tiny_model(), tiny_data()[0], [*chosen, trick])
        except (tb.ConfigError, tb.NoEffectError):
            continue
        chosen.append(trick)
    return chosen


# 1. Unmodified model


def test_the_lessons_network_takes_every_surgery_as_it_is(tricks):
    model = PlainNet()
    names = ["batch_norm", "residual", "dropout", "initialize"]
    result = train([tricks[name] for name in names], model, data=waveforms(48))
    assert type(result.model) is PlainNet
    touched = {name.split(".trickbox")[0] for name, _ in model.named_modules() if ".trickbox" in name}
    assert {"conv1", "conv2"} <= touched


# 2. Off is off


def test_all_tricks_off_together_change_no_bit(tricks):
    off = compatible({name: fresh(trick, **trick.off) for name, trick in tricks.items() if trick.off is not None})
    assert len(off) >= 8
    assert_same(train([]), train(off))


# 4. and 5. Undo, and keys


def test_undo_takes_all_tricks_off_together(tricks):
    model, data = tiny_model(), tiny_data(40)
    before = copy.deepcopy(model)
    with Session(model, data, data, loss=nn.CrossEntropyLoss(), optimizer=torch.optim.SGD, max_epochs=1, batch_size=16,
                 tricks=compatible(tricks)):  # fmt: skip
        assert any("trickbox" in name for name in model.state_dict())
        assert [name for name in model.state_dict() if ".trickbox." not in name] == list(before.state_dict())
        copy.deepcopy(model).load_state_dict(before.state_dict())
    tb.undo(model)
    assert list(model.state_dict()) == list(before.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
    assert model.__dict__.keys() == before.__dict__.keys()


# 6. Order cannot hurt


@pytest.mark.slow
@pytest.mark.parametrize("name", available())
def test_no_pair_of_tricks_depends_on_the_order_of_the_list(tricks, name):
    failed = []
    for other in available()[available().index(name) + 1 :]:
        pair = [tricks[name], tricks[other]]
        try:
            first = train(pair, tiny_model_for(*pair), max_epochs=1)
        except (tb.ConfigError, tb.NoEffectError):  # declared to conflict, or what one adds the other cannot be beside
            continue
        try:
            assert_same(first, train(pair[::-1], tiny_model_for(*pair), max_epochs=1))
        except AssertionError:
            failed.append(other)
    assert not failed


def test_no_permutation_of_all_tricks_changes_a_bit(tricks):
    chosen = compatible(tricks)
    expected = train(chosen)
    for seed in range(3):
        assert_same(expected, train(random.Random(seed).sample(chosen, len(chosen))))


# 9. Nothing leaks


def test_two_runs_share_the_objects_and_nothing_else(tricks):
    chosen = compatible(tricks)
    before = [repr(trick) for trick in chosen]
    assert_same(train(chosen), train(chosen))
    assert [repr(trick) for trick in chosen] == before


# 11. Installed is not enabled


def test_tricks_are_imported_only_when_named():
    script = """
import sys, trickbox as tb
assert "dropout" in tb.available() and not any(name.startswith("trickbox_tricks") for name in sys.modules)
tb.get("placebo")
assert [n for n in sys.modules if n.startswith("trickbox_tricks.")] == ["trickbox_tricks.placebo"]
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_installed_tricks_do_not_run_unless_named():
    assert train([]).record["tricks"] == []
