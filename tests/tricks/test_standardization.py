"""Weight standardization: timm's convolution bit for bit, keys that stay, and one layer with two faces."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from trickbox_tricks import BatchNorm, Dropout, GroupNorm, Initialize, WeightStandardization
from trickbox_tricks.initialization import scale_to_unit_variance
from trickbox_tricks.standardization import standardized

from trickbox import ConfigError, NoEffectError, apply, undo
from trickbox.testing.zoo import specimen


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def small(convolution: nn.Module | None = None) -> nn.Sequential:
    convolution = convolution or nn.Conv2d(3, 8, 3)
    return nn.Sequential(convolution, nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))


def kinds(model: nn.Module) -> dict[str, str]:
    return {path: type(m).__name__ for path, m in model.named_modules() if "Standardized" in type(m).__name__}


def steps(model: nn.Module, x: Tensor, count: int = 3) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(count):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return model


# -- equal to what others wrote ----------------------------------------------------------------------------------------


def test_it_is_timms_convolution_bit_for_bit() -> None:
    layers = pytest.importorskip("timm.layers.std_conv", reason="pip install 'trickbox[models]'")
    settings: dict[str, Any] = {"stride": 2, "padding": 1, "dilation": 2, "groups": 3, "bias": True}
    model = nn.Sequential(nn.Conv2d(3, 6, 3, **settings), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2))
    by_hand = copy.deepcopy(model)
    by_hand[0] = layers.StdConv2d(3, 6, 3, **settings)
    by_hand.load_state_dict(model.state_dict())
    apply(model, [WeightStandardization()], X)
    steps(model, X)
    steps(by_hand, X)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), by_hand.parameters(), strict=True))
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), by_hand.parameters(), strict=True))
    assert torch.equal(model.eval()(X), by_hand.eval()(X))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_the_weights_of_each_channel_have_mean_0_and_variance_1(axes: int, mode: str) -> None:
    layer = [nn.Conv1d, nn.Conv2d, nn.Conv3d][axes - 1](4, 6, 3, padding=1, padding_mode=mode, groups=2)
    model, x = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(2)), torch.randn(2, 4, *[5] * axes)
    weight = layer.weight.detach().double().flatten(1)
    expected = (weight - weight.mean(1, keepdim=True)) / (weight.var(1, correction=0, keepdim=True) + 1e-2).sqrt()
    apply(model, [WeightStandardization(eps=1e-2)], x)
    by_hand = copy.deepcopy(layer)
    by_hand.weight.data = expected.reshape(layer.weight.shape).float()
    assert torch.allclose(model[0](x), by_hand(x), atol=1e-5)
    assert kinds(model) == {"0": f"StandardizedConv{axes}d"}


def test_scale_and_offset_of_a_weight_do_not_matter() -> None:
    weight = torch.randn(4, 3, 5)
    assert torch.allclose(standardized(7 * weight + 3), standardized(weight), atol=1e-3)
    assert torch.allclose(standardized(weight).mean((1, 2)), torch.zeros(4), atol=1e-6)
    assert torch.allclose(standardized(weight).square().mean((1, 2)), torch.ones(4), atol=1e-3)


# -- keys, copies, undo ------------------------------------------------------------------------------------------------


def test_keys_stay_and_state_dicts_load_both_ways() -> None:
    model, plain = small(), small()
    for one in (model, plain):
        one(X)
    keys = list(plain.state_dict())
    apply(model, [WeightStandardization()], X)
    assert list(model.state_dict()) == keys
    for twin in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin.load_state_dict(plain.state_dict(), strict=True)
        assert torch.equal(twin[0].weight, plain[0].weight)
        assert torch.equal(twin(X), model(X))
        assert not torch.equal(twin(X), plain(X))
        plain.load_state_dict(twin.state_dict(), strict=True)


def test_a_copy_uses_its_own_weight() -> None:
    model = small()
    apply(model, [WeightStandardization()], X)
    before, twin = model(X), copy.deepcopy(model)
    nn.init.normal_(twin[0].weight)
    assert torch.equal(model(X), before)
    assert not torch.equal(twin(X), before)
    undo(twin)
    assert type(twin[0]) is nn.Conv2d
    assert torch.equal(model(X), before)


def test_undo_gives_back_the_layer_with_what_was_trained() -> None:
    model = small()
    model(X)
    layer, plain, seen = model[0], copy.deepcopy(model), model(X)
    undo(apply(model, [WeightStandardization()], X))
    assert model[0] is layer
    assert vars(layer).keys() == vars(plain[0]).keys()
    assert torch.equal(model(X), seen)
    apply(model, [WeightStandardization()], X)
    steps(model, X)
    trained = model[0].weight.detach().clone()
    undo(model)
    assert model[0] is layer
    assert torch.equal(layer.weight, trained)
    assert not torch.equal(trained, plain[0].weight)


def test_it_compiles_into_one_graph() -> None:
    model = apply(small(), [WeightStandardization()], X)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="eager")
    assert torch.equal(compiled(X), model(X))


# -- together with others ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [GroupNorm(at="0"), Dropout(0.5, at="0"), Initialize("orthogonal")])
def test_the_order_of_installation_does_not_matter(other: Any) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2))
    one, two = copy.deepcopy(plain), copy.deepcopy(plain)
    apply(apply(one, [WeightStandardization()], X, seed=0), [other], X, seed=0)
    apply(apply(two, [other], X, seed=0), [WeightStandardization()], X, seed=0)
    assert list(one.state_dict()) == list(two.state_dict())
    assert kinds(one) == kinds(two) == {"0": "StandardizedConv2d"}
    assert torch.equal(one.train()(X), two.train()(X))
    for model in (one, two):
        undo(model)
        assert type(model[0]) is nn.Conv2d
        assert not model[0]._forward_hooks
        assert torch.equal(model(X), plain(X))


def test_it_comes_before_the_norms_and_the_initialization() -> None:
    from trickbox.box import Box

    names = [m.name for m in Box([Initialize(), BatchNorm(), WeightStandardization()]).members]
    assert names == ["weight_standardization", "batch_norm", "initialize"]


def test_lsuv_leaves_a_weight_whose_scale_changes_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2))
    apply(model, [WeightStandardization()], X)
    before = model[0].weight.detach().clone()
    scale_to_unit_variance(model, lambda: model(X), ["0", "3"])
    assert torch.equal(model[0].weight, before)
    assert abs(float(model(X).detach().std()) - 1) < 0.1


def test_a_hook_of_the_user_keeps_firing() -> None:
    model, seen = small(), []
    model(X)
    handle = model[0].register_forward_hook(lambda layer, _, __: seen.append(type(layer).__name__))
    apply(model, [WeightStandardization()], X)
    seen.clear()
    model(X)
    undo(model)
    model(X)
    handle.remove()
    model(X)
    assert seen == ["StandardizedConv2d", "Conv2d"]


# -- where -------------------------------------------------------------------------------------------------------------


def test_the_convolutions_of_a_residual_net_but_not_its_head_or_gates() -> None:
    model, inputs = specimen("resnet")
    convolutions = [path for path, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    assert list(kinds(apply(model, [WeightStandardization()], inputs))) == convolutions
    head = nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Conv1d(4, 2, 3))
    assert list(kinds(apply(head, [WeightStandardization()], torch.randn(2, 1, 9)))) == ["0"]
    model, inputs = specimen("mobilenet")
    assert list(kinds(apply(model, [WeightStandardization(at="features.2.**", not_at="**.2")], inputs))) == [
        "features.2.conv.0.0",
        "features.2.conv.1.0",
    ]


def test_a_convolution_that_is_called_twice_is_standardized_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv1d(2, 2, 3, padding=1), nn.Linear(10, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(self.conv(x).relu()).relu().flatten(1))

    model, x = Twice(), torch.randn(4, 2, 5)
    weight = standardized(model.conv.weight)
    apply(model, [WeightStandardization()], x)
    once = F.conv1d(x, weight, model.conv.bias, padding=1).relu()
    expected = model.head(F.conv1d(once, weight, model.conv.bias, padding=1).relu().flatten(1))
    assert torch.equal(model(x), expected)
    undo(model)
    assert type(model.conv) is nn.Conv1d


class Own(nn.Conv2d):
    pass


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.ConvTranspose2d(3, 8, 3), "0: it is a ConvTranspose2d, and only torch's convolutions, not transposed"),
        (Own(3, 8, 3), "0: it is a Own, and only"),
        (spectral_norm(nn.Conv2d(3, 8, 3)), "0: its weight is computed from other parameters"),
        (nn.Conv2d(3, 8, 6), "0: it has one position, where it is a linear layer"),
        (nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.Unflatten(1, (8, 1))), "looked for convolutions before"),
    ],
)
def test_what_is_not_standardized_is_named(layer: nn.Module, reason: str) -> None:
    model = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(NoEffectError, match=reason):
        apply(model, [WeightStandardization()], X)
    depthwise = nn.Sequential(nn.Conv1d(4, 4, 1, groups=4), nn.ReLU(), nn.Flatten(), nn.Linear(20, 2))
    with pytest.raises(NoEffectError, match="0: one weight a channel has no variance"):
        apply(depthwise, [WeightStandardization()], torch.randn(2, 4, 5))


def test_a_transformer_has_none_by_itself() -> None:
    model, inputs = specimen("vit")
    with pytest.raises(NoEffectError, match="its residual branches have no convolutions"):
        apply(model, [WeightStandardization()], inputs)
    assert list(kinds(apply(model, [WeightStandardization(at="conv_proj")], inputs))) == ["conv_proj"]
    with pytest.raises(NoEffectError, match="it is a Linear, and only"):
        apply(specimen("vit")[0], [WeightStandardization(at="layers.0.mlp.0")], inputs)
    with pytest.raises(ConfigError, match="weight_standardization: eps must be in"):
        WeightStandardization(eps=0)
