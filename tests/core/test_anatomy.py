"""The parts of a model: layers, joins, blocks, heads and the rest, as one forward shows and an expert sees them."""

# ruff: noqa: ARG004, ARG005  # forwards and functions of one's own have fixed signatures

from __future__ import annotations

import functools
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

from trickbox.authoring import Rank, Surgery
from trickbox.nest import call
from trickbox.surgery import Anatomy, record
from trickbox.surgery.anatomy import is_embedding, is_norm, is_weight_layer, weight_shape
from trickbox.surgery.sites import sites_of
from trickbox.testing.zoo import ZOO, specimen

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
SERIES = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))
MAPS = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(2))
IDS = torch.arange(10).reshape(2, 5) % 7


class Model(nn.Module):
    """A model whose parts are arguments, modules, parameters or buffers, and whose forward is a function."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            buffer = isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter)
            self.register_buffer(name, part) if buffer else setattr(self, name, part)
        self.run = forward

    def forward(self, *args, **kwargs):
        return self.run(self, *args, **kwargs)


def anatomy_of(model, inputs=X, training=False):
    return Anatomy(model, record(model, inputs, training=training))


def names(sites):
    return [site.label for site in sites]


def joins(model, inputs=X, training=False):
    found = anatomy_of(model, inputs, training).joins
    return [(names(join.branch), names(join.ends), names(join.skip)) for join in found]


def weight(*shape):
    return nn.Parameter(torch.randn(*shape))


def mlp(width=6):
    return nn.Sequential(nn.Linear(width, 8), nn.GELU(), nn.Linear(8, width))


class Block(nn.Module):
    """Two layers around which the input is added."""

    def __init__(self, width=6):
        super().__init__()
        self.up, self.down = nn.Linear(width, 8), nn.Linear(8, width)

    def forward(self, x):
        return x + self.down(F.relu(self.up(x)))


class Seen(torch.autograd.Function):
    """A function of one's own, written in torch's functions."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


class Unseen(torch.autograd.Function):
    """A function of one's own that leaves torch, as compiled kernels do."""

    @staticmethod
    def forward(ctx, x):
        return torch.from_numpy(x.detach().numpy() * 2)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


def old(kind, thing):
    """One of the older ways to change a function or a layer, which warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind(thing)


def swish(x):
    return x * torch.sigmoid(x)


# -- joins: what is one -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "add",
    [
        lambda x, f: x + f(x), lambda x, f: f(x) + x, lambda x, f: torch.add(x, f(x)), lambda x, f: x.add(f(x)),
        lambda x, f: torch.add(x, f(x), alpha=0.5), lambda x, f: sum([x, f(x)]), lambda x, f: f(x).add_(x),
        lambda x, f: f(x).__iadd__(x), lambda x, f: x.clone().__iadd__(f(x)), lambda x, f: x + 0.1 * f(x),
        lambda x, f: F.relu(x + F.dropout(f(x), 0.1)), lambda x, f: x + f(F.layer_norm(x, (6,))),
        lambda x, f: F.layer_norm(x + f(x), (6,)), lambda x, f: torch.add(input=x, other=f(x)),
        lambda x, f: x.double().float() + f(x),
    ],
)  # fmt: skip
def test_a_sum_of_a_tensor_and_what_layers_made_of_it_is_a_join_in_every_spelling(add):
    model = Model(lambda self, x: self.head(add(self.stem(x), self.f)), stem=nn.Linear(6, 6), f=mlp(),
                  head=nn.Linear(6, 2))  # fmt: skip
    assert joins(model) == [(["f.0", "f.2"], ["f.2"], [])]


def gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def rotary(x):
    half = torch.cat([-x[..., 3:], x[..., :3]], -1)
    angles = torch.arange(6.0)
    return x * angles.cos() + half * angles.sin()


def experts(self, x):
    weights = self.gate(x).softmax(-1)
    return weights[:, :1] * self.a(x) + weights[:, 1:] * self.b(x)


def recurrence(self, x):
    hidden = torch.zeros(2, 6)
    for step in x.unbind(1):
        hidden = torch.tanh(self.w(step) + self.u(hidden))
    return hidden


@pytest.mark.parametrize(
    ("forward", "parts", "inputs"),
    [
        (lambda self, x: self.b(gelu(self.a(x))), {"a": nn.Linear(6, 8), "b": nn.Linear(8, 6)}, X),
        (lambda self, x: rotary(self.a(x)) @ rotary(self.b(x)).T, {"a": nn.Linear(6, 6), "b": nn.Linear(6, 6)}, X),
        (lambda self, x: self.a(x) + self.b(torch.arange(5)), {"a": nn.Embedding(7, 6), "b": nn.Embedding(5, 6)}, IDS),
        (experts, {"gate": nn.Linear(6, 2), "a": mlp(), "b": nn.Linear(6, 6)}, X),
        (recurrence, {"w": nn.Linear(6, 6), "u": nn.Linear(6, 6)}, SERIES),
        (lambda self, x: self.a(x) + 1, {"a": nn.Linear(6, 6)}, X),
        (lambda self, x: self.a(x) + self.constant, {"a": nn.Linear(6, 6), "constant": torch.ones(4, 6)}, X),
        (lambda self, x: self.a(x) + self.bias, {"a": nn.Linear(6, 6), "bias": weight(4, 6)}, X),
        (lambda self, x: self.a(x) + self.b(x), {"a": nn.Linear(6, 6), "b": nn.Linear(6, 6)}, X),
        (lambda self, x, y: self.a(x) + self.a(y), {"a": mlp()}, (X, X + 1)),
        (lambda self, x: x + F.relu(x).mean(1, keepdim=True), {}, X),
        (lambda self, x: x + self.a(x), {"a": nn.Linear(6, 1)}, X),
        (lambda self, x: x - self.a(x), {"a": nn.Linear(6, 6)}, X),
        (lambda self, x: x * self.a(x), {"a": nn.Linear(6, 6)}, X),
        (lambda self, x: torch.cat([x, self.a(x)], 1), {"a": nn.Linear(6, 6)}, X),
        (lambda self, x: self.w(x) + self.b(F.dropout(self.a(x))),
         {"w": nn.Linear(6, 6), "a": nn.Linear(6, 2), "b": nn.Linear(2, 6)}, X),
        (lambda self, x: x + F.linear(x, self.w), {"w": weight(6, 6), "v": weight(6, 6)}, X),
    ],
    ids=["gelu by hand", "rotary positions", "embeddings", "mixture of experts", "recurrence by hand", "a number",
         "a buffer", "a parameter", "two layers", "two towers", "no layer", "spread over another", "a difference",
         "a product", "a concatenation", "a low-rank addition", "functions of parameters alone"],
)  # fmt: skip
def test_a_sum_that_is_no_shortcut_around_a_layer_is_no_join(forward, parts, inputs):
    assert joins(Model(forward, **parts), inputs) == []


@pytest.mark.parametrize(
    ("f", "branch"),
    [
        (nn.MultiheadAttention(6, 2, batch_first=True), lambda f, x: f(x, x, x)[0]),
        (nn.LSTM(6, 6, batch_first=True), lambda f, x: f(x)[0]),
        (nn.GRU(6, 6, batch_first=True), lambda f, x: f(x)[0]),
        (nn.RNNCell(6, 6), lambda f, x: f(x[:, 0])[:, None].expand_as(x)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_attention_and_recurrent_layers_of_torch_are_branches_as_a_whole(f, branch):
    model = Model(lambda self, x: self.norm(x + branch(self.f, x)), f=f, norm=nn.LayerNorm(6))
    assert joins(model, SERIES) == [(["f"], ["f"], [])]


@pytest.mark.parametrize("bias", [True, False])
def test_a_projection_is_the_skip_and_the_longer_way_the_branch(bias):
    model = Model(
        lambda self, x: self.b(F.relu(self.a(x))) + self.skip(x),
        a=nn.Linear(6, 8), b=nn.Linear(8, 4), skip=nn.Linear(6, 4, bias=bias),
    )  # fmt: skip
    assert joins(model) == [(["a", "b"], ["b"], ["skip"])]


def test_a_projection_that_runs_before_the_branch_is_the_skip_too():
    def forward(self, x):
        way = self.skip(x)
        way += self.b(F.relu(self.a(x)))
        return way

    parts = {"a": nn.Linear(6, 8), "b": nn.Linear(8, 4), "skip": nn.Linear(6, 4)}
    assert joins(Model(forward, **parts)) == [(["a", "b"], ["b"], ["skip"])]


def test_a_layer_of_ones_own_and_a_function_of_a_parameter_make_a_branch_too():
    """The function is no site; what it follows is not the end of the branch."""
    model = Model(lambda self, x: x + self.b(F.relu(F.linear(x, self.w))), w=weight(8, 6), b=nn.Linear(8, 6))
    assert joins(model) == [(["b"], ["b"], [])]
    model = Model(lambda self, x: x + F.relu(self.a(x)) @ self.w.T, a=nn.Linear(6, 8), w=weight(6, 8), v=weight(2, 2))
    assert joins(model) == [(["a"], [], [])]


# -- joins of several branches -----------------------------------------------------------------------------------------


def in_place(self, x):
    trunk = x.clone()
    normed = self.norm(trunk)
    a, b = self.a(normed), self.b(normed)
    trunk += a
    trunk += b
    return trunk


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: x + self.a(x) + self.b(x),
        lambda self, x: self.a(x) + self.b(x) + x,
        lambda self, x: x + (self.a(self.norm(x)) + self.b(self.norm(x))),
        lambda self, x: self.a(self.norm(x)) + x + self.b(x),
        lambda self, x: torch.add(x + self.a(F.layer_norm(x, (6,))), self.b(F.layer_norm(x, (6,)))),
        in_place,
    ],
)
@pytest.mark.parametrize(("a", "first", "end"), [(mlp(), ["a.0", "a.2"], "a.2"), (nn.Linear(6, 6), ["a"], "a")])
def test_branches_side_by_side_are_one_join_with_several_ends(forward, a, first, end):
    """Also where one of them is a single layer, which alone beside the other would look like a projection."""
    model = Model(forward, norm=nn.LayerNorm(6), a=a, b=mlp())
    assert joins(model) == [([*first, "b.0", "b.2"], [end, "b.2"], [])]


def test_attention_and_layers_side_by_side_have_two_ends():
    def forward(self, x):
        normed = self.norm(x)
        return x + self.attention(normed, normed, normed)[0] + self.mlp(normed)

    model = Model(forward, norm=nn.LayerNorm(6), attention=nn.MultiheadAttention(6, 2, batch_first=True), mlp=mlp())
    assert joins(model, SERIES) == [(["attention", "mlp.0", "mlp.2"], ["attention", "mlp.2"], [])]


def test_queries_keys_and_values_are_followed_and_no_ends():
    def forward(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        return x + self.o((q @ k.transpose(1, 2)).softmax(-1) @ v)

    model = Model(forward, **{name: nn.Linear(6, 6) for name in "qkvo"})
    assert joins(model, SERIES) == [(["q", "k", "v", "o"], ["o"], [])]


def test_a_mixture_of_experts_inside_a_branch_ends_with_the_experts():
    model = Model(lambda self, x: x + experts(self, x), gate=nn.Linear(6, 2), a=mlp(), b=mlp())
    assert joins(model) == [(["gate", "a.0", "a.2", "b.0", "b.2"], ["a.2", "b.2"], [])]

    def forward(self, x):
        weights = self.gate(x).softmax(-1)
        return x + weights[:, :1] * self.a(x) + weights[:, 1:] * self.b(x)

    model = Model(forward, gate=nn.Linear(6, 2), a=mlp(), b=mlp())
    assert joins(model) == [(["gate", "a.0", "a.2", "b.0", "b.2"], ["a.2", "b.2"], [])]


def test_what_weighs_the_channels_is_no_end_of_a_branch():
    def forward(self, x):
        y = self.conv(x)
        scale = torch.sigmoid(self.expand(F.relu(self.reduce(y.mean(2)))))
        return x + y * scale[:, :, None]

    model = Model(forward, conv=nn.Conv1d(6, 6, 3, padding=1), reduce=nn.Linear(6, 2), expand=nn.Linear(2, 6))
    assert joins(model, MAPS) == [(["conv", "reduce", "expand"], ["conv"], [])]


def test_branches_one_after_the_other_are_two_joins():
    def forward(self, x):
        x = x + self.a(x)
        return x + self.b(x)

    assert joins(Model(forward, a=mlp(), b=mlp())) == [(["a.0", "a.2"], ["a.2"], []), (["b.0", "b.2"], ["b.2"], [])]


@pytest.mark.parametrize("returned", [True, False])
def test_a_long_skip_around_blocks_leaves_their_joins(returned):
    """The sum of the last block goes into nothing but the long skip's, or is an output besides."""

    def forward(self, x):
        y = self.inner(self.a(x))
        return (x + y, y) if returned else x + y

    model = Model(forward, a=nn.Linear(6, 6), inner=Block())
    inner = (["inner.up", "inner.down"], ["inner.down"], [])
    assert joins(model) == [inner, (["a", "inner.up", "inner.down"], ["inner.down"], [])]


def test_a_sum_that_comes_back_projected_leaves_the_join_inside():
    model = Model(
        lambda self, x: self.inner(F.relu(self.a(x))) + self.skip(x), a=nn.Linear(6, 6), inner=Block(),
        skip=nn.Linear(6, 6),
    )  # fmt: skip
    inner = (["inner.up", "inner.down"], ["inner.down"], [])
    assert joins(model) == [inner, (["a", "inner.up", "inner.down"], ["inner.down"], ["skip"])]


def test_positions_that_are_added_to_a_sum_leave_its_join():
    model = Model(lambda self, x: x + self.a(x) + self.positions, a=mlp(), positions=torch.ones(4, 6))
    assert joins(model) == [(["a.0", "a.2"], ["a.2"], [])]


def test_a_join_inside_a_branch_comes_first():
    model = Model(lambda self, x: x + self.o(self.inner(self.i(x))), i=nn.Linear(6, 6), inner=Block(),
                  o=nn.Linear(6, 6))  # fmt: skip
    assert [branch for branch, *_ in joins(model)] == [
        ["inner.up", "inner.down"],
        ["i", "inner.up", "inner.down", "o"],
    ]


# -- joins that are hard to see ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("part", ["block", "branch"])
def test_joins_are_seen_under_activation_checkpointing(part, reentrant, training):
    run = functools.partial(checkpoint, use_reentrant=reentrant)
    if part == "block":
        model = Model(lambda self, x: self.head(run(self.f, self.stem(x))), f=Block(), stem=nn.Linear(6, 6),
                      head=nn.Linear(6, 2))  # fmt: skip
        expected = ["f.up", "f.down"]
    else:
        model = Model(lambda self, x: self.head(x + run(self.f, x)), f=mlp(), head=nn.Linear(6, 2))
        expected = ["f.0", "f.2"]
    assert joins(model, X, training) == [(expected, expected[-1:], [])]


@pytest.mark.parametrize(
    "function", [Seen.apply, Unseen.apply, old(torch.jit.script, swish)], ids=["seen", "unseen", "compiled"]
)
@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x, f: x + self.b(f(self.a(x))),
        lambda self, x, f: x + f(self.b(self.a(x))),
        lambda self, x, f: x + self.b(self.a(f(x))),
        lambda self, x, f: x + self.whole(f, x),
    ],
    ids=["in the middle", "at the end", "at the start", "as an inner output"],
)
def test_a_function_that_the_tape_cannot_look_into_does_not_hide_a_join(forward, function):
    a, b = nn.Linear(6, 8), nn.Linear(8, 6)
    whole = Model(lambda self, f, x: f(self.b(self.a(x))), a=a, b=b)
    model = Model(lambda self, x: self.head(forward(self, F.relu(x), function)), a=a, b=b, whole=whole,
                  head=nn.Linear(6, 2))  # fmt: skip
    assert joins(model) == [(["a", "b"], ["b"], [])]


def test_a_container_makes_the_output_that_nothing_inside_was_seen_to_make():
    inner = Model(lambda self, x: Unseen.apply(self.a(x)), a=nn.Linear(6, 6))
    model = Model(lambda self, x: self.head(F.relu(x + self.inner(x))), inner=inner, head=nn.Linear(6, 2))
    assert joins(model) == [(["inner.a"], ["inner.a"], [])]


def test_a_tensor_from_nowhere_is_no_shortcut():
    """It is not known what went into it; had it been all before, the sum would be no join either."""
    model = Model(lambda self, x: self.b(self.a(x) + torch.from_numpy(X.numpy())), a=nn.Linear(6, 6), b=nn.Linear(6, 2))
    assert joins(model) == []


def test_what_a_branch_writes_into_another_tensor_comes_back_with_it():
    def forward(self, x):
        out = torch.zeros_like(x)
        out[:, :3] = self.a(x)
        return x + out

    assert joins(Model(forward, a=nn.Linear(6, 3))) == [(["a"], ["a"], [])]


@pytest.mark.parametrize("calls", [1, 3])
def test_a_block_that_is_called_several_times_joins_each_time(calls):
    def forward(self, x):
        for _ in range(calls):
            x = self.block(x)
        return self.head(x)

    labels = [f"[{call}]" if calls > 1 else "" for call in range(calls)]
    expected = [([f"block.up{n}", f"block.down{n}"], [f"block.down{n}"], []) for n in labels]
    assert joins(Model(forward, block=Block(), head=nn.Linear(6, 2))) == expected


def test_a_shared_layer_on_both_ways_is_no_projection():
    model = Model(lambda self, x: self.a(x) + self.b(F.relu(self.a(F.relu(x)))), a=nn.Linear(6, 6), b=nn.Linear(6, 6))
    assert joins(model) == []


def test_a_join_knows_the_call_of_its_sum():
    anatomy = anatomy_of(Model(lambda self, x: self.head(self.block(x)), block=Block(), head=nn.Linear(6, 2)))
    (join,) = anatomy.joins
    assert join.event in anatomy.tape.events
    assert (join.event.path, join.event.name, join.event.is_module) == ("block", "add", False)


@pytest.mark.parametrize("training", [True, False])
def test_joins_come_in_the_order_of_execution(training):
    model = nn.Sequential(*[Block() for _ in range(4)])
    assert [join.branch[0].path for join in anatomy_of(model, X, training).joins] == [f"{n}.up" for n in range(4)]


@pytest.mark.parametrize(("name", "spatial"), [("resnet", True), ("convnext", True), ("vit", False), ("bert", False)])
def test_a_join_is_spatial_where_its_branch_holds_convolutions(name, spatial):
    assert {join.spatial for join in zoo(name).joins} == {spatial}


def test_a_convolution_on_the_skip_alone_makes_no_join_spatial():
    def forward(self, x):
        return self.skip(x).mean(2) + self.b(F.relu(self.a(x.mean(2))))

    model = Model(forward, skip=nn.Conv1d(6, 6, 1), a=nn.Linear(6, 6), b=nn.Linear(6, 6))
    (join,) = anatomy_of(model, MAPS).joins
    assert not join.spatial


# -- blocks ------------------------------------------------------------------------------------------------------------


class Output(nn.Module):
    """The last layer of a branch and the sum, as in BERT."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(6, 6)

    def forward(self, x, residual):
        return self.dense(x) + residual


class Nested(nn.Module):
    """A block whose sums lie in parts of it."""

    def __init__(self):
        super().__init__()
        self.attention = nn.ModuleDict({"self": nn.Linear(6, 6), "output": Output()})
        self.output = Output()

    def forward(self, x):
        x = self.attention["output"](F.relu(self.attention["self"](x)), x)
        return self.output(F.relu(x), x)


def stack(*layers):
    return Model(lambda self, x: functools.reduce(lambda x, layer: layer(x), self.layers, x), layers=layers[0])


@pytest.mark.parametrize(
    ("model", "blocks"),
    [
        (nn.Sequential(nn.Linear(6, 6), Block(), Block(), nn.Linear(6, 2)), ["1", "2"]),
        (nn.Sequential(nn.Linear(6, 6), Block(), nn.Linear(6, 2)), ["1"]),
        (nn.Sequential(nn.ModuleDict({"first": Block(), "second": Block()})["first"], nn.Linear(6, 2)), ["0"]),
        (nn.Sequential(nn.Sequential(Block(), Block()), nn.Sequential(Block(), Block())), ["0.0", "0.1", "1.0", "1.1"]),
        (nn.Sequential(nn.Sequential(Block()), nn.Sequential(Block())), ["0", "1"]),
        (stack(nn.ModuleList([Nested(), Nested()])), ["layers.0", "layers.1"]),
        (Model(lambda self, x: self.one(x), one=Nested()), ["one.attention.output", "one.output"]),
        (Model(lambda self, x: self.b(self.a(x)), a=Block(), b=Block()), ["a", "b"]),
        (Model(lambda self, x: x + self.a(x), a=nn.Linear(6, 6)), [""]),
        (Model(lambda self, x: self.blocks["b"](self.blocks["a"](x)),
               blocks=nn.ModuleDict({"a": Block(), "b": Block()})), ["blocks.a", "blocks.b"]),
        (Model(lambda self, x: self.b(self.a(x)), a=nn.Linear(6, 6), b=nn.Linear(6, 6)), []),
    ],
)  # fmt: skip
def test_a_block_is_an_element_of_a_list_of_its_kind_or_the_module_that_adds(model, blocks):
    assert anatomy_of(model).blocks == blocks


def test_named_elements_of_a_sequential_are_blocks():
    model = nn.Sequential()
    for name in ("stem", "first", "second"):
        model.add_module(name, nn.Linear(6, 6) if name == "stem" else Block())
    anatomy = anatomy_of(model)
    assert anatomy.blocks == [join.block for join in anatomy.joins] == ["first", "second"]


def test_a_block_with_two_joins_is_one_block():
    anatomy = anatomy_of(stack(nn.ModuleList([Nested(), Nested()])))
    assert [join.block for join in anatomy.joins] == ["layers.0", "layers.0", "layers.1", "layers.1"]
    assert anatomy.blocks == ["layers.0", "layers.1"]


@pytest.mark.parametrize(
    ("path", "block"), [("stem", None), ("one.up", "one"), ("one.down", "one"), ("oneness", None), ("two.up", "two")]
)
def test_a_site_lies_in_the_block_whose_path_its_own_begins_with(path, block):
    model = Model(
        lambda self, x: self.two(self.one(self.oneness(self.stem(x)))), stem=nn.Linear(6, 6), one=Block(),
        oneness=nn.Linear(6, 6), two=Block(),
    )  # fmt: skip
    anatomy = anatomy_of(model)
    assert {site.path: anatomy.block_of(site) for site in anatomy.layers}[path] == block


def test_of_blocks_in_blocks_a_site_lies_in_the_inner_one():
    inner = Model(lambda self, x: x + self.o(self.block(self.i(x))), i=nn.Linear(6, 6), block=Block(),
                  o=nn.Linear(6, 6))  # fmt: skip
    anatomy = anatomy_of(Model(lambda self, x: self.outer(x), outer=inner))
    found = {site.path: anatomy.block_of(site) for site in anatomy.layers}
    assert found == {"outer.i": "outer", "outer.block.up": "outer.block", "outer.block.down": "outer.block",
                     "outer.o": "outer"}  # fmt: skip


def test_in_a_model_that_adds_itself_all_lies_in_the_block_of_the_model():
    anatomy = anatomy_of(Model(lambda self, x: x + self.a(x), a=nn.Linear(6, 6)))
    assert [anatomy.block_of(site) for site in anatomy.layers] == [""]


# -- stem and skips ----------------------------------------------------------------------------------------------------


def test_the_stem_is_what_runs_before_the_first_block():
    anatomy = anatomy_of(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6), Block(), Block(), nn.Linear(6, 2)))
    assert names(anatomy.stem) == ["0", "2"]


def test_the_stem_ends_where_the_outer_of_two_blocks_begins():
    def forward(self, x):
        x = self.stem(x)
        return x + self.o(self.inner(self.i(x)))

    model = Model(forward, stem=nn.Linear(6, 6), i=nn.Linear(6, 6), inner=Block(), o=nn.Linear(6, 6))
    assert names(anatomy_of(model).stem) == ["stem"]


def test_a_projection_in_front_of_the_first_branch_is_a_skip_and_no_stem():
    def forward(self, x):
        x = self.stem(x)
        way = self.skip(x)
        return self.b(F.relu(self.a(x))) + way

    model = Model(forward, stem=nn.Linear(6, 6), skip=nn.Linear(6, 6), a=nn.Linear(6, 8), b=nn.Linear(8, 6))
    anatomy = anatomy_of(model)
    assert (names(anatomy.stem), names(anatomy.skips)) == (["stem"], ["skip"])


def test_without_joins_there_is_no_stem_and_no_skip():
    anatomy = anatomy_of(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2)))
    assert (anatomy.joins, anatomy.blocks, anatomy.stem, anatomy.skips) == ([], [], [], [])


# -- heads -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forward", "heads"),
    [
        (lambda self, x: self.b(self.a(x)), ["b"]),
        (lambda self, x: F.log_softmax(self.b(self.a(x)), 1).reshape(-1, 2, 3).transpose(0, 1), ["b"]),
        (lambda self, x: torch.sigmoid(self.b(self.a(x))) * 10 - 5, ["b"]),
        (lambda self, x: (self.a(x), self.b(x)), ["a", "b"]),
        (lambda self, x: {"one": self.a(F.relu(x)), "two": [self.b(x), x]}, ["a", "b"]),
        (lambda self, x: (self.b(self.a(x)), x), ["b"]),
        (lambda self, x: self.a(x) - self.b(x), ["b"]),
        (lambda self, x: x + self.b(self.a(x)), ["b"]),
        (lambda self, x: self.b(self.a(x)) * self.scale, ["b"]),
        (lambda self, x: Unseen.apply(self.b(self.a(x))), ["b"]),
        (lambda self, x: self.a(self.a(x)), ["a[1]"]),
        (lambda self, x: x * 2, []),
    ],
    ids=["one", "reshaped", "scaled", "two", "a nest", "beside the input", "a difference", "a join", "by a parameter",
         "by a function that nothing is seen of", "a shared layer", "none"],
)  # fmt: skip
def test_heads_make_the_outputs_or_are_the_last_where_several_parts_do(forward, heads):
    model = Model(forward, a=nn.Linear(6, 6), b=nn.Linear(6, 6), scale=weight(1))
    assert names(anatomy_of(model).heads) == heads


def test_heads_come_in_the_order_of_execution():
    def forward(self, x):
        late, early = self.late, self.early
        second = early(x)
        return late(x), second

    assert names(anatomy_of(Model(forward, late=nn.Linear(6, 2), early=nn.Linear(6, 2))).heads) == ["early", "late"]


def test_a_head_that_is_tied_to_the_embedding_is_a_head_and_the_embedding_an_embedding():
    model = Model(lambda self, x: self.head(self.a(self.table(x))), table=nn.Embedding(7, 6), a=nn.Linear(6, 6),
                  head=nn.Linear(6, 7, bias=False))  # fmt: skip
    model.head.weight = model.table.weight
    anatomy = anatomy_of(model, IDS)
    assert (names(anatomy.embeddings), names(anatomy.layers), names(anatomy.heads)) == (["table"], ["a", "head"],
                                                                                       ["head"])  # fmt: skip


@pytest.mark.parametrize(("training", "heads"), [(False, ["fc"]), (True, ["aux.4", "fc"])])
def test_a_head_that_runs_in_training_only_is_on_the_tape_of_training_only(training, heads):
    assert names(anatomy_of(*specimen("auxiliary_head"), training=training).heads) == heads


def test_a_surgery_sees_what_runs_in_training_only():
    assert names(Surgery.on(*specimen("auxiliary_head")).anatomy.heads) == ["aux.4", "fc"]


# -- gates, hidden layers, recurrent ones ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forward", "gates"),
    [
        (lambda self, x: self.a(x) * torch.sigmoid(self.b(x)), ["b"]),
        (lambda self, x: self.a(x).mul_(F.hardsigmoid(self.b(x))), ["b"]),
        (lambda self, x: self.b(x).softmax(-1).unsqueeze(1) @ self.a(x)[:, :, None], ["b"]),
        (lambda self, x: self.a(x) * F.softmax(self.b(x), -1)[:, :1], ["b"]),
        (lambda self, x: self.a(x) * self.b(x).softmax(-1).topk(1).values, ["b"]),
        (lambda self, x: self.a(x) * self.sigmoid(self.b(x).view(4, 6, 1)).squeeze(-1), ["b"]),
        (lambda self, x: x * torch.sigmoid(self.b(F.relu(self.a(x)))), ["b"]),
        (lambda self, x: self.b(F.silu(self.a(x))), []),
        (lambda self, x: self.b(swish(self.a(x))), []),
        (lambda self, x: self.b(torch.sigmoid(self.a(x)) * 2 - 1), []),
        (lambda self, x: self.b(torch.sigmoid(self.a(x)) * self.scale), []),
        (lambda self, x: torch.sigmoid(self.b(torch.sigmoid(self.a(x)))), []),
        (lambda self, x: self.b(x) * torch.tanh(self.a(x)), []),
    ],
    ids=["a product", "in place", "a matrix product", "a part", "the largest", "reshaped", "of its own input",
         "an activation", "an activation by hand", "by a number", "by a parameter", "an output", "a tanh"],
)  # fmt: skip
def test_a_gate_is_squashed_and_weighs_other_features(forward, gates):
    model = Model(forward, a=nn.Linear(6, 6), b=nn.Linear(6, 6), sigmoid=nn.Sigmoid(), scale=weight(6))
    assert names(anatomy_of(model).gates) == gates


def test_scores_of_attention_are_no_gates():
    assert all(zoo(name).gates == [] for name in ("gpt2", "vit", "llama", "bert"))


@pytest.mark.parametrize("name", ZOO)
def test_hidden_layers_are_all_but_heads_and_gates_in_order(name):
    anatomy = zoo(name)
    others = [*names(anatomy.heads), *names(anatomy.gates)]
    others += [label for label in names(anatomy.layers) if label.endswith("se.fc.0")]  # leads to a gate alone
    assert names(anatomy.hidden) == [label for label in names(anatomy.layers) if label not in others]


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_layers_are_those_of_torch(kind):
    model = Model(lambda self, x: self.head(self.f(x)[0][:, -1]), f=kind(6, 4, batch_first=True), head=nn.Linear(4, 2))
    anatomy = anatomy_of(model, SERIES)
    assert (names(anatomy.recurrent), names(anatomy.layers)) == (["f"], ["head"])


# -- embeddings --------------------------------------------------------------------------------------------------------


class Table(nn.Module):
    """An embedding of one's own."""

    def __init__(self, rows=7, width=6):
        super().__init__()
        self.weight = weight(rows, width)

    def forward(self, ids):
        return self.weight[ids]


class Positions(nn.Module):
    """As many rows of a table as are asked for: no tensor goes in."""

    def __init__(self):
        super().__init__()
        self.weight = weight(5, 6)

    def forward(self, length):
        return self.weight[:length]


def summed(self, x):
    found = self.a(x)
    found += self.b(torch.arange(5))
    return self.c(torch.zeros_like(x)) + found


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda self, x: self.a(x), ["a"]),
        (lambda self, x: self.a(x) + self.b(x % 5), ["a"]),
        (lambda self, x: self.a(x) + self.b(torch.arange(5)), ["a"]),
        (lambda self, x: self.b(torch.arange(5)) + self.a(x), ["a"]),
        (lambda self, x: self.b(self.where) + self.a(x), ["a"]),
        (lambda self, x: self.a(x) * 6**0.5 + self.b(self.where).unsqueeze(0), ["a"]),
        (lambda self, x: self.own(5) + self.a(x), ["a"]),
        (lambda self, x: self.a(x) + self.rows, ["a"]),
        (lambda self, x: self.a(x) + self.b(x % 5) + self.c(x % 2), ["a"]),
        (lambda self, x: self.a(x) + (self.b(x % 5) + self.c(x % 2)), ["a"]),
        (summed, ["a"]),
        (lambda self, x: torch.cat([self.a(x), self.c(x % 2)], -1), ["a", "c"]),
        (lambda self, x: F.relu(self.f(self.a(x))) + self.c(x % 2), ["a", "c"]),
        (lambda self, x: self.a(x) + self.a(x).mean(1, keepdim=True), ["a[0]"]),
        (lambda self, x: self.b(torch.arange(5)), []),
    ],
    ids=["one", "two", "positions", "positions first", "positions of a buffer", "scaled", "positions by their number",
         "a parameter", "three", "a sum of sums", "in place", "side by side", "behind a layer", "the same twice",
         "positions alone"],
)  # fmt: skip
def test_embeddings_are_the_first_of_each_sum_and_made_of_what_is_fed(forward, expected):
    model = Model(
        lambda self, x: self.head(forward(self, x)), a=nn.Embedding(7, 6), b=nn.Embedding(5, 6), c=nn.Embedding(2, 6),
        where=torch.arange(5), own=Positions(), rows=weight(5, 6), f=nn.Linear(6, 6), head=nn.LazyLinear(2),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert names(anatomy_of(model, IDS).embeddings) == expected


class Bag(dict):
    """A mapping of a class of one's own."""


@pytest.mark.parametrize(
    ("forward", "inputs"),
    [
        (lambda self, x: self.a(x), IDS),
        (lambda self, ids, mask: self.a(ids) * mask[..., None], {"mask": torch.ones(2, 5), "ids": IDS}),
        (lambda self, ids: self.a(ids=ids), {"ids": IDS}),
        (lambda self, batch: self.a(batch["ids"]), (Bag(ids=IDS),)),
        (lambda self, batch: self.a(batch["ids"][0]), ({"ids": [IDS, None]},)),
        (lambda self, x: self.a(F.pad(x, (1, 0))[:, :-1]), IDS),
        (lambda self, x: self.a(x.long()), IDS.float()),
        (lambda self, x: self.a((x + torch.arange(2)[:, None]) % 7), IDS),
    ],
)
def test_ids_may_come_as_keywords_in_mappings_and_changed(forward, inputs):
    assert names(anatomy_of(Model(forward, a=Table()), inputs).embeddings) == ["a"]


@pytest.mark.parametrize("table", [nn.Embedding(7, 6), nn.EmbeddingBag(7, 6), Table()])
def test_an_embedding_is_one_of_torch_or_looks_up_rows_by_whole_numbers(table):
    anatomy = anatomy_of(Model(lambda self, x: self.b(self.a(x)), a=table, b=nn.Linear(6, 2)), IDS)
    assert (names(anatomy.embeddings), names(anatomy.layers)) == (["a"], ["b"])


def test_ids_may_be_changed_on_their_way_into_the_model():
    model = Model(lambda self, x, y: torch.cat([self.a(x), self.b(y)], -1), a=nn.Embedding(7, 6), b=Table())
    tape = record(model, (IDS.float(), IDS.float()), forward=lambda model, batch: model(*(x.long() for x in batch)))
    assert names(Anatomy(model, tape).embeddings) == ["a", "b"]


@pytest.mark.parametrize("rows", [5, 7])
def test_a_module_with_an_embedding_and_positions_of_its_own_is_looked_into(rows):
    """The positions are a matrix of its own, and what it puts out is as wide: it is no embedding itself."""
    part = Model(lambda self, x: self.a(x) + self.positions[:5], a=nn.Embedding(7, 6), positions=weight(rows, 6))
    model = Model(lambda self, x: self.block(self.part(x)), part=part, block=Block())
    anatomy = anatomy_of(model, IDS)
    assert (names(anatomy.embeddings), anatomy.blocks) == (["part.a"], ["block"])


# -- concatenations and the bottleneck ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forward", "count"),
    [
        (lambda self, x: torch.cat([x, self.a(x)], 1), 1),
        (lambda self, x: torch.concat([self.a(x), self.b(x)], 1), 1),
        (lambda self, x: torch.cat((torch.cat((x, self.a(x)), 1), self.b(x)), 1), 2),
        (lambda self, x: torch.concatenate([self.a(x), F.relu(x)], dim=1), 1),
        (lambda self, x: torch.cat([self.w.expand(4, 6), self.a(x)], 1), 0),
        (lambda self, x: torch.cat([x[:, 3:], -x[:, :3]], 1), 0),
        (lambda self, x: self.a(torch.cat([x, F.relu(x)], 1)[:, :6]), 0),
        (lambda self, x: torch.cat([self.a(x), self.w.expand(4, 6), torch.zeros(4, 6)], 1), 0),
        (lambda self, x: torch.cat([self.a(x)] * 2, 1), 0),
        (lambda self, x: torch.stack([self.a(x), self.b(x)], 1), 0),
    ],
    ids=["dense", "side by side", "twice", "one way without a layer", "a class token", "rotary", "in front",
         "constants", "the same", "a stack"],
)  # fmt: skip
def test_a_concatenation_puts_together_what_was_computed_at_several_places(forward, count):
    model = Model(forward, a=nn.Linear(6, 6), b=nn.Linear(6, 6), w=weight(1, 6))
    assert len(anatomy_of(model).concatenations) == count


def test_two_towers_share_no_features_that_a_concatenation_could_put_together():
    model = Model(lambda self, x, y: self.head(torch.cat([self.a(x), self.b(y)], 1)), a=mlp(), b=mlp(),
                  head=nn.Linear(12, 2))  # fmt: skip
    assert anatomy_of(model, (X, X + 1)).concatenations == []


def down_and_up(self, x):
    low = F.relu(self.down(F.max_pool1d(x, 2) if self.pooled else x))
    low = F.relu(self.low(low))
    return self.out(torch.cat([x, self.up(low) if hasattr(self, "up") else F.interpolate(low, scale_factor=2)], 1))


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"pooled": True, "down": nn.Conv1d(6, 6, 1), "up": nn.ConvTranspose1d(6, 6, 2, 2)}, ["down", "low"]),
        ({"pooled": True, "down": nn.Conv1d(6, 6, 1)}, ["down", "low"]),
        ({"pooled": False, "down": nn.Conv1d(6, 6, 2, 2)}, ["down", "low"]),
        ({"pooled": False, "down": nn.Conv1d(6, 6, 1), "up": nn.Conv1d(6, 6, 1)}, []),
    ],
    ids=["pooled", "interpolated", "by a stride", "all at one resolution"],
)
def test_the_bottleneck_is_what_lies_at_the_lowest_resolution_under_a_skip(parts, expected):
    anatomy = anatomy_of(Model(down_and_up, **parts, low=nn.Conv1d(6, 6, 1), out=nn.Conv1d(12, 2, 1)), MAPS)
    assert names(anatomy.bottleneck) == expected
    assert len(anatomy.concatenations) == 1


def test_wide_and_narrow_features_are_no_resolutions():
    model = Model(lambda self, x: self.head(torch.cat([x, self.f(x)], -1)), f=mlp(), head=nn.Linear(12, 2))
    assert anatomy_of(model, SERIES).bottleneck == []


# -- the zoo -----------------------------------------------------------------------------------------------------------


@functools.cache
def zoo(name):
    return Surgery.on(*specimen(name)).anatomy


LISTS = ("embeddings", "recurrent", "stem", "skips", "gates", "bottleneck", "heads")
SE = [f"layer{stage}.{block}.se.fc.2" for stage in (1, 2) for block in (0, 1)]
DOWN, SHORTCUT = ["layer2.0.downsample.0"], ["layer2.0.shortcut.0"]
RES = ["layer1.0", "layer1.1", "layer2.0", "layer2.1"]


def row(heads, blocks="", each=1, cats=0, **lists):
    """The parts of a specimen: its heads, its blocks with so many joins in each, and lists of paths."""
    found = {what: path.split() if isinstance(path, str) else path for what, path in lists.items()}
    empty = {what: [] for what in LISTS}
    counts = {"each": each, "concatenations": cats}
    return empty | found | counts | {"heads": heads.split(), "blocks": blocks.split()}


PARTS = {
    "mlp": row("4"),
    "mlp_functional": row("fc3"),
    "mlp_dropout": row("6"),
    "cnn_1d": row("7"),
    "cnn_2d": row("fc3"),
    "vgg_batch_norm": row("classifier.6"),
    "autoencoder": row("decoder.2"),
    "generator": row("main.6"),
    "spectral_norm": row("5"),
    "lazy": row("7"),
    "functional_weights": row(""),
    "resnet": row("fc", " ".join(RES), stem="conv1", skips=DOWN),
    "resnet_bottleneck": row("fc", " ".join(RES), stem="conv1", skips=DOWN),
    "resnet_squeeze": row("fc", " ".join(RES), stem="conv1", skips=DOWN, gates=SE),
    "resnet_preactivation": row("linear", " ".join(RES), stem="conv1", skips=SHORTCUT),
    "wide_resnet": row("linear", " ".join(RES), stem="conv1", skips=SHORTCUT),
    "resnet_plain": row("head", "blocks.0 blocks.1", stem="stem"),
    "convnext": row("head", "stages.0 stages.1", stem="stem.0"),
    "mobilenet": row("classifier.1", "features.2",
                     stem="features.0.0 features.1.conv.0.0 features.1.conv.1.0 features.1.conv.2"),
    "densenet": row("classifier", cats=4),
    "inception": row("fc", cats=2),
    "unet": row("conv", cats=2, bottleneck="bottleneck.0 bottleneck.3"),
    "mlp_mixer": row("head", "blocks.0 blocks.1", 2, stem="patch_embed"),
    "vit": row("head", "layers.0 layers.1", 2, stem="conv_proj"),
    "transformer_encoder": row("fc", "encoder.layers.0 encoder.layers.1", 2, embeddings="embedding"),
    "multihead_attention": row("head", "", stem="input_proj") | {"blocks": [""], "each": 2},
    "gpt": row("lm_head", "blocks.0 blocks.1", 2, embeddings="tok_emb"),
    "gpt2": row("lm_head", "h.0 h.1", 2, embeddings="wte"),
    "bert": row("classifier", "layer.0 layer.1", 2, embeddings="embeddings.word_embeddings"),
    "llama": row("lm_head", "layers.0 layers.1", 2, embeddings="embed_tokens"),
    "lstm": row("fc", embeddings="embedding", recurrent="lstm"),
    "gru": row("head", recurrent="gru"),
    "embedding_bag": row("fc2", embeddings="embedding"),
    "mapping_inputs": row("classifier", embeddings="word_embeddings"),
    "siamese": row("head"),
    "recurrent_depth": row("head"),
    "auxiliary_head": row("aux.4 fc"),
    "mixture_of_experts": row("head", gates="gate"),
    "graph": row("head"),
    "two_heads": row("class_head box_head"),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in ZOO if name != "encoder_decoder"])
def test_a_specimen_has_the_parts_that_an_expert_sees(name):
    anatomy, expected = zoo(name), PARTS[name]
    found = {what: names(getattr(anatomy, what)) for what in LISTS}
    found |= {"blocks": anatomy.blocks, "concatenations": len(anatomy.concatenations), "each": expected["each"]}
    assert found == expected
    assert [join.block for join in anatomy.joins] == [b for b in anatomy.blocks for _ in range(expected["each"])]


def test_an_encoder_and_a_decoder_have_an_embedding_each_and_joins_around_every_attention():
    anatomy = zoo("encoder_decoder")
    assert names(anatomy.embeddings) == ["src_embedding", "tgt_embedding"]
    assert [join.ends[0].path.rpartition("layers.0.")[2] for join in anatomy.joins] == [
        "self_attn", "linear2", "self_attn", "multihead_attn", "linear2",
    ]  # fmt: skip


# -- weight layers, norms and embeddings: one by one -------------------------------------------------------------------


class Conv1D(nn.Module):
    """A linear layer whose weight is stored as (inputs, outputs)."""

    def __init__(self, start, end):
        super().__init__()
        self.weight, self.bias = weight(start, end), nn.Parameter(torch.zeros(end))

    def forward(self, x):
        return x @ self.weight + self.bias


class OwnConv(nn.Module):
    """A convolution of one's own."""

    def __init__(self):
        super().__init__()
        self.kernel = weight(4, 6, 3)

    def forward(self, x):
        return F.conv1d(x, self.kernel)


class RMSNorm(nn.Module):
    """A norm of one's own."""

    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))

    def forward(self, x):
        return self.weight * x * x.square().mean(-1, keepdim=True).rsqrt()


class NormedLinear(nn.Linear):
    """A linear layer over normed features."""

    def forward(self, x):
        return super().forward(F.normalize(x))


class ConvNorm(nn.Module):
    """A container that is called after a norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(6, 6, 1), nn.BatchNorm1d(6)

    def forward(self, x):
        return self.norm(self.conv(x))


class Scale(nn.Module):
    """A factor for each position and feature."""

    def __init__(self):
        super().__init__()
        self.weight = weight(5, 6)

    def forward(self, x):
        return x * self.weight


class Two(nn.Module):
    """Two layers in one module, by parameters."""

    def __init__(self):
        super().__init__()
        self.up, self.down = weight(8, 6), weight(6, 8)

    def forward(self, x):
        return F.linear(F.relu(F.linear(x, self.up)), self.down)


NONE, LAYER, NORM, EMBEDDING = (), ("layer",), ("norm",), ("embedding",)
KINDS = [
    (nn.Linear(6, 4), X, LAYER),
    (nn.Linear(6, 4), X[0], LAYER),
    (nn.Linear(6, 6), SERIES, LAYER),
    (nn.Conv1d(6, 4, 3), MAPS, LAYER),
    (nn.Conv1d(6, 4, 3), MAPS[0], LAYER),
    (nn.ConvTranspose1d(6, 4, 3), MAPS, LAYER),
    (Conv1D(6, 4), X, LAYER),
    (Conv1D(6, 4), X[0], LAYER),
    (Conv1D(6, 6), SERIES, LAYER),
    (OwnConv(), MAPS, LAYER),
    (NormedLinear(6, 6), X, LAYER),
    (parametrizations.weight_norm(nn.Linear(6, 4)), X, LAYER),
    (parametrizations.spectral_norm(nn.Linear(6, 4)), X, LAYER),
    (parametrizations.orthogonal(nn.Linear(6, 6)), X, LAYER),
    (parametrizations.weight_norm(Conv1D(6, 4)), X, LAYER),
    (parametrizations.spectral_norm(OwnConv(), "kernel"), MAPS, LAYER),
    (old(nn.utils.weight_norm, Conv1D(6, 4)), X, LAYER),
    (old(nn.utils.spectral_norm, Conv1D(6, 4)), X, LAYER),
    (prune.l1_unstructured(Conv1D(6, 4), "weight", 0.5), X, LAYER),
    (nn.LayerNorm(6), X, NORM),
    (nn.LayerNorm((5, 6)), SERIES, NORM),
    (nn.LayerNorm((6, 6)), SERIES[:, [0, 0, 0, 0, 0, 0]], NORM),
    (nn.BatchNorm1d(6), X, NORM),
    (nn.InstanceNorm1d(6), MAPS, NORM),
    (nn.GroupNorm(2, 6), MAPS, NORM),
    (nn.RMSNorm(6), X, NORM),
    (nn.LocalResponseNorm(2), MAPS, NORM),
    (RMSNorm(6), X, NORM),
    (RMSNorm(5, 6), SERIES, NORM),
    (RMSNorm(6, 6), SERIES[:, [0, 0, 0, 0, 0, 0]], NORM),
    (ConvNorm(), MAPS, NONE),
    (nn.Embedding(7, 6), IDS, EMBEDDING),
    (nn.EmbeddingBag(7, 6), IDS, EMBEDDING),
    (Table(), IDS, EMBEDDING),
    (parametrizations.weight_norm(Table()), IDS, EMBEDDING),
    (Scale(), SERIES, NONE),
    (Two(), X, NONE),
    (mlp(), X, NONE),
    (nn.PReLU(6), X, NONE),
    (nn.Bilinear(6, 6, 4), (X, X), NONE),
    (nn.LSTM(6, 6, batch_first=True), SERIES, NONE),
    (nn.GRUCell(6, 6), X, NONE),
    (nn.MultiheadAttention(6, 2, batch_first=True), (SERIES,) * 3, NONE),
    (nn.ReLU(), X, NONE),
    (nn.Identity(), X, NONE),
]


@pytest.mark.parametrize(("module", "inputs", "kinds"), KINDS, ids=lambda value: type(value).__name__)
def test_a_call_is_a_weight_layer_a_norm_or_an_embedding_by_what_it_does(module, inputs, kinds):
    (site, *_) = sites_of(module, record(module, inputs), (type(module),))
    tests = {"layer": is_weight_layer, "norm": is_norm, "embedding": is_embedding}
    assert tuple(kind for kind, test in tests.items() if test(site)) == kinds


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(3, 2), (2, 3)),
        (nn.Conv2d(3, 2, 5), (2, 3, 5, 5)),
        (Conv1D(3, 2), (3, 2)),
        (OwnConv(), (4, 6, 3)),
        (parametrizations.weight_norm(nn.Linear(3, 2)), (2, 3)),
        (parametrizations.weight_norm(nn.Linear(1, 2)), (2, 1)),
        (parametrizations.weight_norm(nn.Conv1d(3, 2, 5), dim=1), (2, 3, 5)),
        (parametrizations.spectral_norm(nn.Linear(3, 2)), (2, 3)),
        (old(nn.utils.weight_norm, nn.Linear(3, 2)), (2, 3)),
        (old(nn.utils.spectral_norm, nn.Linear(3, 2)), (2, 3)),
        (prune.random_unstructured(nn.Linear(3, 2), "weight", 0.5), (2, 3)),
        (prune.random_unstructured(prune.identity(nn.Linear(3, 2), "bias"), "weight", 0.5), (2, 3)),
        (nn.LayerNorm((3, 2), bias=False), (3, 2)),
        (nn.LayerNorm((3, 2)), None),
        (nn.LayerNorm(3), None),
        (nn.LayerNorm(3, elementwise_affine=False), None),
        (nn.ReLU(), None),
        (Two(), None),
        (nn.LSTM(3, 2), None),
        (nn.Sequential(nn.Linear(3, 2)), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_shape_of_a_weight_is_that_of_the_one_weight_however_it_is_computed(module, shape):
    assert weight_shape(module) == shape


def test_layers_are_named_call_by_call_in_the_order_of_execution():
    model = Model(lambda self, x: self.b(self.a(self.b(self.b(x)))), a=nn.Linear(6, 6), b=nn.Linear(6, 6))
    assert names(anatomy_of(model).layers) == ["b[0]", "b[1]", "a", "b[2]"]


def test_norms_are_named_in_the_order_of_execution_also_those_of_ones_own():
    model = Model(lambda self, x: self.a(self.b(self.c(x))), a=nn.LayerNorm(6), b=RMSNorm(6), c=nn.BatchNorm1d(6))
    assert names(anatomy_of(model).norms) == ["c", "b", "a"]


def test_maps_are_layers_recurrent_ones_attention_and_functions_of_parameters():
    def forward(self, x):
        x = self.rnn(self.linear(x))[0]
        x = F.linear(self.attention(x, x, x)[0], self.w)
        x = self.norm(x @ self.w.t()) @ x.transpose(1, 2)
        return F.relu(x) * self.scale

    model = Model(
        forward, linear=nn.Linear(6, 6), rnn=nn.GRU(6, 6), norm=nn.LayerNorm(6), scale=weight(1),
        attention=nn.MultiheadAttention(6, 2, batch_first=True), w=weight(6, 6), v=weight(2, 2),
    )  # fmt: skip
    anatomy = anatomy_of(model, SERIES)
    assert [anatomy.tape.events[n].name for n in sorted(anatomy.maps)] == [
        "Linear", "GRU", "MultiheadAttention", "linear", "matmul",
    ]  # fmt: skip


# -- what asking leaves alone ------------------------------------------------------------------------------------------


EVERYTHING = ("layers", "norms", "embeddings", "heads", "maps", "gates", "hidden", "recurrent", "concatenations",
              "joins", "blocks", "stem", "skips", "bottleneck")  # fmt: skip


def ask(anatomy):
    for what in EVERYTHING:
        getattr(anatomy, what)
    for site in anatomy.layers:
        anatomy.block_of(site)


def test_everything_public_is_asked_for_here():
    public = {name for name in vars(Anatomy) if not name.startswith("_")}
    assert public == {*EVERYTHING, "block_of", "model", "tape"} - {"model", "tape"}


class Trap(nn.Module):
    """A computed weight that may be looked at only while the model runs."""

    armed = False

    def forward(self, weight):
        assert not self.armed, "the weight was computed"
        return weight * 2


def test_nothing_that_is_computed_is_read():
    model = nn.Sequential(nn.Linear(6, 6), Block(), Conv1D(6, 6), nn.LayerNorm(6), RMSNorm(6), nn.Linear(6, 2))
    traps = [Trap() for _ in model]
    for module, trap in zip((model[0], model[1].up, model[2], model[3], model[4], model[5]), traps, strict=True):
        parametrize.register_parametrization(module, "weight", trap)
    anatomy = anatomy_of(model)
    for trap in traps:
        trap.armed = True
    ask(anatomy)
    assert names(anatomy.layers) == ["0", "1.up", "1.down", "2", "5"]


@pytest.mark.parametrize(
    "change",
    [
        parametrizations.spectral_norm, parametrizations.weight_norm,
        functools.partial(old, nn.utils.spectral_norm), functools.partial(old, nn.utils.weight_norm),
    ],
    ids=["spectral norm", "weight norm", "old spectral norm", "old weight norm"],
)  # fmt: skip
@pytest.mark.parametrize("training", [True, False])
def test_asking_for_everything_changes_no_bit(change, training, untouched):
    model = nn.Sequential(change(nn.Linear(6, 6)), nn.BatchNorm1d(6), Block(), change(Conv1D(6, 2)))
    model[2].up = change(model[2].up)
    with untouched(model):
        anatomy = anatomy_of(model, X, training)
        ask(anatomy)
    assert (names(anatomy.stem), names(anatomy.heads), anatomy.blocks) == (["0"], ["3"], ["2"])


@pytest.mark.parametrize("name", ZOO)
def test_asking_a_specimen_for_everything_changes_no_bit(name, untouched):
    model, inputs = specimen(name)
    model.train()
    with untouched(model):
        ask(Surgery.on(model, inputs).anatomy)


# -- what tricks attached ----------------------------------------------------------------------------------------------


def summary(anatomy):
    """All that an anatomy says, without the numbers of events."""
    lists = {what: names(getattr(anatomy, what)) for what in (*LISTS, "layers", "norms", "hidden")}
    found = [(join.block, names(join.branch), names(join.ends), names(join.skip)) for join in anatomy.joins]
    return lists | {"joins": found, "concatenations": len(anatomy.concatenations)}


def wrapped():
    inner = Model(lambda self, x: F.relu(self.layer(x)), layer=nn.Linear(6, 6))
    return Model(
        lambda self, x: self.head(self.norm(self.inner(self.block(self.own(x))))), own=Conv1D(6, 6), block=Block(),
        inner=inner, norm=RMSNorm(6), head=nn.Linear(6, 2),
    )  # fmt: skip


@pytest.mark.parametrize("host", ["own", "block", "block.up", "block.down", "inner", "inner.layer", "norm", "head"])
@pytest.mark.parametrize(
    "attach",
    [
        lambda surgery, site: surgery.insert(site, nn.Dropout(0.5), Rank.DROPOUT),
        lambda surgery, site: surgery.insert(site, nn.LayerNorm(site.output_shape[-1]), Rank.NORM),
        lambda surgery, site: surgery.insert(site, nn.Linear(*site.output_shape[-1:] * 2), Rank.NORM),
        lambda surgery, site: surgery.insert_before(site, nn.Dropout(0.5), Rank.DROPOUT),
        lambda surgery, site: surgery.shortcut(site, site, nn.Linear(site.input_shape[-1], site.output_shape[-1])),
        lambda surgery, site: surgery.shortcut(site, site, mlp(6)) if site.input_shape == site.output_shape else None,
    ],
    ids=["dropout", "norm", "layer", "dropout before", "shortcut", "long shortcut"],
)
def test_what_tricks_attached_is_not_seen(host, attach):
    model = wrapped()
    surgery = Surgery.on(model, X)
    before = summary(surgery.anatomy)
    attach(surgery, next(site for site in surgery.sites(nn.Module) if site.path == host))
    assert summary(anatomy_of(model)) == before


def test_a_real_join_right_behind_an_attachment_is_seen():
    model = wrapped()
    surgery = Surgery.on(model, X)
    for path in ("block", "block.down"):
        site = next(site for site in surgery.sites(nn.Module) if site.path == path)
        surgery.insert_before(site, nn.Dropout(0.5), Rank.DROPOUT)
        surgery.insert(site, nn.Dropout(0.5), Rank.DROPOUT)
    assert anatomy_of(model).blocks == ["block"]


@pytest.mark.parametrize("name", ["resnet", "gpt2", "unet", "lstm", "bert", "mixture_of_experts"])
def test_a_specimen_with_a_dropout_behind_every_layer_looks_as_before(name):
    model, inputs = specimen(name)
    surgery = Surgery.on(model, inputs)
    before = summary(surgery.anatomy)
    for site in (*surgery.anatomy.layers, *surgery.anatomy.embeddings, *surgery.anatomy.recurrent):
        surgery.insert(site, nn.Dropout(0.5), Rank.DROPOUT)
    assert call(model, inputs) is not None
    assert summary(Surgery.on(model, inputs).anatomy) == before


def test_an_anatomy_is_that_of_its_tape_and_a_replaced_norm_stays_one():
    model = wrapped()
    surgery = Surgery.on(model, X)
    before = surgery.anatomy
    surgery.convert(next(site for site in surgery.sites(RMSNorm) if site.path == "norm"), nn.LayerNorm(6))
    assert surgery.anatomy is not before
    assert summary(surgery.anatomy) == summary(before)
    assert type(surgery.anatomy.norms[0].module) is nn.LayerNorm
