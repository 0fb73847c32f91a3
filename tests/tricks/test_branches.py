"""Stochastic depth and gates: on every residual branch, and equal to nets that were written with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trickbox_tricks.branches import LayerScale, ReZero, RowDrop, StochasticDepth, drop_rows, shares
from trickbox_tricks.dropout import Dropout
from trickbox_tricks.normalization import BatchNorm
from trickbox_tricks.residual import Residual
from trickbox_tricks.transfer import Freeze

import trickbox as tb
from trickbox.surgery.draws import mixed
from trickbox.testing.specimens.residual import BasicBlock, ConvNeXtBlock
from trickbox.testing.zoo import specimen


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def named(model: nn.Module, kind: type[nn.Module]) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def reseed(module: RowDrop, time: int) -> None:
    """Let torch's own generator draw what the layer draws at a time of its clock."""
    torch.manual_seed(mixed(module.draws.key, time, 0))


# -- the functions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(50, 3), (50, 3, 4), (50, 3, 4, 4)])
def test_rows_are_those_of_torchvision(p: float, shape: tuple[int, ...]) -> None:
    ops = pytest.importorskip("torchvision.ops", reason="pip install 'trickbox[models]'")
    x = torch.randn(shape)
    torch.manual_seed(3)
    expected = ops.stochastic_depth(x, p, mode="row")
    assert torch.equal(drop_rows(x, p, torch.Generator().manual_seed(3)), expected)


def test_the_share_of_rows_that_survive_and_their_mean() -> None:
    kept = drop_rows(torch.ones(20_000, 1), 0.3)
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert kept.mean().item() == pytest.approx(1.0, abs=4 * (0.3 / 0.7 / 20_000) ** 0.5)


def test_linear_rates_are_those_of_timm() -> None:
    layers = pytest.importorskip("timm.layers", reason="pip install 'trickbox[models]'")
    for depth in (1, 2, 12):
        assert shares(depth)[-1] == 1.0
        if depth > 1:
            theirs = layers.calculate_drop_path_rates(0.3, depth)
            assert [0.3 * share for share in shares(depth)] == pytest.approx(theirs)


# -- stochastic depth --------------------------------------------------------------------------------------------------


class DroppedBlock(BasicBlock):
    """A basic block as it is written with stochastic depth."""

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.training and self.rate > 0:
            torch.manual_seed(self.seed)
            out = out * torch.empty(x.shape[0], 1, 1, 1).bernoulli_(1 - self.rate).div_(1 - self.rate)
        out = out + (x if self.downsample is None else self.downsample(x))
        return F.relu(out)


@pytest.mark.parametrize("training", [False, True])
def test_in_a_resnet_it_is_the_hand_written_net_bit_for_bit(training: bool) -> None:
    model, x = specimen("resnet")
    expected, _ = specimen("resnet")
    tb.apply(model, [StochasticDepth(0.6)], x, seed=1)
    layers = named(model, RowDrop)
    assert list(layers) == [f"layer{i}.{j}.bn2.trickbox.stochastic_depth" for i in (1, 2) for j in (0, 1)]
    assert [layer.p for layer in layers.values()] == pytest.approx([0.0, 0.2, 0.4, 0.6])
    for layer, name in zip(layers.values(), ("layer1.0", "layer1.1", "layer2.0", "layer2.1"), strict=True):
        layer.draws.clock.set(5)
        block = expected.get_submodule(name)
        block.__class__, block.rate, block.seed = DroppedBlock, layer.p, mixed(layer.draws.key, 5, 0)
    outputs = [net.train(training)(x) for net in (model, expected)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    assert all(map(torch.equal, (p.grad for p in model.parameters()), (p.grad for p in expected.parameters())))


class DroppedConvNeXtBlock(ConvNeXtBlock):
    """Its branch ends in a product and a permutation, which no module makes."""

    def forward(self, x: Tensor) -> Tensor:
        made = super().forward(x) - x
        torch.manual_seed(self.seed)
        return x + made * torch.empty(x.shape[0], 1, 1, 1).bernoulli_(1 - self.rate).div_(1 - self.rate)


def test_in_front_of_a_sum_whose_branch_no_module_makes() -> None:
    model, x = specimen("convnext")
    expected, _ = specimen("convnext")
    tb.apply(model, [StochasticDepth(0.5, rule="constant")], x)
    layers = named(model, RowDrop)
    assert list(layers) == [f"stages.{i}.trickbox.stochastic_depth_add" for i in (0, 1)]
    for layer, block in zip(layers.values(), expected.stages, strict=True):
        layer.draws.clock.set(5)
        block.__class__, block.rate, block.seed = DroppedConvNeXtBlock, 0.5, mixed(layer.draws.key, 5, 0)
    torch.testing.assert_close(model.train()(x), expected.train()(x))
    assert not torch.equal(model(x), model.eval()(x))


def test_all_branches_of_a_block_have_one_rate() -> None:
    model, x = specimen("gpt")
    tb.apply(model, [StochasticDepth(0.2)], x)
    found = {name: layer.p for name, layer in named(model, RowDrop).items()}
    ends = [f"blocks.{i}.{part}.trickbox.stochastic_depth" for i in (0, 1) for part in ("attn", "mlp")]
    assert found == dict(zip(ends, [0.0, 0.0, 0.2, 0.2], strict=True))


def test_a_stochastic_depth_of_the_models_own_is_replaced() -> None:
    class DropPath(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2, self.drop_path = nn.Linear(4, 8), nn.Linear(8, 4), DropPath()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.drop_path(self.fc2(F.relu(self.fc1(x))))

    model = nn.Sequential(nn.Linear(3, 4), Block(), Block(), nn.Linear(4, 2))
    tb.apply(model, [StochasticDepth(0.2)], torch.randn(5, 3))
    assert {name: layer.p for name, layer in named(model, RowDrop).items()} == {
        "1.drop_path": 0.0,
        "2.drop_path": 0.2,
    }
    tb.undo(model)
    assert type(model[1].drop_path) is DropPath


def test_it_drops_the_layers_that_residual_goes_around() -> None:
    x = torch.randn(6, 4)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    second = model[2]
    tb.apply(model, [StochasticDepth(0.5), Dropout(0.2), BatchNorm(), Residual()], x)
    layer = model[2].trickbox.stochastic_depth
    layer.draws.clock.set(3)
    model.train()
    assert [slot.name for slot in second.trickbox.slots] == ["batch_norm", "dropout", "stochastic_depth", "residual"]
    reseed(layer, 3)
    kept = torch.empty(6, 1).bernoulli_(0.5)
    assert 0 < kept.sum() < 6
    hidden = {}
    model[2].register_forward_hook(lambda _, args, output: hidden.update(input=args[0], output=output))
    layer.draws.clock.set(3)
    model(x)
    dropped = kept.flatten() == 0
    assert torch.equal(hidden["output"][dropped], hidden["input"][dropped])


@pytest.mark.parametrize("name", ["resnet", "gpt", "convnext", "mlp_mixer"])
def test_nothing_happens_in_eval_mode_or_at_rate_zero(name: str) -> None:
    model, x = specimen(name)
    before = model.eval()(x)
    tb.apply(model, [StochasticDepth(0.4, rule="constant")], x)
    assert torch.equal(model(x), before)
    tb.undo(model)
    tb.apply(model.train(), [StochasticDepth(0.0)], x)
    assert torch.equal(model.eval()(x), before)


def test_time_first_is_refused() -> None:
    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2, self.head = nn.Linear(4, 8), nn.Linear(8, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = x.transpose(0, 1)
            return self.head((x + self.fc2(F.relu(self.fc1(x)))).mean(0))

    with pytest.raises(tb.NoEffectError, match=r"the first axis of \(7, 3, 4\) is not that of the samples, \(3,\)"):
        tb.apply(TimeFirst(), [StochasticDepth(0.1)], torch.randn(3, 7, 4))


@pytest.mark.parametrize("trick", [StochasticDepth(0.1), LayerScale(), ReZero()])
def test_without_branches_it_is_an_error(trick: Any) -> None:
    model, x = specimen("mlp")
    with pytest.raises(tb.NoEffectError, match="acted nowhere: it looked for residual branches"):
        tb.apply(model, [trick], x)


@pytest.mark.parametrize("trick", [StochasticDepth, LayerScale, ReZero])
@pytest.mark.parametrize(
    ("at", "not_at", "expected"),
    [
        ("blocks.1", None, ["blocks.1.attn", "blocks.1.mlp"]),
        ("blocks.*.mlp", None, ["blocks.0.mlp", "blocks.1.mlp"]),
        ("blocks.*:add[0]", None, ["blocks.0.attn", "blocks.1.attn"]),
        (None, "blocks.*.attn", ["blocks.0.mlp", "blocks.1.mlp"]),
        (None, "blocks.0", ["blocks.1.attn", "blocks.1.mlp"]),
    ],
)
def test_branches_can_be_named(trick: Any, at: Any, not_at: Any, expected: list[str]) -> None:
    model, x = specimen("gpt")
    tb.apply(model, [trick(at=at, not_at=not_at)], x)
    assert [
        name.partition(".trickbox")[0] for name, m in model.named_modules() if name.endswith(".trickbox")
    ] == expected


def test_a_branch_that_is_not_there_is_answered_with_those_that_are() -> None:
    model, x = specimen("gpt")
    with pytest.raises(
        tb.ConfigError, match=r"re_zero: at: it cannot act at blocks.0.norm1 .*; it can act at .*blocks.0"
    ):
        tb.apply(model, [ReZero(at="blocks.0.norm1")], x)


# -- gates -------------------------------------------------------------------------------------------------------------


class GatedBlock(BasicBlock):
    """A basic block as it is written with a gain on its branch."""

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out)) * self.gain
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


@pytest.mark.parametrize(("trick", "init"), [(LayerScale(0.3), 0.3), (ReZero(), 0.0)])
def test_a_gate_is_the_hand_written_one_bit_for_bit(trick: Any, init: float) -> None:
    model, x = specimen("resnet")
    expected, _ = specimen("resnet")
    tb.apply(model, [trick], x)
    for block in (*expected.layer1, *expected.layer2):
        block.__class__ = GatedBlock
        shape = (block.conv2.out_channels, 1, 1) if init else ()
        block.gain = nn.Parameter(torch.full(shape, init))
    outputs = [net.train()(x) for net in (model, expected)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    gains = [p.grad for name, p in model.named_parameters() if "trickbox" in name]
    theirs = [p.grad for name, p in expected.named_parameters() if name.endswith("gain")]
    assert len(gains) == len(theirs) == 4
    assert all(map(torch.equal, gains, theirs))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("gpt", (16,)), ("convnext", (8, 1, 1)), ("resnet_plain", (8, 1)), ("multihead_attention", (16,))],
)
def test_the_features_are_scaled_on_their_axis(name: str, shape: tuple[int, ...]) -> None:
    model, x = specimen(name)
    tb.apply(model, [LayerScale()], x)
    assert {tuple(p.shape) for key, p in model.named_parameters() if "trickbox" in key} == {shape}


def test_features_that_lie_on_no_known_axis_are_left_out_with_the_reason() -> None:
    model, x = specimen("mlp_mixer")  # the token mixing branch is square and transposed
    text = tb.explain(model, x, [LayerScale()])
    words = " ".join(word for word in text.split() if word not in {"|", "|-", "`-"})
    assert "layer_scale: before add[0]: skipped" not in words
    assert "which axis of (4, 16, 16) holds the features is unknown" in words


def test_with_rezero_a_deep_plain_net_begins_as_its_first_layer() -> None:
    layers = [nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(30)]
    model = nn.Sequential(nn.Linear(4, 8), *[part for pair in layers for part in pair], nn.Linear(8, 2))
    x = torch.randn(5, 4)
    begun = model[-1](F.relu(model[0](x)))
    tb.apply(model, [Residual(), ReZero()], x)
    assert len([1 for name, _ in model.named_parameters() if "re_zero" in name]) == 30
    torch.testing.assert_close(model(x), begun)


def test_two_gates_at_once_are_refused() -> None:
    model, x = specimen("gpt")
    with pytest.raises(tb.ConfigError, match="layer_scale"):
        tb.apply(model, [LayerScale(), ReZero()], x)


@pytest.mark.parametrize("trick", [LayerScale(0.3), ReZero()])
@pytest.mark.parametrize("name", ["resnet", "resnet_plain", "wide_resnet", "bert"])
def test_a_gate_folds_into_the_layer_that_it_scales(name: str, trick: Any) -> None:
    model, x = specimen(name)
    keys = list(model.eval().state_dict())
    tb.apply(model, [trick], x)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "trickbox" in key:
                p.copy_(torch.rand_like(p) + 0.5)
    expected = model(x)
    if name == "bert":  # the gate stands behind a dropout
        with pytest.raises(tb.SurgeryError, match=r"layer\.0\.attention\.output\.dropout.*cannot be folded"):
            tb.strip(model)
        return
    tb.strip(model)
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model(x), expected)


def test_dropout_put_on_later_does_not_take_it_for_a_dropout_of_the_models_own() -> None:
    model, x = specimen("gpt")
    tb.apply(model, [StochasticDepth(0.2)], x)
    tb.apply(model, [Dropout(0.1)], x)
    assert "dropout" in model.blocks[0].attn.proj.trickbox._modules
    assert len(named(model, RowDrop)) == 4


def test_in_a_frozen_part_no_branch_is_dropped() -> None:
    model, x = specimen("gpt")
    tb.apply(model, [StochasticDepth(0.5, rule="constant"), Freeze(at="blocks")], x)
    model.train()
    assert torch.equal(model(x), model(x))


def test_shortcuts_before_the_activation_are_baked_and_compiled() -> None:
    net = nn.Sequential(
        nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)
    )
    x = torch.randn(5, 4)
    tb.apply(net, [Residual(order="pre")], x)
    expected = net(x)
    assert torch.equal(tb.bake(net)(x), expected)
    assert torch.equal(torch.compile(net, fullgraph=True, backend="eager")(x), expected)


# -- by depth, and one for several calls -------------------------------------------------------------------------------


def test_the_rate_of_a_block_can_be_any_function_of_how_far_along_it_lies() -> None:
    model, x = specimen("resnet")
    tb.apply(model, [StochasticDepth(lambda along: 0.1 + 0.4 * along**2)], x)
    rates = [module.p for module in model.modules() if isinstance(module, RowDrop)]
    assert sorted(set(rates)) == pytest.approx([0.1 + 0.4 * share**2 for share in shares(len(set(rates)))])


class Repeated(nn.Module):
    """One residual block that is called three times, as ALBERT does."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = Block(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.block(x)
        return self.head(x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.fc1(x).relu())


@pytest.mark.parametrize("trick", [LayerScale, ReZero])
def test_one_gate_serves_all_calls_of_a_block(trick: Any) -> None:
    x = torch.randn(3, 4)
    for shared, count in ((False, 3), (True, 1)):
        model = Repeated()
        tb.apply(model, [trick(shared=shared)], x)
        gains = [p for name, p in model.named_parameters() if "trickbox" in name]
        assert len(gains) == count
        with torch.no_grad():
            for gain in gains:
                gain.fill_(1.0)
        plain = Repeated()
        plain.load_state_dict({n: v for n, v in model.state_dict().items() if "trickbox" not in n})
        assert torch.equal(model(x), plain(x))
        model(x).sum().backward()
        assert all(gain.grad is not None for gain in gains)
