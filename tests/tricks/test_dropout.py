"""Dropout: equal to torch's own under the same seed, at the right places, and nowhere else."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from trickbox_tricks.dropout import Dropout, StreamDropout, channel_dropout, element_dropout
from trickbox_tricks.normalization import BatchNorm
from trickbox_tricks.residual import Residual

from trickbox import ConfigError, NoEffectError, apply, explain, undo
from trickbox.tasks.waveforms import PlainNet


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dropouts(model: nn.Module) -> dict[str, StreamDropout]:
    return {name: module for name, module in model.named_modules() if isinstance(module, StreamDropout)}


def restart(model: nn.Module, seed: int) -> None:
    for module in dropouts(model).values():
        module.generator.manual_seed(seed)


class NotebookDropoutNet(PlainNet):
    """The lesson's hand-written network: dropout behind every pool and behind the first linear layer's ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.pool(F.relu(self.conv1(x))), 0.1, self.training)
        x = F.dropout(self.pool(F.relu(self.conv2(x))), 0.1, self.training)
        x = x.view(x.shape[0], -1)
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
    restart(model, 5)
    ours = model(x)
    torch.manual_seed(5)
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
    restart(model, 1)
    hidden = element_dropout(model[:2](x), 0.5, seeded(1))
    assert torch.equal(model(x), F.linear(hidden, model[2].weight, model[2].bias))


@pytest.mark.parametrize("tricks", [[Dropout(0.5), BatchNorm()], [BatchNorm(), Dropout(0.5)]])
def test_never_between_a_layer_and_its_norm(tricks: list[Any]) -> None:
    x = torch.randn(4, 1, 9)
    own = nn.Sequential(nn.Conv1d(1, 3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Flatten(), nn.Linear(21, 2))
    assert list(dropouts(apply(own, [Dropout(0.5)], x))) == ["1.trickbox.dropout"]
    added = nn.Sequential(nn.Conv1d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(21, 2))
    apply(added, tricks, x)
    restart(added, 1)
    normed = F.batch_norm(F.conv1d(x, added[0].weight, added[0].bias), None, None, training=True)
    assert torch.allclose(added[0](x), element_dropout(normed, 0.5, seeded(1)), atol=1e-5)


def test_the_branch_is_dropped_and_not_the_sum() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(3, 4)
    apply(model, [Residual(), Dropout(0.5)], x)
    restart(model, 2)
    branch = element_dropout(F.linear(x, model[1].weight, model[1].bias), 0.5, seeded(2))
    assert torch.equal(model[1](x), branch + x)


def test_each_call_of_a_shared_layer_has_its_own() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.shared(self.shared(x).relu()).relu())

    model = apply(Twice(), [Dropout(0.5)], torch.randn(3, 4))
    assert list(dropouts(model)) == ["shared.trickbox.dropout", "shared.trickbox.dropout_call1"]


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
    assert list(dropouts(model)) == ["0.dropout", "0.dropout2"]
    assert model(torch.randn(3, 5, 8)).shape == (3, 5, 2)


def test_one_dropout_for_two_layers_takes_one_rate() -> None:
    class Shared(PlainNet):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.drop(self.pool(F.relu(self.conv1(x))))
            x = self.pool(F.relu(self.conv2(x))).flatten(1)
            return self.fc2(self.drop(F.relu(self.fc1(x))))

    x = torch.randn(4, 1, 128)
    assert "serves another layer too" in explain(Shared(), x, [Dropout(conv=0.1, dense=0.3)])
    model = apply(Shared(), [Dropout(0.2)], x)
    assert list(dropouts(model)) == ["conv2.trickbox.dropout", "drop"]


def test_a_functional_dropout_is_left_and_reported() -> None:
    model, x = FunctionalPools(), torch.randn(3, 1, 8)
    assert "fc: skipped: a dropout follows" in explain(model, x, [Dropout()])
    only = nn.Sequential(nn.Linear(4, 4), nn.AlphaDropout(0.5), nn.Linear(4, 2))
    with pytest.raises(NoEffectError, match="AlphaDropout follows"):
        apply(only, [Dropout()], torch.randn(3, 4))


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
    before = dropouts(model)["0.trickbox.dropout"].generator.get_state()
    torch.manual_seed(0)
    ours = model(x)
    torch.manual_seed(0)
    assert torch.equal(ours, plain(x))
    assert torch.equal(before, dropouts(model)["0.trickbox.dropout"].generator.get_state())
    assert type(model[2]) is nn.Dropout


def test_eval_mode_is_the_plain_model() -> None:
    model, x = PlainNet(), torch.randn(4, 1, 128)
    plain = copy.deepcopy(model).eval()
    apply(model, [Dropout(0.5, kind="channel")], x).eval()
    assert torch.equal(model(x), plain(x))


def test_a_copy_draws_for_itself() -> None:
    model = apply(PlainNet(), [Dropout(0.5)], torch.randn(4, 1, 128))
    twin, x = copy.deepcopy(model), torch.randn(4, 1, 128)
    before = model.conv1.trickbox.dropout.generator.get_state()
    first = twin(x)
    assert torch.equal(before, model.conv1.trickbox.dropout.generator.get_state())
    assert torch.equal(model(x), first)
    dropouts(twin)["conv1.trickbox.dropout"].p = 0.9
    assert model.conv1.trickbox.dropout.p == 0.5


@pytest.mark.parametrize("where", ["after_layer", "after_pool", "before_head"])
def test_undo_leaves_no_trace(where: str) -> None:
    model, x = PlainNet(), torch.randn(4, 1, 128)
    plain = copy.deepcopy(model)
    undo(apply(model, [Dropout(0.5, where=where)], x))
    assert repr(model) == repr(plain)
    assert torch.equal(model(x), plain(x))
    assert not model.conv1._forward_hooks


@pytest.mark.parametrize("settings", [{"p": 1.0}, {"p": -0.1}, {"conv": 1.5}, {"kind": "pixel"}, {"where": "there"}])
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"dropout: .* must be"):
        Dropout(**settings)
