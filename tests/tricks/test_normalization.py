"""Norms: the hand-written network bit for bit, the right sites, and type-for-type replacement that loses nothing."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from trickbox_tricks.normalization import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm

from trickbox import ConfigError, NoEffectError, apply, nest, undo
from trickbox.authoring import Surgery
from trickbox.surgery.norms import take_over
from trickbox.tasks.waveforms import PlainNet
from trickbox.testing.zoo import specimen


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def norms(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if "Norm" in type(module).__name__}


class NotebookNormNet(PlainNet):
    """The lesson's hand-written network: batch norm between convolution and ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm1d(16), nn.BatchNorm1d(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        x = self.pool(F.relu(self.bn2(self.conv2(x))))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def small(norm: nn.Module | None = None, *, channels: int = 6) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(1, channels, 3), norm or nn.Identity(), nn.ReLU(), nn.Flatten(), nn.Linear(channels * 7, 2)
    )


# -- equal to the hand-written network ---------------------------------------------------------------------------------


def test_batch_norm_is_the_hand_written_network_bit_for_bit() -> None:
    model, by_hand = PlainNet(), NotebookNormNet()
    by_hand.load_state_dict(model.state_dict(), strict=False)
    apply(model, [BatchNorm()], torch.randn(8, 1, 128))
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9) for net in (model, by_hand)]
    for _ in range(5):
        x, y = torch.randn(8, 1, 128), torch.randint(0, 3, (8,))
        for net, optimizer in zip((model, by_hand), optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
    ours, theirs = model.state_dict(), by_hand.state_dict()
    pairs = {
        name: name.replace("conv", "bn").replace(".trickbox.batch_norm", "") for name in ours if "trickbox" in name
    }
    assert {pairs.get(name, name) for name in ours} == set(theirs)
    assert all(torch.equal(value, theirs[pairs.get(name, name)]) for name, value in ours.items())
    gradients = {name: parameter.grad for name, parameter in by_hand.named_parameters()}
    assert all(torch.equal(p.grad, gradients[pairs.get(name, name)]) for name, p in model.named_parameters())
    x = torch.randn(8, 1, 128)
    assert torch.equal(model.eval()(x), by_hand.eval()(x))


def test_sites_are_the_convolutions_and_on_request_the_linear_layers() -> None:
    x = torch.randn(4, 1, 128)
    assert list(norms(apply(PlainNet(), [BatchNorm()], x))) == [
        "conv1.trickbox.batch_norm",
        "conv2.trickbox.batch_norm",
    ]
    assert list(norms(apply(PlainNet(), [LayerNorm(dense=True)], x))) == [
        "conv1.trickbox.layer_norm",
        "conv2.trickbox.layer_norm",
        "fc1.trickbox.layer_norm",
    ]


@pytest.mark.parametrize("trick", [BatchNorm(), LayerNorm(), GroupNorm(), RMSNorm()])
def test_a_model_of_linear_layers_is_normalized_there(trick: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    assert len(norms(apply(model, [trick], torch.randn(5, 4)))) == 1


@pytest.mark.parametrize(
    ("layer", "shape", "kind"),
    [
        (nn.Conv1d(2, 4, 3), (3, 2, 8), nn.BatchNorm1d),
        (nn.Conv2d(2, 4, 3), (3, 2, 8, 8), nn.BatchNorm2d),
        (nn.Conv3d(2, 4, 3), (3, 2, 4, 4, 4), nn.BatchNorm3d),
        (nn.ConvTranspose1d(2, 4, 3), (3, 2, 8), nn.BatchNorm1d),
    ],
)
def test_every_kind_of_convolution(layer: nn.Module, shape: tuple[int, ...], kind: type) -> None:
    model = nn.Sequential(layer, nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(2))
    model(torch.zeros(shape))
    assert [type(norm) for norm in norms(apply(model, [BatchNorm()], torch.randn(shape))).values()] == [kind]


def test_settings_reach_the_norm() -> None:
    norm = apply(small(), [BatchNorm(eps=1e-3, momentum=0.02)], torch.randn(4, 1, 9))[0].trickbox.batch_norm
    assert (norm.eps, norm.momentum) == (1e-3, 0.02)
    assert apply(small(), [GroupNorm(eps=1e-3)], torch.randn(4, 1, 9))[0].trickbox.group_norm.eps == 1e-3
    assert apply(small(), [LayerNorm(eps=1e-3)], torch.randn(4, 1, 9))[0].trickbox.layer_norm.eps == 1e-3
    assert apply(small(), [InstanceNorm(eps=1e-3)], torch.randn(4, 1, 9))[0].trickbox.instance_norm.eps == 1e-3
    assert apply(small(), [RMSNorm(eps=1e-3)], torch.randn(4, 1, 9))[0].trickbox.rms_norm.eps == 1e-3


def test_a_shared_layer_has_one_norm_a_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv1d(2, 2, 3, padding=1), nn.Linear(10, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(10 + 5 * self.conv(x).relu()).relu().flatten(1))

    model, x = Twice(), torch.randn(16, 2, 5)
    apply(model, [BatchNorm()], x)
    model(x)
    first, second = norms(model).values()
    assert not torch.allclose(first.running_mean, second.running_mean)
    assert int(first.num_batches_tracked) == int(second.num_batches_tracked) == 1


def test_the_norm_takes_the_layers_dtype() -> None:
    model = apply(small().double(), [GroupNorm()], torch.randn(4, 1, 9, dtype=torch.float64))
    assert model(torch.randn(4, 1, 9, dtype=torch.float64)).dtype is torch.float64


# -- what they compute -------------------------------------------------------------------------------------------------


def test_layer_norm_of_a_convolution_is_over_channels_and_positions() -> None:
    model, x = small(), torch.randn(4, 1, 9)
    out = apply(model, [LayerNorm()], x)[0](x)
    assert torch.allclose(out, F.layer_norm(F.conv1d(x, model[0].weight, model[0].bias), (6, 7)), atol=1e-6)


def test_one_channel_a_group_is_instance_norm() -> None:
    model, x = small(), torch.randn(4, 1, 9)
    out = apply(model, [GroupNorm(groups=6)], x)[0](x)
    assert torch.allclose(out, F.instance_norm(F.conv1d(x, model[0].weight, model[0].bias)), atol=1e-5)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_instance_norm_is_torchs_own(axes: int) -> None:
    convolution = [nn.Conv1d, nn.Conv2d, nn.Conv3d][axes - 1](1, 6, 3)
    theirs = [nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d][axes - 1](6, affine=True)
    model, x = nn.Sequential(convolution, nn.Flatten(), nn.LazyLinear(2)), torch.randn(4, 1, *[6] * axes)
    apply(model, [InstanceNorm()], x)
    ours = model[0].trickbox.instance_norm
    for norm in (ours, theirs):
        norm.load_state_dict({"weight": torch.arange(6.0), "bias": torch.arange(6.0, 0, -1)})
    raw = F.conv1d if axes == 1 else F.conv2d if axes == 2 else F.conv3d
    expected = theirs(raw(x, model[0].weight, model[0].bias))
    assert torch.allclose(model[0](x), expected, atol=1e-5)
    assert [name for name, _ in ours.named_buffers()] == []


def test_rms_norm_of_dense_layers_is_the_hand_written_network_bit_for_bit() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
    by_hand = nn.Sequential(nn.Linear(4, 8), nn.RMSNorm(8, eps=1e-6), nn.GELU(), nn.Linear(8, 2))
    by_hand[0].load_state_dict(model[0].state_dict())
    by_hand[3].load_state_dict(model[2].state_dict())
    apply(model, [RMSNorm()], torch.randn(3, 5, 4))
    assert list(model.state_dict())[2:3] == ["0.trickbox.rms_norm.weight"]
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9) for net in (model, by_hand)]
    for _ in range(4):
        x = torch.randn(3, 5, 4)
        for net, optimizer in zip((model, by_hand), optimizers, strict=True):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
    ours, theirs = model[0].trickbox.rms_norm.weight, by_hand[1].weight
    assert torch.equal(ours, theirs)
    assert torch.equal(ours.grad, theirs.grad)
    assert not torch.equal(ours, torch.ones(8))
    assert torch.equal(model.eval()(x), by_hand.eval()(x))


def test_rms_norm_of_a_convolution_is_over_the_channels_at_each_position() -> None:
    model, x = small(), torch.randn(4, 1, 9)
    apply(model, [RMSNorm(eps=1e-3)], x)
    nn.init.normal_(model[0].trickbox.rms_norm.weight)
    raw = F.conv1d(x, model[0].weight, model[0].bias)
    expected = F.rms_norm(raw.transpose(1, 2), (6,), model[0].trickbox.rms_norm.weight, 1e-3).transpose(1, 2)
    assert torch.allclose(model[0](x), expected, atol=1e-6)
    assert model[0](x).is_contiguous()


def test_rms_norm_of_images_is_timms() -> None:
    layers = pytest.importorskip("timm.layers", reason="pip install 'trickbox[models]'")
    x, theirs = torch.randn(4, 3, 6, 6), layers.RmsNorm2d(8)
    model = apply(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(128, 2)), [RMSNorm()], x)
    nn.init.normal_(theirs.weight)
    model[0].trickbox.rms_norm.load_state_dict(theirs.state_dict())
    raw = F.conv2d(x, model[0].weight, model[0].bias)
    assert torch.allclose(model[0](x), theirs(raw), atol=1e-6)


def test_rms_norm_of_large_half_precision_does_not_overflow() -> None:
    model = apply(small().half(), [RMSNorm()], torch.zeros(4, 1, 9, dtype=torch.float16))
    out = model[0](torch.full((4, 1, 9), 2e3, dtype=torch.float16))
    assert out.dtype is torch.float16
    assert torch.allclose(out.float().square().mean(1), torch.ones(()), atol=1e-2)


@pytest.mark.parametrize(
    ("trick", "independent"),
    [(BatchNorm(), False), (LayerNorm(), True), (GroupNorm(), True), (InstanceNorm(), True), (RMSNorm(), True)],
)
def test_whether_samples_are_independent(trick: Any, independent: bool) -> None:
    x = torch.randn(4, 1, 9)
    model = apply(small(), [trick], x)
    changed = torch.cat([x[:1], 3 * x[1:]])
    assert torch.allclose(model(x)[0], model(changed)[0], atol=1e-5) == independent


@pytest.mark.parametrize("trick", [BatchNorm(), LayerNorm(), GroupNorm(), InstanceNorm(), RMSNorm()])
def test_the_scale_of_a_normalized_weight_does_not_matter(trick: Any) -> None:
    x = torch.randn(6, 1, 9)
    model = apply(small(), [trick], x)
    before = model(x)
    with torch.no_grad():
        model[0].weight.mul_(7)
        model[0].bias.mul_(7)
    assert torch.allclose(model(x), before, atol=1e-4)


@pytest.mark.parametrize(("channels", "groups"), [(6, 1), (48, 12), (64, 16), (256, 32), (5, 1)])
def test_default_groups(channels: int, groups: int) -> None:
    model = apply(small(channels=channels), [GroupNorm()], torch.randn(4, 1, 9))
    assert model[0].trickbox.group_norm.num_groups == groups


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trick", "layer", "shape", "reason"),
    [
        (BatchNorm(), nn.Conv1d(1, 4, 9), (1, 1, 9), "one value a channel in a whole batch"),
        (BatchNorm(), nn.Linear(4, 4), (3, 5, 4), "only layer_norm and rms_norm act"),
        (GroupNorm(), nn.Linear(4, 4), (3, 5, 4), "only layer_norm and rms_norm act"),
        (GroupNorm(3), nn.Conv1d(1, 4, 3), (2, 1, 9), "not a multiple of 3 groups"),
        (GroupNorm(4), nn.Conv1d(1, 4, 9), (2, 1, 9), "one value a group"),
        (LayerNorm(), nn.Linear(4, 1), (3, 4), "one feature has no variance"),
        (RMSNorm(), nn.Linear(4, 1), (3, 4), "only the sign would be left"),
        (RMSNorm(), nn.Conv1d(1, 1, 3), (3, 1, 6), "only the sign would be left"),
        (InstanceNorm(), nn.Linear(4, 4), (3, 4), "only what convolutions put out has positions"),
        (InstanceNorm(), nn.Conv1d(1, 4, 9), (2, 1, 9), "one value a channel in a sample"),
        (BatchNorm(), nn.Conv1d(1, 4, 3), (1, 9), "no batch axis"),
        (BatchNorm(), nn.Identity(), (3, 4), "before the head"),
    ],
)
def test_places_that_cannot_be_normalized(trick: Any, layer: nn.Module, shape: tuple[int, ...], reason: str) -> None:
    with torch.no_grad():
        width = layer(torch.zeros(shape)).shape[-1]
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(width, 2))
    with pytest.raises(NoEffectError, match=reason):
        apply(model, [trick], torch.randn(shape))
    assert not norms(model)


def test_layer_norm_acts_on_sequences() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2))
    assert apply(model, [LayerNorm()], torch.randn(3, 5, 4))[0].trickbox.layer_norm.normalized_shape == (6,)


def test_two_norms_are_one_too_many() -> None:
    with pytest.raises(ConfigError, match="cannot be in the same run"):
        apply(small(), [BatchNorm(), GroupNorm()], torch.randn(4, 1, 9))


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="batch_norm: momentum must be in"):
        BatchNorm(momentum=0)
    with pytest.raises(ConfigError, match="group_norm: groups must be a whole number"):
        GroupNorm(0)


# -- norms that are there already --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("norm", "trick"),
    [
        (nn.BatchNorm1d(6), BatchNorm()),
        (nn.GroupNorm(3, 6), GroupNorm(2)),
        (nn.GroupNorm(1, 6), LayerNorm()),
        (nn.InstanceNorm1d(6), InstanceNorm()),
        (nn.GroupNorm(6, 6), InstanceNorm()),
    ],
)
def test_a_norm_of_the_same_kind_is_not_doubled(norm: nn.Module, trick: Any) -> None:
    model = small(norm)
    with pytest.raises(NoEffectError, match=rf"1: it is a {type(norm).__name__} already"):
        apply(model, [trick], torch.randn(4, 1, 9))
    assert model[1] is norm


@pytest.mark.parametrize("trick", [GroupNorm(2), LayerNorm()])
def test_batch_norm_is_replaced_and_nothing_is_lost(trick: Any) -> None:
    old = nn.BatchNorm1d(6, eps=1e-2).double()
    nn.init.normal_(old.weight)
    nn.init.normal_(old.bias)
    old.weight.requires_grad_(False)
    model = small(old).double().eval()
    plain = copy.deepcopy(model).state_dict()
    apply(model, [trick], torch.randn(4, 1, 9, dtype=torch.float64))
    new = model[1]
    assert isinstance(new, nn.GroupNorm)
    assert (new.eps, new.training, new.weight.requires_grad, new.bias.requires_grad) == (1e-2, False, False, True)
    assert torch.equal(new.weight, plain["1.weight"])
    assert torch.equal(new.bias, plain["1.bias"])
    assert "trickbox" not in "".join(model.state_dict())
    undo(model)
    assert model[1] is old


def test_a_norm_without_gain_stays_without() -> None:
    model = small(nn.InstanceNorm1d(6))
    keys = list(model.state_dict())
    assert list(apply(model, [LayerNorm()], torch.randn(4, 1, 9)).state_dict()) == keys


def test_a_gain_of_another_shape_is_left() -> None:
    model = small(nn.LayerNorm((6, 7)))
    with pytest.raises(NoEffectError, match=r"a weight of shape \(6, 7\)"):
        apply(model, [GroupNorm(2)], torch.randn(4, 1, 9))
    assert take_over(nn.LayerNorm(6), nn.GroupNorm(2, 6)) is None


def test_a_norm_shared_by_two_layers_is_replaced_once() -> None:
    shared = nn.BatchNorm1d(3)
    model = nn.Sequential(nn.Conv1d(1, 3, 3), shared, nn.Conv1d(3, 3, 3), shared, nn.Flatten(), nn.Linear(15, 2))
    apply(model, [GroupNorm()], torch.randn(4, 1, 9))
    assert model[1] is model[3]
    assert isinstance(model[1], nn.GroupNorm)


def test_a_norm_at_the_start_of_the_next_block_counts() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm1d(3), nn.Conv1d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv(self.norm(x).relu())

    model = nn.Sequential(nn.Conv1d(1, 3, 3), Block(), nn.Flatten(), nn.Linear(21, 2))
    with pytest.raises(
        NoEffectError,
        match=r"1.conv: the model's blocks have norms .*; 1.norm: it is a BatchNorm1d already",
    ):
        apply(model, [BatchNorm()], torch.randn(4, 1, 9))


def test_norms_of_features_behind_a_change_of_axes_are_left_to_convert_norm() -> None:
    model, inputs = specimen("convnext")
    with pytest.raises(NoEffectError, match=r"0.dwconv: stages.0.norm follows, .* in another shape; convert_norm"):
        apply(model, [RMSNorm()], inputs)


def test_a_transformer_layer_keeps_its_norms() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with pytest.raises(NoEffectError, match=r"0.linear1: the model's blocks have norms .* such as 0.norm1"):
        apply(nn.Sequential(layer, nn.Linear(8, 2)), [LayerNorm()], torch.randn(3, 5, 8))


# -- in front of layers, and one for several calls ---------------------------------------------------------------------


class PreNormNet(PlainNet):
    """The lesson's network with norms in front of its second convolution and of its head."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm1d(16), nn.BatchNorm1d(64)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.pool(F.relu(self.conv1(x))))
        x = self.pool(F.relu(self.conv2(x)))
        return self.fc2(self.bn2(F.relu(self.fc1(x.flatten(1)))))


def test_in_front_of_layers_it_is_the_hand_written_network() -> None:
    model, expected, x = PlainNet(), PreNormNet(), torch.randn(4, 1, 128)
    model.load_state_dict({n: v for n, v in expected.state_dict().items() if not n.startswith("bn")})
    apply(model, [BatchNorm(at=["conv2", "fc2"], side="input")], x)
    assert torch.equal(model(x), expected(x))
    assert torch.equal(model.eval()(x), expected.eval()(x))


def test_in_front_of_a_layer_the_norm_that_is_there_is_exchanged() -> None:
    model = nn.Sequential(nn.Conv1d(1, 8, 3), nn.ReLU(), nn.BatchNorm1d(8), nn.Conv1d(8, 2, 3), nn.Flatten())
    with pytest.raises(NoEffectError, match="it is a BatchNorm1d already"):
        apply(model, [BatchNorm(at="3", side="input")], torch.randn(4, 1, 9))
    apply(model, [GroupNorm(at="3", side="input")], torch.randn(4, 1, 9))
    assert norms(model).keys() == {"2"}
    assert isinstance(model[2], nn.GroupNorm)


class Twice(nn.Module):
    """One layer in two calls; with `norms` of its own behind each of them."""

    def __init__(self, *norms: nn.Module) -> None:
        super().__init__()
        self.fc, self.head, self.norms = nn.Linear(4, 4), nn.Linear(4, 2), nn.ModuleList(norms)

    def forward(self, x: Tensor) -> Tensor:
        for norm in self.norms if len(self.norms) else (nn.Identity(),) * 2:
            x = norm(self.fc(x)).relu()
        return self.head(x)


@pytest.mark.parametrize("kind", ["output", "input"])
def test_one_norm_serves_all_calls_of_a_layer(kind: str) -> None:
    norm = nn.BatchNorm1d(4)
    model, expected, x = Twice(), Twice(norm, norm), torch.randn(8, 4)
    model.load_state_dict({n: v for n, v in expected.state_dict().items() if not n.startswith("norm")})
    apply(model, [BatchNorm(at="fc", shared=True, side=kind)], x)
    assert list(norms(model)) == ["fc.trickbox.batch_norm"]
    if kind == "output":
        assert torch.equal(model(x), expected(x))
        assert torch.equal(model.eval()(x), expected.eval()(x))
    copied = copy.deepcopy(model.train())
    assert torch.equal(copied(x), model(x))
    (one,) = norms(copied).values()
    assert one.num_batches_tracked == (4 if kind == "output" else 2)
    undo(model)
    assert not norms(model)
    apply(model, [BatchNorm(at="fc")], x)
    assert len(norms(model)) == 2


# -- undo --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trick", [BatchNorm(), LayerNorm(dense=True), GroupNorm(), InstanceNorm(), RMSNorm()])
@pytest.mark.parametrize("norm", [None, nn.BatchNorm1d(6), nn.GroupNorm(2, 6)])
def test_undo_leaves_no_trace(trick: Any, norm: nn.Module | None) -> None:
    model, x = small(copy.deepcopy(norm)), torch.randn(4, 1, 9)
    plain, modules = copy.deepcopy(model), list(model.modules())
    with contextlib.suppress(NoEffectError):
        apply(model, [trick], x)
    undo(model)
    assert all(one is other for one, other in zip(model.modules(), modules, strict=True))
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(x), plain(x))


# -- at= and not_at=: what tests/tricks/test_at.py does not ask of all tricks ------------------------------------------


class NormedHiddenNet(PlainNet):
    """Layer norm behind the first linear layer, written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(64, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv2(self.pool(F.relu(self.conv1(x))))))
        return self.fc2(F.relu(self.norm(self.fc1(x.flatten(1)))))


def test_layer_norm_at_a_named_layer_is_the_hand_written_network_bit_for_bit() -> None:
    model, by_hand = PlainNet(), NormedHiddenNet()
    by_hand.load_state_dict(model.state_dict(), strict=False)
    apply(model, [LayerNorm(eps=1e-3, at="fc1")], torch.randn(8, 1, 128))
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9) for net in (model, by_hand)]
    for _ in range(3):
        x, y = torch.randn(8, 1, 128), torch.randint(0, 3, (8,))
        for net, optimizer in zip((model, by_hand), optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
    ours = {name.replace("fc1.trickbox.layer_norm", "norm"): value for name, value in model.state_dict().items()}
    theirs = by_hand.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_at_takes_dense_layers_and_the_head_without_dense() -> None:
    x = torch.randn(4, 1, 128)
    for trick in (BatchNorm, LayerNorm, GroupNorm):
        model = apply(PlainNet(), [trick(at=["conv2", "fc?"])], x)
        assert [name.partition(".")[0] for name in norms(model)] == ["conv2", "fc1", "fc2"]
    assert list(norms(apply(PlainNet(), [LayerNorm(dense=True, not_at="conv*")], x))) == ["fc1.trickbox.layer_norm"]


@pytest.mark.parametrize("trick", [BatchNorm, LayerNorm, GroupNorm])
@pytest.mark.parametrize("setting", ["at", "not_at"])
@pytest.mark.parametrize("place", ["2", nn.ReLU, ":ReLU", lambda site: isinstance(site.module, nn.ReLU)])
def test_behind_a_module_that_is_no_weight_layer_there_is_no_norm(trick: Any, setting: str, place: Any) -> None:
    model = small(nn.BatchNorm1d(6))
    named = r"it cannot act at 2 \(ReLU\), got .*; it can act at the weight layers 0, 4\."
    why = named if isinstance(place, (str, type)) else "the predicate is true for none of 2 weight layers, got "
    with pytest.raises(ConfigError, match=rf"_norm: {setting}: {why}"):
        apply(model, [trick(**{setting: place})], torch.randn(4, 1, 9))
    assert list(norms(model)) == ["1"]


def test_the_norm_of_the_model_is_named_by_its_layer() -> None:
    x, model = torch.randn(4, 1, 9), small(nn.BatchNorm1d(6))
    with pytest.raises(ConfigError, match=r"layer_norm: at: it cannot act at 1 \(BatchNorm1d\), got '1'"):
        apply(model, [LayerNorm(at="1")], x)
    assert isinstance(apply(model, [LayerNorm(at="0")], x)[1], nn.GroupNorm)


def test_one_kind_for_some_layers_and_their_own_for_others() -> None:
    model, inputs = specimen("resnet")
    apply(model, [GroupNorm(at="layer2.**")], inputs)
    kinds = {(name.startswith("layer2."), type(norm)) for name, norm in norms(model).items()}
    assert kinds == {(True, nn.GroupNorm), (False, nn.BatchNorm2d)}
    rest, _ = specimen("resnet")
    apply(rest, [GroupNorm(not_at=["conv1", "layer1.**", "**.downsample.*"])], inputs)
    own = [name for name, norm in norms(rest).items() if isinstance(norm, nn.BatchNorm2d)]
    assert own == ["bn1", "layer1.0.bn1", "layer1.0.bn2", "layer1.1.bn1", "layer1.1.bn2", "layer2.0.downsample.1"]


def test_one_call_of_a_shared_layer_can_be_named() -> None:
    model, inputs = specimen("recurrent_depth")
    calls = [site.label for site in Surgery.on(model, inputs).anatomy.layers if site.calls > 1]
    assert len(calls) == 3
    path = calls[0].partition("[")[0]
    assert list(norms(apply(model, [LayerNorm(at=calls[1])], inputs))) == [f"{path}.trickbox.layer_norm_call1"]
    again, _ = specimen("recurrent_depth")
    assert len(norms(apply(again, [LayerNorm(at=path, not_at=calls[1])], inputs))) == 2


GPT2_LAYERS = [f"h.{n}.{part}" for n in "01" for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]


@pytest.mark.parametrize(
    ("name", "place", "hosts"),
    [
        ("gpt", "**.qkv", ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]),
        ("gpt", "blocks.*.mlp.0", ["blocks.0.mlp.0", "blocks.1.mlp.0"]),
        ("gpt", "lm_head", ["lm_head"]),
        ("bert", "layer.*.**.query", ["layer.0.attention.self.query", "layer.1.attention.self.query"]),
        ("gpt2", [":Conv1D", "lm_head"], [*GPT2_LAYERS, "lm_head"]),
    ],
)
def test_behind_layers_of_blocks_with_norms_at_puts_what_the_default_refuses(
    name: str, place: Any, hosts: list[str]
) -> None:
    model, inputs = specimen(name)
    own = list(norms(model))
    with pytest.raises(NoEffectError, match="the model's blocks have norms of their own already"):
        apply(model, [LayerNorm()], inputs)
    assert list(norms(model)) == own
    keys, before = list(model.state_dict()), nest.call(model.eval(), inputs)
    apply(model, [LayerNorm(at=place)], inputs)
    assert [n.removesuffix(".trickbox.layer_norm") for n in norms(model) if n not in own] == hosts
    assert not torch.equal(nest.call(model, inputs), before)
    undo(model)
    assert (list(norms(model)), list(model.state_dict())) == (own, keys)
    assert torch.equal(nest.call(model, inputs), before)


def test_at_a_q_projection_the_norm_works_on_q_alone() -> None:
    model, inputs = specimen("bert")
    query = model.layer[0].attention.self.query
    seen: list[Tensor] = []
    query.register_forward_hook(lambda _, args, output: seen.extend((args[0], output)), prepend=True)
    apply(model.eval(), [LayerNorm(at="layer.0.attention.self.query")], inputs)
    seen.clear()
    query.register_forward_hook(lambda _, __, output: seen.append(output))
    model(inputs)
    x, plain, normed = seen
    assert torch.equal(plain, F.linear(x, query.weight, query.bias))
    assert torch.equal(normed, F.layer_norm(plain, plain.shape[-1:]))


@pytest.mark.parametrize("trick", [BatchNorm, GroupNorm])
def test_what_cannot_be_normalized_is_skipped_also_at_a_named_place(trick: Any) -> None:
    model, inputs = specimen("gpt")
    with pytest.raises(NoEffectError, match=r"blocks.0.attn.qkv: .* where only layer_norm and rms_norm act"):
        apply(model, [trick(at="**.qkv")], inputs)
    with pytest.raises(NoEffectError, match=r"1: it is a GroupNorm already"):
        apply(small(nn.GroupNorm(2, 6)), [GroupNorm(2, at="0")], torch.randn(4, 1, 9))


def test_at_a_skip_path_without_norm_only_a_named_place_gets_one() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv1d(3, 6, 3, padding=1), nn.Conv1d(6, 6, 3, padding=1)
            self.skip = nn.Conv1d(3, 6, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv2(self.conv1(x).relu()) + self.skip(x)

    def net() -> nn.Sequential:
        return nn.Sequential(nn.Conv1d(1, 3, 1), nn.ReLU(), Block(), nn.ReLU(), nn.Flatten(), nn.Linear(54, 2))

    x = torch.randn(4, 1, 9)
    assert not any("skip" in name for name in norms(apply(net(), [BatchNorm()], x)))
    assert list(norms(apply(net(), [BatchNorm(at="2.skip")], x))) == ["2.skip.trickbox.batch_norm"]
