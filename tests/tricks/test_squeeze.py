"""Squeeze and excitation: torchvision's gate bit for bit in a net written by hand, and the places of the field."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from trickbox_tricks import BatchNorm, Dropout, Residual, SqueezeExcite
from trickbox_tricks.squeeze import SqueezeExcitation

from trickbox import ConfigError, NoEffectError, apply, undo
from trickbox.tasks.waveforms import PlainNet
from trickbox.testing.specimens.residual import BasicBlock, ResNet
from trickbox.testing.zoo import specimen


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def hosts(model: nn.Module) -> list[str]:
    return [p.partition(".trickbox.")[0] for p, m in model.named_modules() if isinstance(m, SqueezeExcitation)]


# -- equal to what others wrote ----------------------------------------------------------------------------------------


class GatedBlock(BasicBlock):
    """The block of a residual net with torchvision's gate in front of the add, written by hand."""

    def __init__(self, channels: int, features: int, stride: int) -> None:
        super().__init__(channels, features, stride)
        from torchvision.ops import SqueezeExcitation as Theirs

        self.se = Theirs(features, features // 4)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.se(self.bn2(self.conv2(out)))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


def test_a_residual_net_is_the_one_written_by_hand_with_torchvisions_gates_bit_for_bit() -> None:
    pytest.importorskip("torchvision.ops", reason="pip install 'trickbox[models]'")
    model, by_hand = ResNet(BasicBlock), ResNet(GatedBlock)
    keys = list(model.state_dict())
    apply(model, [SqueezeExcite(reduction=4)], IMAGES)
    named = {name: name.replace("bn2.trickbox.squeeze_excite", "se") for name in model.state_dict()}
    assert [name for name in named if "trickbox" not in name] == keys
    by_hand.load_state_dict({named[name]: value for name, value in model.state_dict().items()}, strict=True)
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9) for net in (model, by_hand)]
    for _ in range(2):
        for net, optimizer in zip((model, by_hand), optimizers, strict=True):
            optimizer.zero_grad()
            net(IMAGES).square().mean().backward()
            optimizer.step()
    theirs = by_hand.state_dict()
    assert all(torch.equal(value, theirs[named[name]]) for name, value in model.state_dict().items())
    gradients = {name: p.grad for name, p in by_hand.named_parameters()}
    assert all(torch.equal(p.grad, gradients[named[name]]) for name, p in model.named_parameters())
    assert torch.equal(model.eval()(IMAGES), by_hand.eval()(IMAGES))
    assert not torch.equal(model.layer1[0].bn2.trickbox.squeeze_excite.fc1.weight, torch.zeros(()))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_each_channel_is_multiplied_by_a_function_of_all_means(axes: int) -> None:
    gate, x = SqueezeExcitation(6, 2, axes), torch.randn(4, 6, *[5] * axes)
    means = x.flatten(2).mean(2)
    first, second = gate.fc1, gate.fc2
    hidden = F.linear(means, first.weight.flatten(1), first.bias).relu()
    factors = torch.sigmoid(F.linear(hidden, second.weight.flatten(1), second.bias))
    assert torch.allclose(gate(x), x * factors.view(4, 6, *[1] * axes), atol=1e-6)


# -- keys, copies, undo ------------------------------------------------------------------------------------------------


def test_a_plain_state_dict_loads_and_copies_stand_alone() -> None:
    model, plain, x = PlainNet(), PlainNet(), torch.randn(4, 1, 128)
    apply(model, [SqueezeExcite()], x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model):
        assert torch.equal(twin(x), model(x))
        twin.load_state_dict(plain.state_dict(), strict=True)
    twin = copy.deepcopy(model)
    before = model(x)
    nn.init.normal_(twin.conv1.trickbox.squeeze_excite.fc2.bias)
    assert torch.equal(model(x), before)
    assert not torch.equal(twin(x), before)
    undo(model)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert torch.equal(model(x), plain(x))


def test_it_compiles_into_one_graph() -> None:
    model, _ = specimen("resnet")
    apply(model, [SqueezeExcite(4)], IMAGES)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="eager")
    assert torch.equal(compiled(IMAGES), model(IMAGES))


def test_places_have_weights_of_their_own_that_are_functions_of_the_seed() -> None:
    first, again = (apply(specimen("resnet")[0], [SqueezeExcite(4)], IMAGES, seed=1) for _ in range(2))
    gates = [m.fc1.weight for m in first.modules() if isinstance(m, SqueezeExcitation)]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(gates[0], gates[1])
    assert not torch.equal(first(IMAGES), apply(specimen("resnet")[0], [SqueezeExcite(4)], IMAGES, seed=2)(IMAGES))


# -- where -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("resnet_bottleneck", [f"layer{n}.{m}.bn3" for n in (1, 2) for m in (0, 1)]),
        ("resnet_preactivation", [f"layer{n}.{m}.conv2" for n in (1, 2) for m in (0, 1)]),
        ("resnet_plain", ["blocks.0.conv2", "blocks.1.conv2"]),
        ("mobilenet", ["features.2.conv"]),
        ("convnext", ["stages.0", "stages.1"]),
        ("vgg_batch_norm", ["features.1", "features.8"]),
        ("cnn_2d", ["conv1", "conv2"]),
        ("cnn_1d", ["0"]),
    ],
)
def test_residual_branches_and_else_the_stages_before_the_heads_pooling(name: str, places: list[str]) -> None:
    model, inputs = specimen(name)
    assert hosts(apply(model, [SqueezeExcite()], inputs)) == places


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnet_squeeze", "its blocks have gates of their own already, such as layer1.0.se.fc.2"),
        ("unet", "it joins maps by concatenation, so that a convolution ends no stage"),
        ("auxiliary_head", "conv2: the head's pooling follows, which leaves one mean a channel in any case"),
        ("gpt", "its residual branches have no convolutions"),
        ("mlp", "looked for residual branches with convolutions, or stages of convolutions"),
    ],
)
def test_a_model_where_it_does_not_belong_has_none_and_says_why(name: str, reason: str) -> None:
    model, inputs = specimen(name)
    keys = list(model.state_dict())
    with pytest.raises(NoEffectError, match=reason):
        apply(model, [SqueezeExcite()], inputs)
    assert list(model.state_dict()) == keys


def test_at_names_branches_or_convolutions() -> None:
    model, inputs = specimen("resnet")
    assert hosts(apply(model, [SqueezeExcite(at="layer1.*", not_at="layer1.0")], inputs)) == ["layer1.1.bn2"]
    model, inputs = specimen("resnet_squeeze")
    assert hosts(apply(model, [SqueezeExcite(at="layer2.1")], inputs)) == ["layer2.1.se"]
    model, inputs = specimen("unet")
    assert hosts(apply(model, [SqueezeExcite(at="bottleneck.3")], inputs)) == ["bottleneck.4"]
    model, inputs = specimen("cnn_1d")
    assert hosts(apply(model, [SqueezeExcite(at="3")], inputs)) == ["3"]
    with pytest.raises(ConfigError, match="squeeze_excite: at: "):
        apply(specimen("cnn_1d")[0], [SqueezeExcite(at="4")], inputs)
    with pytest.raises(NoEffectError, match=r"7: \(4, 3\) has no positions behind its channels"):
        apply(specimen("cnn_1d")[0], [SqueezeExcite(at="7")], inputs)


@pytest.mark.parametrize("other", [BatchNorm(), Dropout(0.5, kind="channel", where="after_layer"), Residual()])
def test_it_stands_behind_norm_and_dropout_and_in_front_of_the_add(other: Any) -> None:
    model, x = PlainNet(), torch.randn(4, 1, 128)
    apply(model, [SqueezeExcite(), other], x)
    names = [slot.name for slot in model.conv2._modules["trickbox"].slots]
    expected = {"Residual": ["squeeze_excite", "residual"]}.get(type(other).__name__, [f"{names[0]}", "squeeze_excite"])
    assert names == expected
    again = apply(PlainNet(), [other, SqueezeExcite()], x)
    assert list(again.state_dict()) == list(model.state_dict())


def test_it_stands_in_front_of_what_drops_whole_branches() -> None:
    models = pytest.importorskip("torchvision.models", reason="pip install 'trickbox[models]'")
    model = models.convnext_tiny(num_classes=2)
    apply(model, [SqueezeExcite()], torch.randn(2, 3, 64, 64))
    (slot,) = model.features[1][1].stochastic_depth._modules["trickbox"].slots
    assert (slot.name, slot.way) == ("squeeze_excite", "before")


def test_where_the_output_of_a_layer_is_used_beside_its_norm_it_stands_in_front_of_both() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.Linear(28, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.head((self.norm(x).relu() * x).flatten(1))

    assert hosts(apply(Beside(), [SqueezeExcite(2)], torch.randn(4, 1, 9))) == ["conv"]


def test_what_residual_adds_are_branches_too() -> None:
    model, x = PlainNet(), torch.randn(4, 1, 128)
    assert hosts(apply(model, [SqueezeExcite(), Residual()], x)) == ["conv2"]


def test_the_reduction_leaves_at_least_one_channel() -> None:
    plain = nn.Sequential(nn.Conv1d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(224, 2))
    for trick, channels in ((SqueezeExcite(), 2), (SqueezeExcite(5), 6), (SqueezeExcite(1000), 1)):
        model = apply(copy.deepcopy(plain), [trick], torch.randn(2, 1, 9))
        assert model[0].trickbox.squeeze_excite.fc1.out_channels == channels
    with pytest.raises(ConfigError, match="squeeze_excite: reduction must be a whole number of at least 1"):
        SqueezeExcite(0)


def test_the_gate_takes_the_dtype_of_the_model() -> None:
    model = apply(PlainNet().double(), [SqueezeExcite()], torch.randn(4, 1, 128).double())
    assert model(torch.randn(4, 1, 128).double()).dtype is torch.float64
