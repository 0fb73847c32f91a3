"""Dropout: equal to torch's own under the same seed, at the right places, and nowhere else."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from trickbox_tricks.dropout import Dropout, StreamDropout, channel_dropout, element_dropout
from trickbox_tricks.normalization import BatchNorm
from trickbox_tricks.residual import Residual

from trickbox import ConfigError, NoEffectError, apply, attach, explain, undo
from trickbox.surgery.draws import mixed
from trickbox.tasks.waveforms import PlainNet
from trickbox.testing.zoo import specimen


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dropouts(model: nn.Module) -> dict[str, StreamDropout]:
    return {name: module for name, module in model.named_modules() if isinstance(module, StreamDropout)}


def set_time(model: nn.Module, time: int) -> None:
    """Move the clock of all dropouts: the next forward draws what belongs to that time."""
    for module in dropouts(model).values():
        module.draws.clock.set(time)


def seed_of(module: StreamDropout, time: int, call: int = 0) -> int:
    """The seed of one call of a layer at a time of the clock, in which it was called before so often."""
    return mixed(module.draws.key, time, call)


class NotebookDropoutNet(PlainNet):
    """The lesson's hand-written network: dropout behind every pool and behind the first linear layer's ReLU."""

    seeds: tuple[int, ...] = ()
    """Of torch's own generator, before each dropout."""

    def forward(self, x: Tensor) -> Tensor:
        seeds = iter(self.seeds)
        torch.manual_seed(next(seeds))
        x = F.dropout(self.pool(F.relu(self.conv1(x))), 0.1, self.training)
        torch.manual_seed(next(seeds))
        x = F.dropout(self.pool(F.relu(self.conv2(x))), 0.1, self.training)
        x = x.view(x.shape[0], -1)
        torch.manual_seed(next(seeds))
        return self.fc2(F.dropout(F.relu(self.fc1(x)), 0.3, self.training))


class FunctionalPools(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.head = nn.Conv1d(1, 4, 3, padding=1), nn.Linear(16, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool1d(F.relu(self.conv(x)), 2)
        return self.head(F.dropout(F.relu_(self.fc(x.flatten(1))), 0.2, self.training))


# -- the functions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_elements_are_those_of_torch(p: float) -> None:
    x = torch.randn(5, 4, 7)
    torch.manual_seed(3)
    assert torch.equal(element_dropout(x, p, seeded(3)), F.dropout(x, p))


@pytest.mark.parametrize(("shape", "theirs"), [((5, 4, 7), F.dropout1d), ((5, 4, 3, 2), F.dropout2d)])
def test_channels_are_those_of_torch(shape: tuple[int, ...], theirs: Any) -> None:
    x = torch.randn(shape)
    torch.manual_seed(3)
    assert torch.equal(channel_dropout(x, 0.4, seeded(3)), theirs(x, 0.4))


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("drop", [element_dropout, channel_dropout])
def test_share_of_zeros_mean_and_second_moment(drop: Any, p: float) -> None:
    n = 20_000
    dropped = drop(torch.ones(n, 1, 1), p, seeded()).double()
    assert abs((dropped == 0).double().mean() - p) < 4 * math.sqrt(p * (1 - p) / n)
    assert dropped.mean().item() == pytest.approx(1, abs=4 * math.sqrt(p / (1 - p) / n))
    assert dropped.square().mean().item() == pytest.approx(1 / (1 - p), rel=0.05)


@pytest.mark.parametrize("pool", [nn.MaxPool1d(2), nn.AvgPool1d(2)])
def test_channel_dropout_commutes_with_pools(pool: nn.Module) -> None:
    x = torch.randn(6, 8, 10)
    assert torch.equal(pool(channel_dropout(x, 0.5, seeded())), channel_dropout(pool(x), 0.5, seeded()))


# -- where -------------------------------------------------------------------------------------------------------------


def test_after_pool_is_the_hand_written_network_bit_for_bit() -> None:
    model, by_hand, x = PlainNet(), NotebookDropoutNet(), torch.randn(8, 1, 128)
    by_hand.load_state_dict(model.state_dict())
    apply(model, [Dropout(conv=0.1, dense=0.3, where="after_pool")], x)
    first, second = model.pool.trickbox.dropout, model.pool.trickbox.dropout_call1
    by_hand.seeds = tuple(seed_of(layer, 5) for layer in (first, second, model.fc1.trickbox.dropout))
    set_time(model, 5)
    ours = model(x)
    theirs = by_hand(x)
    assert torch.equal(ours, theirs)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    expected = dict(by_hand.named_parameters())
    assert all(torch.equal(p.grad, expected[name].grad) for name, p in model.named_parameters())


def test_after_layer_spares_the_head_and_has_two_rates() -> None:
    model = apply(PlainNet(), [Dropout(0.2, dense=0.4, kind="channel")], torch.randn(4, 1, 128))
    assert {name: (module.p, module.kind) for name, module in dropouts(model).items()} == {
        "conv1.trickbox.dropout": (0.2, "channel"),
        "conv2.trickbox.dropout": (0.2, "channel"),
        "fc1.trickbox.dropout": (0.4, "element"),
    }


def test_before_head_drops_its_input() -> None:
    model, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)), torch.randn(9, 6)
    apply(model, [Dropout(0.5, where="before_head")], x)
    assert list(dropouts(model)) == ["2.trickbox.dropout"]
    set_time(model, 1)
    for call in range(2):
        generator = seeded(seed_of(model[2].trickbox.dropout, 1, call))
        hidden = element_dropout(model[:2](x), 0.5, generator)
        assert torch.equal(model(x), F.linear(hidden, model[2].weight, model[2].bias))


@pytest.mark.parametrize("tricks", [[Dropout(0.5), BatchNorm()], [BatchNorm(), Dropout(0.5)]])
def test_never_between_a_layer_and_its_norm(tricks: list[Any]) -> None:
    x = torch.randn(4, 1, 9)
    own = nn.Sequential(nn.Conv1d(1, 3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Flatten(), nn.Linear(21, 2))
    assert list(dropouts(apply(own, [Dropout(0.5)], x))) == ["1.trickbox.dropout"]
    added = nn.Sequential(nn.Conv1d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(21, 2))
    apply(added, tricks, x)
    set_time(added, 1)
    normed = F.batch_norm(F.conv1d(x, added[0].weight, added[0].bias), None, None, training=True)
    generator = seeded(seed_of(added[0].trickbox.dropout, 1))
    assert torch.allclose(added[0](x), element_dropout(normed, 0.5, generator), atol=1e-5)


def test_the_branch_is_dropped_and_not_the_sum() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(3, 4)
    apply(model, [Residual(), Dropout(0.5)], x)
    set_time(model, 2)
    generator = seeded(seed_of(model[1].trickbox.dropout, 2))
    branch = element_dropout(F.linear(x, model[1].weight, model[1].bias), 0.5, generator)
    assert torch.equal(model[1](x), branch + x)


def test_each_call_of_a_shared_layer_has_its_own() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.shared(self.shared(x).relu()).relu())

    model, x = Twice(), torch.randn(3, 4)
    linear = copy.deepcopy(model.shared)
    apply(model, [Dropout(0.5)], x)
    assert list(dropouts(model)) == ["shared.trickbox.dropout", "shared.trickbox.dropout_call1"]
    set_time(model, 3)
    hidden = x
    for layer in dropouts(model).values():
        hidden = element_dropout(linear(hidden), 0.5, seeded(seed_of(layer, 3))).relu()
    assert torch.equal(model(x), model.head(hidden))


# -- what the model has already ----------------------------------------------------------------------------------------


def test_a_dropout_module_is_adjusted_and_none_is_added() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2))
    keys = list(model.state_dict())
    apply(model, [Dropout(0.2)], torch.randn(3, 4))
    assert {name: module.p for name, module in dropouts(model).items()} == {"2": 0.2}
    assert list(model.state_dict()) == keys
    undo(model)
    assert type(model[2]) is nn.Dropout
    assert model[2].p == 0.5


def test_a_dropout_module_in_front_of_the_head_is_adjusted() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    apply(model, [Dropout(0.2, where="before_head")], torch.randn(3, 4))
    assert list(dropouts(model)) == ["1"]


def test_a_transformer_layer_keeps_its_two_dropouts_and_gets_no_third() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)
    model = apply(nn.Sequential(layer, nn.Linear(8, 2)), [Dropout(0.1)], torch.randn(3, 5, 8))
    assert list(dropouts(model)) == ["0.dropout1", "0.dropout2"]  # at the ends of the two branches
    assert model(torch.randn(3, 5, 8)).shape == (3, 5, 2)


class Shared(PlainNet):
    """One dropout module serves two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.pool(F.relu(self.conv1(x))))
        x = self.pool(F.relu(self.conv2(x))).flatten(1)
        return self.fc2(self.drop(F.relu(self.fc1(x))))


def test_one_dropout_for_two_layers_draws_a_mask_for_each() -> None:
    model, x = Shared(), torch.randn(4, 1, 128)
    apply(model, [Dropout(conv=0.2, dense=0.2)], x)
    seen: list[Tensor] = []
    model.drop.register_forward_hook(lambda _, args, output: seen.extend((args[0], output)))
    set_time(model, 4)
    model(x)
    for call in range(2):
        expected = element_dropout(seen[2 * call], 0.2, seeded(seed_of(model.drop, 4, call)))
        assert torch.equal(seen[2 * call + 1], expected)


def test_one_dropout_for_two_layers_takes_one_rate() -> None:
    x = torch.randn(4, 1, 128)
    assert "serves another layer too" in explain(Shared(), x, [Dropout(conv=0.1, dense=0.3)])
    model = apply(Shared(), [Dropout(0.2)], x)
    assert list(dropouts(model)) == ["conv2.trickbox.dropout", "drop"]


def test_a_functional_dropout_is_replaced_bit_for_bit() -> None:
    model, x = FunctionalPools(), torch.randn(3, 1, 8)
    apply(model, [Dropout(0.4)], x)
    assert list(dropouts(model)) == ["conv.trickbox.dropout", "trickbox.dropout_dropout"]
    set_time(model, 3)
    first, second = dropouts(model).values()
    torch.manual_seed(seed_of(first, 3))
    hidden = F.max_pool1d(F.relu(F.dropout(F.conv1d(x, model.conv.weight, model.conv.bias, padding=1), 0.4)), 2)
    hidden = F.relu(F.linear(hidden.flatten(1), model.fc.weight, model.fc.bias))
    torch.manual_seed(seed_of(second, 3))
    assert torch.equal(model(x), F.linear(F.dropout(hidden, 0.4), model.head.weight, model.head.bias))


def test_a_dropout_that_cannot_be_changed_is_left_and_reported() -> None:
    only = nn.Sequential(nn.Linear(4, 4), nn.AlphaDropout(0.5), nn.Linear(4, 2))
    with pytest.raises(NoEffectError, match="AlphaDropout follows"):
        apply(only, [Dropout()], torch.randn(3, 4))


# -- inside functions --------------------------------------------------------------------------------------------------


class HandWrittenAttention(nn.Module):
    """The attention of the small GPT as it is written with a dropout on its probabilities."""

    def __init__(self, qkv: nn.Module, proj: nn.Module, seed: int, p: float) -> None:
        super().__init__()
        self.qkv, self.proj, self.seed, self.p = qkv, proj, seed, p

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (4, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        scores = q @ k.transpose(-2, -1) * (1 / math.sqrt(4))
        scores = scores.masked_fill(~torch.ones(12, 12).tril().bool(), -math.inf)
        torch.manual_seed(self.seed)
        return self.proj((F.dropout(scores.softmax(-1), self.p) @ v).transpose(1, 2).flatten(2))


def test_the_probabilities_of_a_small_gpt_are_dropped_as_in_the_hand_written_one_bit_for_bit() -> None:
    model, tokens = specimen("gpt")
    expected, _ = specimen("gpt")
    apply(model, [Dropout(0.3, where="attention")], tokens)
    found = dropouts(model)
    assert list(found) == [f"blocks.{i}.attn.trickbox.dropout_scaled_dot_product_attention" for i in (0, 1)]
    set_time(model, 7)
    for block, layer in zip(expected.blocks, found.values(), strict=True):
        block.attn = HandWrittenAttention(block.attn.qkv, block.attn.proj, seed_of(layer, 7), 0.3)
    outputs = [net.train()(tokens) for net in (model, expected)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    grads = dict(expected.named_parameters())
    assert all(torch.equal(p.grad, grads[name].grad) for name, p in model.named_parameters())
    plain, _ = specimen("gpt")
    assert torch.equal(model.eval()(tokens), plain.eval()(tokens))


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama", "vit", "multihead_attention", "encoder_decoder"])
def test_every_attention_can_be_dropped_and_is_plain_in_eval_mode(name: str) -> None:
    from trickbox.nest import call

    model, x = specimen(name)
    model.eval()
    before = call(model, x)
    apply(model, [Dropout(0.5, where="attention")], x)
    torch.testing.assert_close(call(model, x), before)
    model.train()
    for module in model.modules():  # the model's own dropouts, which would differ from call to call
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert not torch.allclose(call(model, x), before, atol=1e-4)
    undo(model)
    assert not any("trickbox" in name or "forward" in vars(m) for name, m in model.named_modules())


def test_multi_head_attention_is_the_formula_under_the_same_mask() -> None:
    torch.manual_seed(1)
    layer, x = nn.MultiheadAttention(8, 2, dropout=0.9, batch_first=True), torch.randn(3, 5, 8)
    apply(layer, [Dropout(0.25, where="attention")], (x, x, x))
    set_time(layer, 2)
    (drop,) = dropouts(layer).values()
    q, k, v = (
        p.unflatten(-1, (2, 4)).transpose(1, 2)
        for p in F.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1)
    )
    torch.manual_seed(seed_of(drop, 2))
    probabilities = F.dropout((q @ k.mT / 2).softmax(-1), 0.25)
    output, weights = layer(x, x, x)
    torch.testing.assert_close(output, layer.out_proj((probabilities @ v).transpose(1, 2).flatten(2)))
    torch.testing.assert_close(weights, probabilities.mean(1))


def locked(x: Tensor, seed: int, p: float, time: int) -> Tensor:
    """One mask for all times, drawn by torch's own generator."""
    torch.manual_seed(seed)
    shape = [1 if axis == time else length for axis, length in enumerate(x.shape)]
    return x * torch.empty(shape).bernoulli_(1 - p).div_(1 - p)


class Recurrent(nn.Module):
    def __init__(self, kind: Any, batch_first: bool, **settings: Any) -> None:
        super().__init__()
        self.rnn = kind(4, 6, num_layers=2, batch_first=batch_first, **settings)
        self.head = nn.Linear(12 if self.rnn.bidirectional else 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_two_recurrent_layers_are_the_hand_written_ones_with_locked_masks(
    kind: Any, both: bool, batch_first: bool
) -> None:
    model, x = Recurrent(kind, batch_first, bidirectional=both, dropout=0.9), torch.randn(5, 5, 4)
    apply(model, [Dropout(0.3)], x)
    inside, behind = dropouts(model).values()
    assert [name.rpartition(".")[2] for name in dropouts(model)] == [f"dropout_{model.rnn.mode.lower()}", "dropout"]
    set_time(model, 4)
    layers = [kind(size, 6, batch_first=batch_first, bidirectional=both) for size in (4, 12 if both else 6)]
    for number, layer in enumerate(layers):
        layer.load_state_dict(
            {name: getattr(model.rnn, name.replace("l0", f"l{number}")) for name in layer.state_dict()}
        )
    hidden = locked(layers[0](x)[0], seed_of(inside, 4), 0.3, int(batch_first))
    hidden = locked(layers[1](hidden)[0], seed_of(behind, 4), 0.3, int(batch_first))
    output = model(x)
    assert torch.equal(output, model.head(hidden))
    output.sum().backward()
    assert model.rnn.weight_hh_l0.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_last_states_and_packed_sequences_are_those_of_the_layers_one_by_one(kind: Any) -> None:
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = kind(4, 6, num_layers=2, batch_first=True), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Any:
            out, state = self.rnn(pack_padded_sequence(x, [5, 3, 2], batch_first=True))
            return self.head(pad_packed_sequence(out, batch_first=True)[0]), state

    model, x = Packed(), torch.randn(3, 5, 4)
    apply(model, [Dropout(0.4, at=f"rnn:{kind.__name__.lower()}")], x)
    set_time(model, 4)
    (inside,) = dropouts(model).values()
    first, second = (kind(size, 6, batch_first=True) for size in (4, 6))
    for number, layer in enumerate((first, second)):
        layer.load_state_dict(
            {name: getattr(model.rnn, name.replace("l0", f"l{number}")) for name in layer.state_dict()}
        )
    torch.manual_seed(seed_of(inside, 4))
    mask = torch.empty(3, 6).bernoulli_(0.6).div_(0.6)
    hidden, early = first(pack_padded_sequence(x, [5, 3, 2], batch_first=True))
    hidden = pad_packed_sequence(hidden, batch_first=True)[0] * mask[:, None]
    out, late = second(pack_padded_sequence(hidden, [5, 3, 2], batch_first=True))
    found, state = model(x)
    torch.testing.assert_close(found, model.head(pad_packed_sequence(out, batch_first=True)[0]))
    pairs = zip(early, late, strict=True) if kind is nn.LSTM else [(early, late)]
    states = state if kind is nn.LSTM else (state,)
    for whole, parts in zip(states, pairs, strict=True):
        torch.testing.assert_close(whole, torch.stack(parts) if parts[0].ndim == 2 else torch.cat(parts))


def test_between_three_layers_two_masks_are_drawn_in_a_forward() -> None:
    model = nn.LSTM(4, 6, num_layers=3)
    apply(model, [Dropout(0.3, at="(model):lstm")], torch.randn(5, 2, 4))
    (inside,) = dropouts(model).values()
    assert inside.draws.calls == 2


def test_places_inside_can_be_named_and_left_out() -> None:
    model, x = Recurrent(nn.LSTM, True), torch.randn(5, 5, 4)
    apply(model, [Dropout(0.3, not_at="rnn:lstm")], x)
    assert list(dropouts(model)) == ["rnn.trickbox.dropout"]
    gpt, tokens = specimen("gpt")
    apply(gpt, [Dropout(0.3, at=["blocks.0.mlp.1", "blocks.1.attn:scaled_dot_product_attention"])], tokens)
    assert [name.partition(".trickbox")[0] for name in dropouts(gpt)] == ["blocks.0.mlp.1", "blocks.1.attn"]
    with pytest.raises(ConfigError, match=r"no path matches, got 'blocks.\*.attn:sofmax'"):
        apply(specimen("gpt2")[0], [Dropout(at="blocks.*.attn:sofmax")], tokens)


def test_a_container_left_out_is_not_taken_for_what_is_inside_it() -> None:
    model, x = (
        nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 4), nn.Linear(4, 2)),
        torch.randn(3, 4),
    )
    with pytest.raises(ConfigError, match=r"not_at: 0 is no place where it acts, but 0.0 inside it is, .* '0.\*\*'\?"):
        apply(model, [Dropout(not_at="0")], x)
    apply(model, [Dropout(not_at="0.**")], x)
    assert list(dropouts(model)) == ["1.trickbox.dropout"]


def test_behind_a_container_that_runs_its_parts_in_a_row() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2))
    x = torch.randn(3, 4)
    apply(model, [Dropout(0.5, at="0")], x)
    set_time(model, 2)
    (drop,) = dropouts(model).values()
    torch.manual_seed(seed_of(drop, 2))
    assert torch.equal(model(x), model[1](F.dropout(F.relu(F.linear(x, model[0][0].weight, model[0][0].bias)), 0.5)))


def test_functional_pools_are_named() -> None:
    with pytest.raises(NoEffectError, match=r"max_pool1d is called as a function; use where='after_layer'"):
        apply(FunctionalPools(), [Dropout(where="after_pool")], torch.randn(3, 1, 8))


def test_a_head_alone_is_no_place() -> None:
    with pytest.raises(NoEffectError, match="before the head"):
        apply(nn.Linear(4, 2), [Dropout()], torch.randn(3, 4))
    model = apply(nn.Linear(4, 2), [Dropout(0.5, where="before_head")], torch.randn(3, 4))
    assert list(dropouts(model)) == ["trickbox.dropout"]


# -- off, eval, copies, undo -------------------------------------------------------------------------------------------


def test_rate_zero_draws_nothing_and_leaves_other_dropouts_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    x, plain = torch.randn(3, 4), copy.deepcopy(model)
    apply(model, [Dropout(0.0)], x)
    layer = dropouts(model)["0.trickbox.dropout"]
    set_time(model, 1)
    torch.manual_seed(0)
    ours = model(x)
    torch.manual_seed(0)
    assert torch.equal(ours, plain(x))
    assert type(model[2]) is nn.Dropout
    layer.p = 0.5  # the next call is the first one that draws
    assert torch.equal(layer(x), element_dropout(x, 0.5, seeded(seed_of(layer, 1))))


@pytest.mark.parametrize("kind", ["element", "channel"])
def test_a_layer_draws_from_numbers_and_moves_no_global_generator(kind: str) -> None:
    model, x = nn.Sequential(nn.Conv1d(2, 6, 1), nn.Flatten(), nn.Linear(30, 2)), torch.randn(3, 6, 5)
    apply(model, [Dropout(0.5, kind=kind)], torch.randn(3, 2, 5))
    layer, drop = model[0].trickbox.dropout, element_dropout if kind == "element" else channel_dropout
    before = torch.get_rng_state()
    found = {}
    for time in (7, 8, 7):
        set_time(model, time)
        for call in range(2):
            again = found.setdefault((time, call), layer(x)), drop(x, 0.5, seeded(seed_of(layer, time, call)))
            assert torch.equal(*again)
    assert torch.equal(torch.get_rng_state(), before)
    assert len({str(mask.tolist()) for mask in found.values()}) == 4


def test_without_a_run_masks_vary_with_torchs_seed_and_between_calls() -> None:
    model, x = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 2)), torch.randn(3, 9)
    apply(model, [Dropout(0.5)], x)
    found = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        found.append([model(x).tolist() for _ in range(2)])
    assert found[0] == found[2] != found[1]
    assert found[0][0] != found[0][1]


def test_the_same_seed_is_the_same_masks_whatever_was_drawn_before() -> None:
    def masks(seed: int) -> list[Tensor]:
        torch.rand(3)
        model = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9), nn.Linear(9, 2))
        apply(model, [Dropout(0.5)], torch.randn(3, 9), seed=seed)
        set_time(model, 1)
        return [layer(torch.ones(3, 9)) for layer in dropouts(model).values()]

    one, again, other = masks(1), masks(1), masks(2)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(*one)


def test_eval_mode_is_the_plain_model() -> None:
    model, x = PlainNet(), torch.randn(4, 1, 128)
    plain = copy.deepcopy(model).eval()
    apply(model, [Dropout(0.5, kind="channel")], x).eval()
    assert torch.equal(model(x), plain(x))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_draws_for_itself(clone: Any) -> None:
    model, x = apply(PlainNet(), [Dropout(0.5)], torch.randn(4, 1, 128)), torch.randn(4, 1, 128)
    set_time(model, 3)
    model(x)
    twin = clone(model)
    mine, its = dropouts(model), dropouts(twin)
    assert not {id(module.draws) for module in mine.values()} & {id(module.draws) for module in its.values()}
    assert len({id(module.draws.clock) for module in [*mine.values(), *its.values()]}) == 2
    assert all(its[name].draws.clock is not layer.draws.clock for name, layer in mine.items())
    # It goes on where the original was, and what one of them draws moves nothing in the other.
    second = twin(x)
    assert torch.equal(model(x), second)
    set_time(twin, 9)
    twin(x)
    set_time(model, 3)
    assert not torch.equal(model(x), second)
    assert torch.equal(model(x), second)
    its["conv1.trickbox.dropout"].p = 0.9
    assert model.conv1.trickbox.dropout.p == 0.5


def test_a_copy_of_a_model_trains_on_its_own_while_the_run_of_the_original_goes_on() -> None:
    model, x = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 2)), torch.randn(3, 9)
    with attach(model, [Dropout(0.5)], x, seed=0) as run:
        twin = copy.deepcopy(model)
        before = [twin(x), twin(x)]
        optimizer = run.watch(torch.optim.SGD(model.parameters(), lr=0.0))
        again = copy.deepcopy(model)
        for _ in range(2):  # every step moves the clock of the run
            model(x).sum().backward()
            optimizer.step()
        assert [torch.equal(again(x), output) for output in before] == [True, True]


@pytest.mark.parametrize("where", ["after_layer", "after_pool", "before_head"])
def test_undo_leaves_no_trace(where: str) -> None:
    model, x = PlainNet(), torch.randn(4, 1, 128)
    plain = copy.deepcopy(model)
    undo(apply(model, [Dropout(0.5, where=where)], x))
    assert repr(model) == repr(plain)
    assert torch.equal(model(x), plain(x))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("settings", [{"p": 1.0}, {"p": -0.1}, {"conv": 1.5}, {"kind": "pixel"}, {"where": "there"}])
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"dropout: .* must be"):
        Dropout(**settings)


# -- at= and not_at=: what tests/tricks/test_at.py does not ask of all tricks ------------------------------------------


def test_at_a_named_layer_it_is_the_hand_written_network_bit_for_bit() -> None:
    class ByHand(PlainNet):
        def forward(self, x: Tensor) -> Tensor:
            x = self.pool(F.relu(self.conv1(x)))
            x = self.pool(F.relu(self.conv2(x)))
            torch.manual_seed(self.number)
            return self.fc2(F.relu(F.dropout(self.fc1(x.flatten(1)), 0.4, self.training)))

    model, by_hand, x = PlainNet(), ByHand(), torch.randn(8, 1, 128)
    by_hand.load_state_dict(model.state_dict())
    apply(model, [Dropout(0.4, at="fc1")], x)
    by_hand.number = seed_of(model.fc1.trickbox.dropout, 3)
    set_time(model, 3)
    ours, theirs = model(x), by_hand(x)
    assert torch.equal(ours, theirs)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    expected = dict(by_hand.named_parameters())
    assert all(torch.equal(p.grad, expected[name].grad) for name, p in model.named_parameters())


def with_trick(name: str, trick: Any) -> tuple[nn.Module, list[Any], Any]:
    """The arguments of `apply` for a model of the zoo."""
    model, inputs = specimen(name)
    return model, [trick], inputs


POOLED = ["pool.trickbox.dropout", "pool.trickbox.dropout_call1"]


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("pool", POOLED),
        ("pool[0]", POOLED[:1]),
        ("pool[1]", POOLED[1:]),
        (nn.MaxPool1d, POOLED),
        (["pool[1]", "fc1"], [*POOLED[1:], "fc1.trickbox.dropout"]),
        (lambda site: site.call == 1, POOLED[1:]),
    ],
)
def test_one_call_of_several_can_be_named(place: Any, expected: list[str]) -> None:
    x = torch.randn(4, 1, 128)
    assert set(dropouts(apply(PlainNet(), [Dropout(0.5, at=place)], x))) == set(expected)
    rest = apply(PlainNet(), [Dropout(0.5, where="after_pool", not_at=place)], x)
    assert set(dropouts(rest)) == {*POOLED, "fc1.trickbox.dropout"} - set(expected)


def test_the_second_of_two_calls_alone_is_dropped() -> None:
    model, x = PlainNet(), torch.randn(4, 1, 128)
    seen: list[Tensor] = []
    apply(model, [Dropout(0.5, at="pool[1]")], x)
    model.pool.register_forward_hook(lambda _, __, output: seen.append(output))
    for _ in range(2):
        model(x)
    first, second, again, later = seen
    assert torch.equal(first, again)
    assert not torch.equal(second, later)


def test_at_replaces_the_default_places_and_where() -> None:
    x = torch.randn(4, 1, 128)
    for where in ("auto", "after_layer", "after_pool", "before_head"):
        assert list(dropouts(apply(PlainNet(), [Dropout(where=where, at="conv2")], x))) == ["conv2.trickbox.dropout"]


def test_not_at_leaves_out_places_before_the_head_too() -> None:
    x = torch.randn(4, 1, 128)
    with pytest.raises(NoEffectError):
        apply(PlainNet(), [Dropout(where="before_head", not_at="fc2")], x)
    assert list(dropouts(apply(PlainNet(), [Dropout(not_at=["conv*"])], x))) == ["fc1.trickbox.dropout"]


def test_rate_and_kind_at_a_place_are_those_of_its_layer() -> None:
    trick = Dropout(0.1, conv=0.2, dense=0.3, kind="channel", at=["conv1", "pool[1]", "fc2"])
    found = dropouts(apply(PlainNet(), [trick], torch.randn(4, 1, 128)))
    assert {name: (module.p, module.kind) for name, module in found.items()} == {
        "conv1.trickbox.dropout": (0.2, "channel"),
        "pool.trickbox.dropout_call1": (0.2, "channel"),
        "fc2.trickbox.dropout": (0.3, "element"),
    }


def test_at_a_place_that_a_norm_or_a_dropout_follows_it_acts_there() -> None:
    model = nn.Sequential(
        nn.Conv1d(1, 3, 3),
        nn.BatchNorm1d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(21, 4),
        nn.Dropout(0.5),
        nn.Linear(4, 2),
    )
    apply(model, [Dropout(0.2, at=["0", "4"])], torch.randn(4, 1, 9))
    assert {name: module.p for name, module in dropouts(model).items()} == {"1.trickbox.dropout": 0.2, "5": 0.2}
    undo(model)
    assert (type(model[5]), model[5].p) == (nn.Dropout, 0.5)


def test_what_a_skip_carries_on_too_is_dropped_itself_and_not_behind_the_norm_of_the_branch() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.fc = nn.LayerNorm(4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.fc(self.norm(x))

    def net() -> nn.Sequential:
        return nn.Sequential(nn.Embedding(9, 4), Block(), Block(), nn.LayerNorm(4), nn.Linear(4, 2))

    tokens = torch.randint(9, (3, 5))
    hosts = [name.removesuffix(".trickbox.dropout") for name in dropouts(apply(net(), [Dropout()], tokens))]
    assert hosts == ["0", "1.fc", "2.fc"]
    model = apply(net(), [Dropout(0.5, at=["0", ":Block"])], tokens)
    assert [name.removesuffix(".trickbox.dropout") for name in dropouts(model)] == ["0", "1", "3"]


def test_in_a_gpt_at_puts_dropout_where_no_default_would() -> None:
    plain = dropouts(apply(*with_trick("gpt", Dropout())))
    assert not any("qkv" in name or "norm" in name or "lm_head" in name for name in plain)
    for place, expected in (
        ("**.qkv", ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]),
        ("blocks.1.**.norm2", ["blocks.1.norm2"]),
        (["lm_head", nn.Embedding], ["tok_emb", "pos_emb", "lm_head"]),
        (":SelfAttention", ["blocks.0.attn", "blocks.1.attn"]),
    ):
        found = dropouts(apply(*with_trick("gpt", Dropout(at=place))))
        assert [name.removesuffix(".trickbox.dropout") for name in found] == expected
    left = dropouts(apply(*with_trick("gpt", Dropout(not_at=["blocks.0.**", ":Embedding"]))))
    assert list(left) == ["blocks.1.attn.proj.trickbox.dropout", "blocks.1.mlp.2.trickbox.dropout"]


def test_in_a_residual_net_at_reaches_the_branches() -> None:
    assert list(dropouts(apply(*with_trick("resnet", Dropout())))) == ["fc.trickbox.dropout"]
    found = dropouts(apply(*with_trick("resnet", Dropout(kind="channel", at="layer1.*.conv2"))))
    assert list(found) == ["layer1.0.bn2.trickbox.dropout", "layer1.1.bn2.trickbox.dropout"]


@pytest.mark.parametrize("setting", ["at", "not_at"])
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("pool[2]", r"no path matches, got 'pool\[2\]'; there are .* Did you mean 'pool\[[01]\]'\?"),
        ("fc3", r"no path matches, got 'fc3'; there are .* Did you mean 'fc[12]'\?"),
        (
            ":MaxPool2d",
            r"no module is of this class.*, got ':MaxPool2d'; there are .* Did you mean ':MaxPool1d'\?",
        ),
    ],
)
def test_a_place_that_is_not_there_is_answered_with_the_nearest(setting: str, place: str, message: str) -> None:
    model, x = PlainNet(), torch.randn(4, 1, 128)
    with pytest.raises(ConfigError, match=rf"^dropout: {setting}: {message}"):
        apply(model, [Dropout(**{setting: place})], x)
    assert not any(module._forward_hooks for module in model.modules())


# -- on inputs, and by depth -------------------------------------------------------------------------------------------


class DropsInFront(PlainNet):
    """The lesson's network with dropout in front of its second convolution."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.pool(F.relu(self.conv1(x))), 0.3, self.training)
        x = self.pool(F.relu(self.conv2(x)))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def test_on_the_input_of_a_layer_it_is_the_hand_written_network() -> None:
    model, expected, x = PlainNet(), DropsInFront(), torch.randn(4, 1, 128)
    expected.load_state_dict(model.state_dict())
    apply(model, [Dropout(0.3, at="conv2", side="input")], x, seed=1)
    (layer,) = dropouts(model).values()
    set_time(model, 5)
    found = model(x)
    torch.manual_seed(seed_of(layer, 5))
    assert torch.equal(found, expected(x))


def test_on_the_input_of_a_layer_a_dropout_that_is_there_is_adjusted() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 2))
    apply(model, [Dropout(0.2, at="3", side="input")], torch.randn(3, 4))
    assert [(name, module.p) for name, module in dropouts(model).items()] == [("2", 0.2)]


def test_the_input_of_a_function_can_be_named() -> None:
    model, x = specimen("gpt")
    apply(model, [Dropout(0.2, at="blocks.0.attn:scaled_dot_product_attention", side="input")], x)
    model.train()
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


def test_a_rate_can_grow_with_the_depth() -> None:
    model = apply(PlainNet(), [Dropout(lambda depth: 0.3 * depth)], torch.randn(4, 1, 128))
    rates = {name.partition(".")[0]: module.p for name, module in dropouts(model).items()}
    assert rates == pytest.approx({"conv1": 0.0, "conv2": 0.1, "fc1": 0.2})
    with pytest.raises(ConfigError, match=r"dropout: p must be in \[0, 1\), got 2.0 at depth 0.00"):
        apply(PlainNet(), [Dropout(lambda _: 2.0)], torch.randn(4, 1, 128))
