"""Activation checkpointing: a call that backward repeats is the call that it was, with every trick on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from built_ins import edits_only, every_trick
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import trickbox as tb
from trickbox.authoring import forked
from trickbox.catalog import available
from trickbox.surgery import Clock, Draws
from trickbox.trick import fresh


class Net(nn.Module):
    """One layer that is called three times, a pool called twice, and a dropout called three times.

    *how* says which parts are checkpointed: none, each block, the first two blocks together, a region in a region, or
    all.
    """

    def __init__(self, how: str = "none", reentrant: bool = False) -> None:
        super().__init__()
        with forked(1):
            self.stem = nn.Conv1d(2, 4, 3, padding=1)
            self.layer = nn.Conv1d(4, 4, 3, padding=1)
            self.pool = nn.MaxPool1d(2)
            self.own_dropout = nn.Dropout(0.1)
            self.wide = nn.Linear(24, 24)
            self.deep = nn.Linear(24, 24)
            self.head = nn.Linear(24, 3)
        self.how, self.reentrant = how, reentrant

    def region(self, function, x: Tensor, where: tuple[str, ...]) -> Tensor:
        return checkpoint(function, x, use_reentrant=self.reentrant) if self.how in where else function(x)

    def block(self, x: Tensor) -> Tensor:
        return self.own_dropout(torch.tanh(self.layer(x)))

    def two(self, x: Tensor) -> Tensor:
        return self.block(self.region(self.block, x, ("each", "nested")))

    def body(self, x: Tensor) -> Tensor:
        x = self.region(self.two, self.stem(x), ("two", "nested"))
        x = self.region(self.block, x, ("each",))
        x = self.pool(self.pool(x)).flatten(1)
        return self.head(self.region(self.dense, x, ("each", "two")))

    def dense(self, x: Tensor) -> Tensor:
        return F.relu(self.deep(F.relu(self.wide(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.region(self.body, x, ("all",))


class Attention(nn.Module):
    """Over six steps of four features."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.proj(F.scaled_dot_product_attention(q, k, v))


class Blocks(Net):
    """The same with norms, shortcuts and an attention of its own."""

    def __init__(self, how: str = "none", reentrant: bool = False) -> None:
        super().__init__(how, reentrant)
        with forked(2):
            self.norm, self.attention = nn.BatchNorm1d(4), Attention()

    def block(self, x: Tensor) -> Tensor:
        return self.own_dropout(torch.tanh(x + self.norm(self.layer(x))))

    def dense(self, x: Tensor) -> Tensor:
        x = super().dense(x).view(-1, 6, 4)
        return (x + self.attention(x)).flatten(1)


def net_for(trick, how: str = "none", reentrant: bool = False) -> Net:
    """The first net in which *trick* acts."""
    try:
        tb.explain(Net(), torch.zeros(6, 2, 24), [trick])
    except tb.NoEffectError:
        return Blocks(how, reentrant)
    return Net(how, reentrant)


REGIONS = [("each", False), ("each", True), ("two", False), ("nested", False), ("all", False), ("all", True)]


@pytest.fixture(scope="module")
def tricks(tmp_path_factory):
    found = every_trick(tmp_path_factory.mktemp("weights"))
    found.pop("transfer")  # its weights are those of another net
    return found


def gradients(net: Net, forwards: int = 1) -> dict[str, Tensor]:
    """The gradients of one backward after some forwards, each of another batch."""
    x = torch.randn(6, 2, 24, generator=torch.Generator().manual_seed(5), requires_grad=True)
    loss = sum((net(x + number) ** 2).mean() for number in range(forwards))
    loss.backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None} | {"x": x.grad}


@pytest.mark.parametrize(
    ("how", "reentrant"), [pytest.param(*region, marks=[pytest.mark.slow] * (region[0] != "all")) for region in REGIONS]
)
def test_gradients_under_checkpointing_are_those_without_for_every_surgery(tricks, how, reentrant):
    for name in [name for name, trick in tricks.items() if edits_only(trick)]:
        found = []
        for net in (net_for(tricks[name]), net_for(tricks[name], how, reentrant)):
            net.own_dropout.p = 0.0  # its masks are torch's business
            tb.apply(net.train(), [tricks[name]], torch.zeros(6, 2, 24), seed=3)
            found.append(gradients(net))
        plain, repeated = found
        assert plain.keys() == repeated.keys()
        for parameter, expected in plain.items():
            assert torch.equal(expected, repeated[parameter]), (name, parameter)


@pytest.mark.parametrize(("how", "reentrant"), [region for region in REGIONS if region != ("all", True)])
def test_two_forwards_before_one_backward_are_told_apart(tricks, how, reentrant):
    found = []
    for net in (Net(), Net(how, reentrant)):
        tb.apply(net.train(), [fresh(tricks["dropout"], p=0.5)], torch.zeros(6, 2, 24), seed=3)
        found.append(gradients(net, forwards=2))
    for name, expected in found[0].items():
        # Reentrant regions add up the gradients of shared weights in another order.
        torch.testing.assert_close(found[1][name], expected, rtol=1e-6 if reentrant else 0, atol=1e-6 * reentrant)


def test_a_dropout_that_the_model_calls_three_times_draws_three_masks():
    net = Net().train()
    tb.apply(net, [tb.get("dropout")(p=0.5)], torch.zeros(6, 2, 24))
    masks = []
    net.own_dropout.register_forward_hook(lambda *call: masks.append(call[-1] != 0))
    net(torch.randn(6, 2, 24))
    assert len(masks) == 3
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[1], masks[2])


def test_a_second_backward_through_the_same_regions_repeats_the_same_masks():
    net = Net("each").train()
    tb.apply(net, [tb.get("dropout")(p=0.5)], torch.zeros(6, 2, 24))
    loss = (net(torch.ones(6, 2, 24)) ** 2).mean()
    loss.backward(retain_graph=True)
    first = net.layer.weight.grad.clone()
    net.zero_grad()
    loss.backward()
    assert torch.equal(net.layer.weight.grad, first)


def test_a_repetition_by_another_tool_is_refused():
    draws = Draws(key=1, clock=Clock())

    class Again(torch.autograd.Function):
        """Checkpointing as somebody else would write it."""

        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * draws.bernoulli(x.shape, 0.5, x)

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return gradient * draws.bernoulli(x.shape, 0.5, x)

    with pytest.raises(tb.SurgeryError, match=r"use torch\.utils\.checkpoint\.checkpoint"):
        Again.apply(torch.ones(4, requires_grad=True)).sum().backward()


class Torn(Net):
    """Its two dense layers stand in regions of their own."""

    def dense(self, x: Tensor) -> Tensor:
        x = F.relu(self.wide(x))
        return checkpoint(lambda y: F.relu(self.deep(y)), x, use_reentrant=False)


def test_a_shortcut_into_a_region_that_its_first_layer_is_not_in_is_refused():
    net = Torn().train()
    tb.apply(net, [tb.get("residual")(layers=2)], torch.zeros(6, 2, 24))
    assert "residual" in net.deep.trickbox._modules
    with pytest.raises(tb.SurgeryError, match="repeats the last layer without the first"):
        gradients(net)


def trained(trick, net: Net) -> dict[str, Tensor]:
    """The weights after an epoch of three updates."""
    net.own_dropout.p = 0.0
    generator = torch.Generator().manual_seed(2)
    data = torch.randn(24, 2, 24, generator=generator), torch.arange(24) % 3
    return tb.fit(
        net, data, data, loss=nn.CrossEntropyLoss(), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        tricks=[trick], max_epochs=1, batch_size=8, device="cpu",
    ).model.state_dict()  # fmt: skip


@pytest.mark.parametrize("name", [name for name in available() if name != "transfer"])
def test_every_trick_trains_under_checkpointing_as_without(tricks, name):
    plain, repeated = (trained(tricks[name], net_for(tricks[name], how)) for how in ("none", "each"))
    for key, value in plain.items():
        # Running statistics are updated once more by a repeated forward, as torch's own are.
        if "running" not in key and "num_batches" not in key:
            assert torch.equal(value, repeated[key]), key
