"""A model that has tricks on is trained on: with them, with more of them, in any loop."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

import trickbox as tb
from trickbox.surgery import edits_of
from trickbox.testing import tiny_data, tiny_model

X, Y = tiny_data(32)
SGD = partial(torch.optim.SGD, lr=0.1)


def fit(model, tricks, **settings):
    return tb.fit(
        model, (X, Y), loss=nn.CrossEntropyLoss(), optimizer=SGD, tricks=tricks, max_epochs=1, batch_size=16,
        device="cpu", **settings,
    )  # fmt: skip


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_what_is_on_the_model_is_trained_on_as_by_hand():
    model = tb.apply(tiny_model(), ["batch_norm"], X)
    by_hand = tb.apply(tiny_model(), ["batch_norm"], X)
    for net in (model, by_hand):
        net.own_dropout.p = 0.0
    fit(model, [])
    order = torch.randperm(32, generator=torch.Generator().manual_seed(_order()))
    optimizer = SGD(by_hand.parameters())
    for batch in order.split(16):
        optimizer.zero_grad()
        nn.functional.cross_entropy(by_hand(X[batch]), Y[batch]).backward()
        optimizer.step()
    assert same(weights(model), weights(by_hand))


def _order():
    from trickbox.authoring import derive

    return derive(0, "order", 0)


def test_one_run_after_another_adds_its_own_tricks():
    model = tiny_model()
    fit(model, ["batch_norm", "cosine_annealing"])
    fit(model, ["residual", "cosine_annealing"])
    norms = [name for name in model.state_dict() if name.endswith("batch_norm.weight")]
    assert norms
    assert [slot.name for slot in model.conv2.trickbox.slots] == ["batch_norm", "residual"]
    tb.undo(model)
    assert list(model.state_dict()) == list(tiny_model().state_dict())


def test_dropouts_of_an_earlier_run_draw_on_in_the_next():
    model = tb.apply(tiny_model(), [("first", tb.get("dropout")(0.5, at="conv1"))], X)
    masks = []

    def keep(layer, _, output):
        masks.extend([output != 0] if layer.training else [])

    model.conv1.trickbox.first.register_forward_hook(keep)
    fit(model, [("second", tb.get("dropout")(0.5, at="conv2"))])
    assert not torch.equal(*masks[-2:])
    assert "second" in model.conv2.trickbox._modules


@pytest.mark.parametrize("entry", ["fit", "attach", "apply"])
def test_a_run_that_fails_leaves_what_was_there(entry):
    model = tb.apply(tiny_model(), ["batch_norm"], X)
    before, edits = weights(model), edits_of(model)
    broken = ["residual", ("nowhere", tb.get("group_norm")(at="fc3"))]
    with pytest.raises(tb.ConfigError, match="no path matches, got 'fc3'"):
        {
            "fit": lambda: fit(model, broken),
            "attach": lambda: tb.attach(model, broken, X, epochs=1, steps_per_epoch=2),
            "apply": lambda: tb.apply(model, broken, X),
        }[entry]()
    assert same(weights(model), before)
    assert edits_of(model) == edits


@pytest.mark.parametrize("name", ["dropout", "batch_norm", "residual", "freeze"])
def test_the_same_trick_again_is_an_error_and_changes_nothing(name):
    model = tb.apply(tiny_model(), [name], X)
    before = weights(model)
    with pytest.raises((tb.ConfigError, tb.NoEffectError)):
        fit(model, [name])
    assert same(weights(model), before)


def test_under_another_name_a_trick_may_act_twice():
    model = tb.apply(tiny_model(), ["residual"], X)
    tb.apply(model, [("more", tb.get("dropout")(0.5, at="conv1"))], X)
    tb.apply(model, [("even more", tb.get("dropout")(0.5, at="conv2"))], X)
    model.train()
    model.own_dropout.p = 0.0
    assert not torch.equal(model(X), model(X))


def test_an_optimizer_that_was_built_on_tricks_survives_their_undo():
    model = tb.apply(tiny_model(), ["batch_norm"], X)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(X).sum().backward()
    optimizer.step()
    momentum = {id(p): optimizer.state[p]["momentum_buffer"].clone() for p in model.parameters()}
    tb.undo(model)
    own = list(model.parameters())
    optimizer.zero_grad()
    model(X).sum().backward()
    optimizer.step()
    assert all(not torch.equal(optimizer.state[p]["momentum_buffer"], momentum[id(p)]) for p in own)
