"""Layers that are called several times: an attachment for each call, and no call that nobody has planned for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import trickbox as tb
from trickbox.surgery.attach import COUNTED


class Siamese(nn.Module):
    """One tower for two inputs, or for as many as there are."""

    def __init__(self):
        super().__init__()
        self.tower = nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, *inputs):
        return self.head(torch.stack([self.tower(x).relu() for x in inputs]).sum(0))


@pytest.fixture
def model():
    torch.manual_seed(0)
    found = tb.apply(Siamese(), ["layer_norm"], (torch.randn(5, 3), torch.randn(5, 3)))
    with torch.no_grad():
        found.tower.trickbox.layer_norm.bias.fill_(1.0)
        found.tower.trickbox.layer_norm_call1.bias.fill_(2.0)
    return found


def test_each_call_has_a_norm_of_its_own(model):
    x, y = torch.randn(5, 3), torch.randn(5, 3)
    weight, bias = model.tower.weight, model.tower.bias
    parts = [nn.functional.layer_norm(z @ weight.T + bias, (4,)) + add for z, add in ((x, 1.0), (y, 2.0))]
    assert torch.allclose(model(x, y), model.head(sum(part.relu() for part in parts)), atol=1e-6)


def test_a_tower_called_on_its_own_makes_the_first_call_every_time(model):
    x = torch.randn(5, 3)
    first = model.tower(x)
    model(x, x)
    assert torch.equal(model.tower(x), first)
    assert torch.equal(model.tower(x), first)


def test_a_call_that_nobody_has_planned_for_is_an_error_and_the_next_forward_is_right(model):
    x = torch.randn(5, 3)
    before, alone = model(x, x), model.tower(x)
    with pytest.raises(tb.SurgeryError, match=r"a layer with layer_norm, layer_norm_call1 on it .* than the 2 times"):
        model(x, x, x)
    assert torch.equal(model(x, x), before)
    assert torch.equal(model.tower(x), alone)


def test_fewer_calls_than_planned_are_the_first_ones(model):
    x = torch.randn(5, 3)
    expected = model.head(model.tower(x).relu())
    assert torch.allclose(model(x), expected)
    assert torch.allclose(model(x), expected)


def test_compiled_it_is_the_same(model):
    x = torch.randn(5, 3)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for _ in range(3):
        assert torch.allclose(compiled(x, x), model(x, x))


def test_undo_takes_both_hooks_off(model):
    tb.undo(model)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert COUNTED not in vars(model)


def test_what_acts_on_the_first_call_alone_leaves_the_second():
    plain = Siamese()
    x, y = torch.randn(5, 3), torch.randn(5, 3)
    one = tb.apply(Siamese(), [tb.get("layer_norm")(at="tower[0]")], (x, y))
    one.load_state_dict(plain.state_dict())
    parts = [nn.functional.layer_norm(plain.tower(x), (4,)), plain.tower(y)]
    assert torch.allclose(one(x, y), plain.head(sum(part.relu() for part in parts)), atol=1e-6)
