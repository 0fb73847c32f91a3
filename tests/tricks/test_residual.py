"""Shortcuts: equal to hand-written residual networks, strict about shapes, silent about nothing."""

from __future__ import annotations

import copy
import re
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from trickbox_tricks.dropout import Dropout
from trickbox_tricks.normalization import BatchNorm
from trickbox_tricks.residual import PoolShortcut, Projection, Residual, pool_shortcut

from trickbox import ConfigError, NoEffectError, SurgeryError, apply, explain, nest, undo
from trickbox.authoring import Surgery, derive, forked
from trickbox.tasks.waveforms import PlainNet
from trickbox.testing.zoo import specimen


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def chain(*widths: int) -> nn.Sequential:
    layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths)]
    return nn.Sequential(*[module for layer in layers for module in layer][:-1])


# -- the function ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "target"), [((2, 3, 31), (5, 14)), ((2, 3, 8, 6), (3, 4, 3)), ((1, 2, 4, 4, 4), (4, 2, 2, 2))]
)
def test_the_pool_shortcut_has_means_and_zero_channels(shape: tuple[int, ...], target: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    out = pool_shortcut(x, target)
    assert out.shape == (shape[0], *target)
    pool = {3: nn.AdaptiveAvgPool1d, 4: nn.AdaptiveAvgPool2d, 5: nn.AdaptiveAvgPool3d}[x.ndim]
    assert torch.equal(out[:, : shape[1]], pool(target[1:])(x))
    assert not out[:, shape[1] :].any()


# -- equal to hand-written networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [False, True])
def test_the_pool_shortcut_is_the_hand_written_network_bit_for_bit(norm: bool) -> None:
    class ByHand(PlainNet):
        def forward(self, x: Tensor) -> Tensor:
            normed = (lambda h: F.batch_norm(h, None, None, training=True)) if norm else (lambda h: h)
            x = self.pool(F.relu(normed(self.conv1(x))))
            shortcut = F.pad(F.adaptive_avg_pool1d(x, 14), (0, 0, 0, 16))
            x = self.pool(F.relu(normed(self.conv2(x)) + shortcut))
            return self.fc2(F.relu(self.fc1(x.flatten(1))))

    model, by_hand, x = PlainNet(), ByHand(), torch.randn(4, 1, 128)
    by_hand.load_state_dict(model.state_dict())
    apply(model, [Residual(), BatchNorm()] if norm else [Residual()], x)
    assert count(model) - count(by_hand) == (96 if norm else 0)
    ours, theirs = model(x), by_hand(x)
    assert torch.equal(ours, theirs)
    ours.sum().backward()
    theirs.sum().backward()
    pairs = zip((model.conv1.weight, model.fc1.weight), (by_hand.conv1.weight, by_hand.fc1.weight), strict=True)
    assert all(torch.equal(one.grad, other.grad) for one, other in pairs)


def test_a_projection_over_two_layers_is_the_hand_written_network() -> None:
    model, x = PlainNet(), torch.randn(4, 1, 128)
    apply(model, [Residual(layers=2, shortcut="projection")], x)
    projection = model.conv2.trickbox.residual
    hidden = model.pool(F.relu(model.conv1(x)))
    plain = F.conv1d(hidden, model.conv2.weight, model.conv2.bias, stride=2)
    summed = plain + F.conv1d(F.adaptive_avg_pool1d(x, 14), projection.project.weight)
    expected = model.fc2(F.relu(model.fc1(model.pool(F.relu(summed)).flatten(1))))
    assert torch.equal(model(x), expected)
    assert count(model) - count(PlainNet()) == 32


def test_behind_a_norm_of_the_models_own() -> None:
    model = nn.Sequential(
        nn.Conv1d(1, 3, 3, padding=1),
        nn.Conv1d(3, 3, 3, padding=1),
        nn.BatchNorm1d(3),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(24, 2),
    ).eval()
    x = torch.randn(2, 1, 8)
    apply(model, [Residual()], x)
    hidden = model[0](x)
    branch = F.batch_norm(F.conv1d(hidden, model[1].weight, model[1].bias, padding=1), torch.zeros(3), torch.ones(3))
    assert torch.allclose(model[:3](x), branch + hidden, atol=1e-6)


def test_the_jacobian_of_a_linear_layer_gains_the_identity() -> None:
    model, x = chain(3, 4, 4, 2), torch.randn(1, 4)
    apply(model, [Residual()], torch.randn(5, 3))
    jacobian = torch.autograd.functional.jacobian(model[2], x)[0, :, 0]
    assert torch.allclose(jacobian, model[2].weight + torch.eye(4))


def test_a_linear_projection_adds_its_parameters() -> None:
    model = chain(3, 4, 5, 2)
    before = count(model)
    apply(model, [Residual(shortcut="projection")], torch.randn(5, 3))
    assert count(model) - before == 4 * 5
    with pytest.raises(NoEffectError, match="shortcut='projection' can act here"):
        apply(chain(3, 4, 5, 2), [Residual()], torch.randn(5, 3))


def test_images() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)
    )
    x = torch.randn(2, 1, 9, 9)
    hidden = model[:2](x)
    expected = model[2](hidden) + F.pad(F.adaptive_avg_pool2d(hidden, 3), (0, 0, 0, 0, 0, 2))
    apply(model, [Residual()], x)
    assert torch.equal(model[:3](x), expected)


# -- which layers ------------------------------------------------------------------------------------------------------


def sites(model: nn.Module) -> list[str]:
    return [name.removesuffix(".trickbox.residual") for name, _ in model.named_modules() if name.endswith("residual")]


@pytest.mark.parametrize(
    ("trick", "expected"),
    [
        (Residual(), ["2", "4", "6"]),
        (Residual(layers=2), ["4"]),
        (Residual(layers=3), ["6"]),
        (Residual(layers=2, shortcut="projection"), ["2", "6"]),
        (Residual(layers=4, shortcut="projection"), ["6"]),
    ],
)
def test_stem_and_head_are_not_spanned(trick: Any, expected: list[str]) -> None:
    assert sites(apply(chain(4, 4, 4, 4, 4, 4), [trick], torch.randn(3, 4))) == expected


def test_segments_do_not_cross_from_convolutions_to_linear_layers() -> None:
    with pytest.raises(NoEffectError, match="no 2 consecutive layers are left"):
        apply(PlainNet(), [Residual(layers=2)], torch.randn(2, 1, 128))


def test_fewer_channels_have_no_pool_shortcut() -> None:
    model = nn.Sequential(nn.Conv1d(1, 4, 3), nn.Conv1d(4, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(NoEffectError, match="shortcut='projection' can act here"):
        apply(model, [Residual()], torch.randn(2, 1, 8))
    assert isinstance(
        apply(model, [Residual(shortcut="projection")], torch.randn(2, 1, 8))[1].trickbox.residual, Projection
    )


def test_a_shortcut_of_the_models_own_is_not_doubled() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one, self.two, self.head = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(x + self.two(self.one(x).relu()).relu())

    x = torch.randn(3, 4)
    with pytest.raises(NoEffectError, match="has residual connections already, at the model itself"):
        apply(Own(), [Residual(layers=2)], x)
    with pytest.raises(NoEffectError, match="joins the input to the output itself"):
        apply(Own(), [Residual(layers=2, at=["one", "two"])], x)
    assert sites(apply(Own(), [Residual(at=["one", "two"])], x)) == ["one", "two"]
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Linear(8, 8), layer, nn.Linear(8, 2))
    with pytest.raises(NoEffectError, match="has residual connections already, at 1"):
        apply(model, [Residual(layers=2)], torch.randn(3, 5, 8))


def test_branches_are_no_chain() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.left, self.right, self.head = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(self.left(x).relu() * self.right(x))

    with pytest.raises(NoEffectError, match="right does not come next in a plain chain"):
        apply(Branches(), [Residual(layers=2)], torch.randn(3, 4))


def test_an_input_that_is_changed_in_place_is_left() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one, self.two, self.head = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            hidden = self.one(x).relu()
            x.mul_(2)
            return self.head(self.two(hidden))

    with pytest.raises(NoEffectError, match="changed in place"):
        apply(InPlace(), [Residual(layers=2)], torch.randn(3, 4))


def test_a_shared_layer_has_a_shortcut_a_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.shared, self.head = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.shared(self.shared(self.stem(x)).relu()).relu())

    model, x = Twice(), torch.randn(3, 4)
    weight, bias = model.shared.weight, model.shared.bias
    hidden = model.stem(x)
    for _ in range(2):
        hidden = (F.linear(hidden, weight, bias) + hidden).relu()
    assert torch.equal(apply(copy.deepcopy(model), [Residual()], x)(x), model.head(hidden))
    over_both = model.shared(model.shared(model.stem(x)).relu()) + model.stem(x)
    assert torch.equal(apply(model, [Residual(layers=2)], x)(x), model.head(over_both.relu()))


def test_a_root_layer_is_no_chain() -> None:
    with pytest.raises(NoEffectError, match="chains of 1 weight layers"):
        apply(nn.Linear(4, 2), [Residual()], torch.randn(3, 4))


# -- shapes, draws, undo -----------------------------------------------------------------------------------------------


def test_the_lessons_broadcast_is_refused() -> None:
    model, x = PlainNet(), torch.randn(2, 1, 128)
    surgery = Surgery.on(model, x)
    conv2 = surgery.sites(nn.Conv1d)[1]
    surgery.shortcut(conv2, conv2, PoolShortcut((32, 1)))
    with pytest.raises(SurgeryError, match="would broadcast"):
        model(x)


def test_another_length_is_refused() -> None:
    model = nn.Sequential(
        nn.Conv1d(1, 2, 3), nn.Conv1d(2, 2, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2, 2)
    )
    apply(model, [Residual()], torch.randn(2, 1, 9))
    with pytest.raises(SurgeryError, match="would broadcast"):
        model(torch.randn(2, 1, 12))


def test_projections_draw_from_seed_and_name_alone() -> None:
    def drawn(seed: int, tricks: list[Any]) -> Tensor:
        return apply(PlainNet(), tricks, torch.randn(2, 1, 128), seed=seed).conv2.trickbox.residual.project.weight

    residual = Residual(shortcut="projection")
    with forked(derive(3, "init", "conv2.trickbox.residual")):
        expected = nn.Conv1d(16, 32, 1, bias=False).weight
    assert torch.equal(drawn(3, [residual]), expected)
    assert torch.equal(drawn(3, [Dropout(), residual, BatchNorm()]), expected)
    assert not torch.equal(drawn(4, [residual]), expected)


def test_surgery_draws_nothing_from_the_global_generator() -> None:
    model, x = PlainNet(), torch.randn(2, 1, 128)
    before = torch.get_rng_state()
    apply(model, [Residual(shortcut="projection")], x)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("trick", [Residual(), Residual(2, "projection")])
def test_undo_leaves_no_trace(trick: Any) -> None:
    model, x = PlainNet(), torch.randn(2, 1, 128)
    plain, keys = model(x), list(model.state_dict())
    undo(apply(model, [trick], x))
    assert torch.equal(model(x), plain)
    assert list(model.state_dict()) == keys
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_explain_says_what_and_why_not() -> None:
    text = explain(PlainNet(), torch.randn(2, 1, 128), [Residual()])
    assert re.search(r"\bconv2 .* residual: PoolShortcut\(\(32, 14\)\)", text)
    assert re.search(r"\bfc1 .* residual: skipped: \(2, 224\) in and \(2, 64\) out", text)


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="residual: layers must be a whole number of at least 1"):
        Residual(0)
    with pytest.raises(ConfigError, match="residual: shortcut must be one of"):
        Residual(shortcut="add")


# -- at= and not_at=: what tests/tricks/test_at.py does not ask of all tricks ------------------------------------------


def test_at_a_named_layer_it_is_the_hand_written_network_bit_for_bit() -> None:
    class ByHand(PlainNet):
        def forward(self, x: Tensor) -> Tensor:
            shortcut = F.pad(F.adaptive_avg_pool1d(x, 62), (0, 0, 0, 15))
            x = self.pool(F.relu(self.conv1(x) + shortcut))
            x = self.pool(F.relu(self.conv2(x)))
            return self.fc2(F.relu(self.fc1(x.flatten(1))))

    model, by_hand, x = PlainNet(), ByHand(), torch.randn(4, 1, 128)
    by_hand.load_state_dict(model.state_dict())
    apply(model, [Residual(at="conv1")], x)
    ours, theirs = model(x), by_hand(x)
    assert torch.equal(ours, theirs)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    expected = dict(by_hand.named_parameters())
    assert all(torch.equal(p.grad, expected[name].grad) for name, p in model.named_parameters())


def test_at_spans_the_first_and_the_last_layer_too() -> None:
    x = torch.randn(3, 4)
    assert sites(apply(chain(4, 4, 4, 4), [Residual()], x)) == ["2"]
    assert sites(apply(chain(4, 4, 4, 4), [Residual(at=nn.Linear)], x)) == ["0", "2", "4"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"layers": 2, "at": ["2", "4"]}, ["4"]),
        ({"layers": 2, "at": "?"}, ["2", "6"]),
        ({"layers": 2, "not_at": "2"}, ["6"]),
        ({"layers": 3, "at": ["0", "2", "4"]}, ["4"]),
        ({"layers": 2, "at": ":Linear", "not_at": "0"}, ["4", "8"]),
        ({"at": "?", "not_at": ["2", "[68]"]}, ["0", "4"]),
    ],
)
def test_segments_are_made_of_the_layers_that_may_be_spanned(settings: dict[str, Any], expected: list[str]) -> None:
    assert sites(apply(chain(4, 4, 4, 4, 4, 4), [Residual(**settings)], torch.randn(3, 4))) == expected


def test_layers_that_do_not_follow_each_other_are_no_segment() -> None:
    x = torch.randn(3, 4)
    with pytest.raises(NoEffectError, match="4 does not come next in a plain chain"):
        apply(chain(4, 4, 4, 4), [Residual(2, at=["0", "4"])], x)
    with pytest.raises(NoEffectError, match="2: no 2 consecutive layers are left"):
        apply(chain(4, 4, 4, 4), [Residual(2, at="2")], x)
    with pytest.raises(NoEffectError, match="shortcut='projection' can act here"):
        apply(PlainNet(), [Residual(at="fc1")], torch.randn(2, 1, 128))


@pytest.mark.parametrize(
    ("name", "place", "expected"),
    [
        ("resnet", "layer1.*.conv1", ["layer1.0.bn1", "layer1.1.bn1"]),
        ("resnet_plain", "blocks.*.conv?", ["blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2"]),
        ("gpt", "**.attn.proj", ["blocks.0.attn.proj", "blocks.1.attn.proj"]),
        ("gpt2", "h.1.**.c_proj", ["h.1.attn.c_proj"]),
        ("bert", ["pooler", "layer.0.**.query"], ["layer.0.attention.self.query", "pooler"]),
    ],
)
def test_in_a_net_with_shortcuts_at_adds_what_the_default_refuses(name: str, place: Any, expected: list[str]) -> None:
    model, inputs = specimen(name)
    with pytest.raises(NoEffectError, match="it has residual connections already"):
        apply(model, [Residual()], inputs)
    assert not sites(model)
    keys, before = list(model.state_dict()), nest.call(model.eval(), inputs)
    apply(model, [Residual(at=place)], inputs)
    assert sites(model) == expected
    assert not torch.equal(nest.call(model, inputs), before)
    undo(model)
    assert not sites(model)
    assert list(model.state_dict()) == keys
    assert torch.equal(nest.call(model, inputs), before)


def test_in_a_block_of_a_gpt_the_input_of_a_projection_is_added_to_its_output() -> None:
    model, inputs = specimen("gpt")
    layer = model.blocks[1].attn.proj
    apply(model, [Residual(at="blocks.1.attn.proj")], inputs)
    seen: list[Tensor] = []
    layer.register_forward_hook(lambda _, args, output: seen.extend((args[0], output)))
    model(inputs)
    x, output = seen
    assert torch.equal(output, F.linear(x, layer.weight, layer.bias) + x)


def test_a_layer_of_a_class_that_torch_has_not_takes_a_projection() -> None:
    model, inputs = specimen("gpt2")
    with pytest.raises(NoEffectError, match="shortcut='projection' can act here"):
        apply(model, [Residual(at="**.c_fc")], inputs)
    apply(model, [Residual(shortcut="projection", at="**.c_fc")], inputs)
    layer = model.h[0].mlp.c_fc
    assert layer.trickbox.residual.weight.shape == (64, 16)
    seen: list[Tensor] = []
    layer.register_forward_hook(lambda _, args, output: seen.extend((args[0], output)))
    model(inputs)
    x, output = seen
    plain = torch.addmm(layer.bias, x.flatten(0, 1), layer.weight).view_as(output)
    assert torch.equal(output, plain + F.linear(x, layer.trickbox.residual.weight))


def test_a_convolution_of_a_class_that_torch_has_not_takes_the_identity_alone() -> None:
    class Own(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(channels, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv1d(x, self.weight, padding=1)

    def net(channels: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv1d(1, 3, 1), Own(channels), nn.ReLU(), nn.Flatten(), nn.Linear(9 * channels, 2))

    x = torch.randn(4, 1, 9)
    assert sites(apply(net(3), [Residual(at="1")], x)) == ["1"]
    for shortcut in ("pool", "projection"):
        with pytest.raises(NoEffectError, match="which axes a Own mixes is unknown"):
            apply(net(6), [Residual(shortcut=shortcut, at="1")], x)


def test_a_computed_weight_is_not_computed_once_more() -> None:
    model, inputs = specimen("spectral_norm")
    before = copy.deepcopy(model.state_dict())
    apply(model, [Residual(at=["0", "2"])], inputs)
    assert sites(model) == ["0", "2"]
    undo(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("setting", ["at", "not_at"])
def test_a_place_that_is_no_weight_layer_is_refused(setting: str) -> None:
    model, x = PlainNet(), torch.randn(2, 1, 128)
    message = r"it cannot act at pool\[1\] \(MaxPool1d\), got 'pool\[1\]'; it can act at the weight layers conv1, "
    with pytest.raises(ConfigError, match=f"^residual: {setting}: {message}"):
        apply(model, [Residual(**{setting: "pool[1]"})], x)
    with pytest.raises(ConfigError, match=rf"^residual: {setting}: no path matches, .* Did you mean 'conv[12]'\?"):
        apply(model, [Residual(**{setting: ["conv1", "conv3"]})], x)
    assert not sites(model)


# -- before the activation, and around blocks --------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_pre_activation_is_the_hand_written_network_bit_for_bit(layers: int, norm: bool) -> None:
    """Nothing but sums lies on the way of the shortcuts: h2 = h1 + W relu(h1), as in ResNet v2."""

    class ByHand(nn.Module):
        def __init__(self, net: nn.Sequential) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            maps = [layer for layer in self.net if isinstance(layer, nn.Linear)]
            trunk = normed(maps[0](x))
            for first in range(1, len(maps) - 1, layers):
                branch = trunk
                for layer in maps[first : first + layers]:
                    branch = normed(layer(F.relu(branch)))
                trunk = branch + trunk
            return maps[-1](F.relu(trunk))

    def normed(x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, training=True) if norm else x

    x = torch.randn(6, 4)
    model = chain(4, 8, 8, 8, 8, 8, 3)
    expected = ByHand(copy.deepcopy(model))
    apply(model, [Residual(layers=layers, order="pre"), *([BatchNorm()] if norm else [])], x)
    assert torch.equal(model(x), expected(x))
    model(x).square().sum().backward()
    expected(x).square().sum().backward()
    own = [p.grad for name, p in model.named_parameters() if "trickbox" not in name]
    for mine, theirs in zip(own, [p.grad for p in expected.parameters()], strict=True):
        torch.testing.assert_close(mine, theirs)


def test_pre_activation_starts_behind_a_norm_of_the_models_own() -> None:
    x = torch.randn(6, 4)
    parts = [part for _ in range(3) for part in (nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())]
    model = nn.Sequential(*parts, nn.Linear(4, 2))
    plain = copy.deepcopy(model)
    apply(model, [Residual(order="pre")], x)
    first = plain[1](plain[0](x))
    second = plain[4](plain[3](F.relu(first))) + first
    third = plain[7](plain[6](F.relu(second))) + second
    assert torch.equal(model(x), plain[9](F.relu(third)))


def test_pre_activation_through_a_pool_and_new_channels() -> None:
    x = torch.randn(4, 1, 128)
    model, plain = PlainNet(), PlainNet()
    plain.load_state_dict(model.state_dict())
    apply(model, [Residual(order="pre")], x)
    first = plain.conv1(x)
    second = plain.conv2(plain.pool(F.relu(first))) + pool_shortcut(first, (32, 14))
    hidden = F.relu(plain.fc1(plain.pool(F.relu(second)).flatten(1)))
    assert torch.equal(model(x), plain.fc2(hidden))


def test_a_block_that_is_named_gets_one_shortcut_around_all_of_it() -> None:
    x = torch.randn(6, 4)
    block = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    model = nn.Sequential(nn.Linear(4, 8), block, nn.ReLU(), nn.Linear(8, 2))
    hidden = model[0](x)
    expected = model[3](F.relu(block(hidden) + hidden))
    apply(model, [Residual(at="1")], x)
    assert torch.equal(model(x), expected)
    undo(model)
    with pytest.raises(ConfigError, match=r"it cannot act at 2 \(ReLU\)"):
        apply(model, [Residual(at="2")], x)


def test_around_a_block_whose_shape_changes_there_is_none() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 2))
    with pytest.raises(ConfigError, match=r"it cannot act at 0 \(Sequential\)"):
        apply(model, [Residual(at="0")], torch.randn(6, 4))
