"""Initial weights: the scale that theory asks for, the gain of what really follows, and draws that shift no others."""

from __future__ import annotations

import copy
import math
import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from trickbox_tricks.dropout import Dropout
from trickbox_tricks.initialization import Initialize, draw, fans
from trickbox_tricks.normalization import BatchNorm
from trickbox_tricks.residual import Residual
from trickbox_tricks.transfer import Transfer

from trickbox import ConfigError, NoEffectError, apply, explain, undo
from trickbox.tasks.waveforms import PlainNet
from trickbox.testing.zoo import specimen

SERIES = (8, 1, 128)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def deep(depth: int, width: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers = [module for _ in range(depth) for module in (nn.Linear(width, width, bias=False), activation())]
    return nn.Sequential(*layers, nn.Linear(width, 2))


# -- the functions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Linear(64, 32), (4000, 64)),
        (nn.Conv1d(16, 32, 5), (200, 16, 40)),
        (nn.Conv1d(16, 32, 5, groups=4), (200, 16, 40)),
        (nn.Conv2d(8, 8, 3, groups=8), (50, 8, 20, 20)),
        (nn.ConvTranspose1d(16, 32, 4, stride=2), (200, 16, 40)),
    ],
)
@pytest.mark.parametrize("gain", [1.0, 2.0])
def test_kaiming_multiplies_the_second_moment_by_gain_squared(layer: Any, inputs: tuple[int, ...], gain: float) -> None:
    moments = []
    for _ in range(8):
        layer.weight.data = draw(layer, "kaiming", gain)
        nn.init.zeros_(layer.bias)
        out = layer(torch.randn(inputs))
        inner = out[..., 4:-4] if out.ndim == 3 else out
        moments.append(inner.square().mean().item())
    assert sum(moments) / len(moments) == pytest.approx(gain**2, rel=0.15)


@pytest.mark.parametrize("layer", [nn.Linear(30, 50), nn.Conv1d(20, 10, 5), nn.Conv2d(4, 8, 3)])
def test_kaiming_and_xavier_draw_as_torch_does(layer: Any) -> None:
    for scheme, theirs in (
        ("kaiming", partial(nn.init.kaiming_normal_, nonlinearity="linear")),
        ("xavier", nn.init.xavier_normal_),
    ):
        torch.manual_seed(1)
        ours = draw(layer, scheme, 1.0)
        torch.manual_seed(1)
        assert torch.allclose(ours, theirs(torch.empty_like(layer.weight)))
    assert fans(layer) == nn.init._calculate_fan_in_and_fan_out(layer.weight)


@pytest.mark.parametrize("layer", [nn.Linear(30, 12), nn.Conv1d(4, 12, 5), nn.Linear(12, 30), nn.Linear(9, 9).half()])
def test_orthogonal_rows_or_columns(layer: Any) -> None:
    matrix = draw(layer, "orthogonal", 1.5).flatten(1)
    small = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    assert torch.allclose(small, 1.5**2 * torch.eye(len(small)), atol=1e-4)


# -- theory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("trick", "slope"), [(None, -math.log(6)), ("kaiming", 0.0), ("xavier", -math.log(2))])
def test_the_second_moment_over_relu_layers(trick: str | None, slope: float) -> None:
    depth, width = 10, 256
    model, x = deep(depth, width), torch.randn(64, 256)
    if trick is not None:
        apply(model, [Initialize(trick)], x)
    moments = []
    with torch.no_grad():
        for module in model[:-1]:
            x = module(x)
            if isinstance(module, nn.ReLU):
                moments.append(x.square().mean().log().item())
    assert (moments[-1] - moments[0]) / (depth - 1) == pytest.approx(slope, abs=0.08)


def gains(model: nn.Module, x: Tensor) -> dict[str, float]:
    """The gain of every weight, read off the norm of orthogonal columns or rows."""
    apply(model, [Initialize("orthogonal")], x)
    weights = ((name, p.detach().flatten(1)) for name, p in model.named_parameters() if p.ndim > 1)
    return {name.removesuffix(".weight"): float(w.norm() / math.sqrt(min(w.shape))) for name, w in weights}


def test_the_gain_is_that_of_the_following_op() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool = nn.Conv1d(1, 4, 3), nn.MaxPool1d(2)
            self.one, self.two, self.three = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.pool(self.conv(x)).relu().flatten(1)
            x = F.leaky_relu(self.two(torch.tanh(self.one(x))))
            return self.head(self.three(x)).sigmoid()

    expected = {"conv": math.sqrt(2), "one": 5 / 3, "two": math.sqrt(2 / (1 + 0.01**2)), "three": 1.0, "head": 1.0}
    assert gains(Net(), torch.randn(3, 1, 8)) == pytest.approx(expected, rel=1e-4)


def test_an_activation_behind_a_norm_in_the_next_block_counts() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.fc = nn.LayerNorm(4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu_(self.norm(x)))

    found = gains(nn.Sequential(nn.Linear(3, 4), Block(), Block(), nn.Linear(4, 2)), torch.randn(5, 3))
    assert found == pytest.approx({"0": math.sqrt(2), "1.fc": math.sqrt(2), "2.fc": 1.0, "3": 1.0}, rel=1e-4)


def test_a_zero_head_makes_every_class_equally_likely() -> None:
    model, x = PlainNet(), torch.randn(SERIES)
    apply(model, [Initialize(zero_head=True)], x)
    assert F.cross_entropy(model(x), torch.arange(8) % 3).item() == pytest.approx(math.log(3), abs=1e-7)
    assert not model.fc2.bias.any()
    assert not model.conv1.bias.any()


# -- LSUV --------------------------------------------------------------------------------------------------------------


def own_outputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What every layer puts out itself, before anything that is attached."""
    found: dict[str, Tensor] = {}
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Conv1d, nn.Linear)) and "trickbox" not in n}
    handles = [
        layer.register_forward_hook(lambda _, __, out, name=name: found.setdefault(name, out.detach()), prepend=True)
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("tricks", [[], [Dropout(0.5)], [Residual(shortcut="projection")]])
def test_lsuv_gives_every_layer_unit_variance(tricks: list[Any]) -> None:
    model, x = PlainNet(), torch.randn(32, 1, 128)
    apply(model, [Initialize("lsuv"), *tricks], x)
    found = {name: float(out.std()) for name, out in own_outputs(model.eval(), x).items()}
    assert list(found) == ["conv1", "conv2", "fc1", "fc2"]
    assert all(0.9 <= std <= 1.1 for std in found.values()), found


def test_lsuv_leaves_layers_in_front_of_a_norm_and_counts_the_norm() -> None:
    model, x = PlainNet(), torch.randn(32, 1, 128)
    apply(model, [Initialize("lsuv"), BatchNorm()], x)
    plain = copy.deepcopy(model.state_dict())
    assert int(plain["conv1.trickbox.batch_norm.num_batches_tracked"]) == 0
    assert plain["conv2.weight"].flatten(1).norm(dim=1).tolist() == pytest.approx([math.sqrt(2)] * 32, rel=1e-4)
    found = {name: float(out.std()) for name, out in own_outputs(model.train(), x).items()}
    assert 0.9 <= found["fc1"] <= 1.1
    assert 0.9 <= found["fc2"] <= 1.1


def test_lsuv_stops_at_dead_layers_and_keeps_modes() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[1].eval()
    apply(model, [Initialize("lsuv", zero_head=True)], torch.zeros(5, 4))
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert [module.training for module in model] == [True, False, True]


# -- whose weights -----------------------------------------------------------------------------------------------------


def test_draws_depend_on_seed_and_name_alone() -> None:
    plain, x = PlainNet(), torch.randn(SERIES)

    def weights(tricks: list[Any], seed: int = 0) -> dict[str, Tensor]:
        model = apply(copy.deepcopy(plain), tricks, x, seed=seed)
        return {name: p for name, p in model.named_parameters() if "trickbox" not in name}

    alone, among = weights([Initialize()]), weights([Dropout(), Initialize(), Residual(shortcut="projection")])
    assert all(torch.equal(alone[name], among[name]) for name in alone)
    other = weights([Initialize()], seed=1)
    assert not any(torch.equal(alone[name], other[name]) for name in alone if name.endswith("weight"))
    twins = apply(nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)]), [Initialize()], torch.randn(2, 4))
    assert not torch.equal(twins[0].weight, twins[1].weight)


@pytest.mark.parametrize("scheme", ["kaiming", "lsuv"])
def test_the_global_generator_is_left(scheme: str) -> None:
    model, x = PlainNet(), torch.randn(SERIES)
    before = torch.get_rng_state()
    apply(model, [Initialize(scheme)], x)
    assert torch.equal(before, torch.get_rng_state())


def test_norms_and_attached_parameters_are_left() -> None:
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    nn.init.normal_(model[1].weight)
    before = model[1].weight.clone()
    apply(model, [Initialize()], torch.randn(4, 1, 8))
    assert torch.equal(model[1].weight, before)


def test_loaded_weights_are_left() -> None:
    model, teacher, x = PlainNet(), PlainNet(), torch.randn(SERIES)
    weights = {name: value for name, value in teacher.state_dict().items() if name.startswith("conv")}
    before = model.fc1.weight.clone()
    apply(model, [Initialize("lsuv"), Transfer(weights)], x)
    assert torch.equal(model.conv1.weight, teacher.conv1.weight)
    assert torch.equal(model.conv2.bias, teacher.conv2.bias)
    assert not torch.equal(model.fc1.weight, before)
    with pytest.raises(NoEffectError, match="weight layers whose weights no trick has loaded"):
        apply(PlainNet(), [Initialize(), Transfer(teacher)], x)


def test_a_new_head_is_initialized() -> None:
    model, teacher, x = PlainNet(), PlainNet(), torch.randn(SERIES)
    apply(model, [Initialize(zero_head=True), Transfer(teacher, head="new")], x)
    assert torch.equal(model.fc1.weight, teacher.fc1.weight)
    assert not model.fc2.weight.any()
    undo(model)


def test_a_tied_weight_is_drawn_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    text = explain(model, torch.randn(3, 4), [Initialize()])
    assert re.search(r"\b2 .* initialize: skipped: its weight is loaded, or drawn for a layer", text)
    apply(model, [Initialize()], torch.randn(3, 4))
    assert model[2].weight is model[0].weight


def test_a_computed_weight_is_skipped() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2))
    before = model[0].weight.clone()
    text = explain(model, torch.randn(3, 4), [Initialize()])
    assert re.search(r"\b0 .* initialize: skipped: its weight is computed", text)
    apply(model, [Initialize()], torch.randn(3, 4))
    assert torch.equal(model[0].weight, before)


def test_odd_models() -> None:
    root = apply(nn.Linear(4, 2, bias=False), [Initialize("orthogonal")], torch.randn(3, 4))
    assert torch.allclose(root.weight @ root.weight.T, torch.eye(2), atol=1e-5)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    apply(nn.Sequential(layer, nn.Linear(8, 2)), [Initialize("lsuv")], torch.randn(3, 5, 8))
    with pytest.raises(NoEffectError, match="weight layers whose weights no trick has loaded"):
        apply(nn.Sequential(nn.ReLU()), [Initialize()], torch.randn(3, 4))


# -- undo --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trick", [Initialize(), Initialize("lsuv", zero_head=True)])
def test_undo_gives_the_first_weights_back(trick: Any) -> None:
    model, x = PlainNet(), torch.randn(SERIES)
    plain = copy.deepcopy(model.state_dict())
    apply(model, [trick], x)
    assert not torch.equal(model.conv1.weight, plain["conv1.weight"])
    undo(model)
    assert all(torch.equal(value, plain[name]) for name, value in model.state_dict().items())


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"initialize: scheme must be one of .* Did you mean 'kaiming'"):
        Initialize("kaimin")


# -- at= and not_at=: what tests/tricks/test_at.py does not ask of all tricks ------------------------------------------


def drawn(model: nn.Module, inputs: Any, *tricks: Any) -> dict[str, Tensor]:
    """The parameters that *tricks* have changed, by name, with their new values."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    apply(model, list(tricks), inputs)
    return {name: p for name, p in model.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("scheme", ["kaiming", "xavier", "orthogonal"])
def test_what_is_drawn_at_a_place_is_what_would_be_drawn_there_anyway(scheme: str) -> None:
    plain, x = PlainNet(), torch.randn(SERIES)
    everywhere = drawn(copy.deepcopy(plain), x, Initialize(scheme))
    there = drawn(copy.deepcopy(plain), x, Initialize(scheme, at=["conv?", "fc2"]))
    assert list(there) == [name for name in everywhere if not name.startswith("fc1")]
    assert all(torch.equal(value, everywhere[name]) for name, value in there.items())
    rest = drawn(copy.deepcopy(plain), x, Initialize(scheme, not_at=["conv?", "fc2"]))
    assert list(rest) == ["fc1.weight", "fc1.bias"]
    assert all(torch.equal(value, everywhere[name]) for name, value in rest.items())


def test_schemes_for_each_layer_are_those_of_their_objects() -> None:
    plain, x = PlainNet(), torch.randn(SERIES)
    tricks = [("a", Initialize("orthogonal", at=":Conv1d")), ("b", Initialize("xavier", zero_head=True, at="fc?"))]
    found = [drawn(copy.deepcopy(plain), x, *order) for order in (tricks, tricks[::-1])]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    alone = drawn(copy.deepcopy(plain), x, Initialize("orthogonal")) | drawn(
        copy.deepcopy(plain), x, Initialize("xavier", zero_head=True, not_at="conv*")
    )
    assert found[0].keys() == alone.keys()
    assert all(torch.equal(found[0][name], value) for name, value in alone.items())


def test_a_zero_head_is_zero_where_the_head_is_meant() -> None:
    x = torch.randn(SERIES)
    elsewhere = apply(PlainNet(), [Initialize(zero_head=True, at="conv*")], x)
    assert elsewhere.fc2.weight.all()
    assert not apply(PlainNet(), [Initialize(zero_head=True, at="fc2")], x).fc2.weight.any()
    assert apply(PlainNet(), [Initialize(zero_head=True, not_at="fc2")], x).fc2.weight.all()


def test_lsuv_scales_the_layers_at_its_places_alone() -> None:
    model, x = PlainNet(), torch.randn(32, 1, 128)
    changed = drawn(model, x, Initialize("lsuv", at=["conv2", "fc1"]))
    assert list(changed) == ["conv2.weight", "conv2.bias", "fc1.weight", "fc1.bias"]
    found = {name: float(out.std()) for name, out in own_outputs(model.eval(), x).items()}
    assert all(0.9 <= found[name] <= 1.1 for name in ("conv2", "fc1")), found


@pytest.mark.parametrize(
    ("name", "settings", "parts"),
    [
        ("gpt", {"at": "**.proj"}, ["blocks.0.attn.proj", "blocks.1.attn.proj"]),
        ("gpt", {"at": ["blocks.1.**", "lm_head"], "not_at": "**.mlp.*"},
         ["blocks.1.attn.qkv", "blocks.1.attn.proj", "lm_head"]),
        ("gpt", {"not_at": "blocks.**"}, ["lm_head"]),
        ("gpt2", {"at": ":Conv1D", "not_at": "h.0.**"},
         ["h.1.attn.c_attn", "h.1.attn.c_proj", "h.1.mlp.c_fc", "h.1.mlp.c_proj"]),
        ("resnet", {"at": "**.downsample.*"}, ["layer2.0.downsample.0"]),
        ("lstm", {"at": "lstm"}, ["lstm"]),
        ("lstm", {"at": nn.RNNBase}, ["lstm"]),
        ("lstm", {"at": "fc"}, ["fc"]),
        ("lstm", {"not_at": ":LSTM"}, ["fc"]),
        ("lstm", {"not_at": "fc"}, ["lstm"]),
        ("transformer_encoder", {"at": "**.1.self_attn"}, ["encoder.layers.1.self_attn"]),
        ("transformer_encoder", {"at": ":MultiheadAttention", "not_at": "encoder.layers.0.*"},
         ["encoder.layers.1.self_attn"]),
        ("transformer_encoder", {"not_at": ["encoder.**.self_attn", "**.linear?"]}, ["fc"]),
    ],
)  # fmt: skip
def test_layers_of_every_kind_can_be_named(name: str, settings: dict[str, Any], parts: list[str]) -> None:
    model, inputs = specimen(name)
    before = copy.deepcopy(model.state_dict())
    found = drawn(model, inputs, Initialize(**settings))
    assert list(dict.fromkeys(next(p for p in parts if f"{n}.".startswith(f"{p}.")) for n in found)) == parts
    everywhere = drawn(specimen(name)[0], inputs, Initialize())
    assert all(torch.equal(value, everywhere[name]) for name, value in found.items())
    undo(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("setting", ["at", "not_at"])
@pytest.mark.parametrize(
    ("name", "place", "message"),
    [
        ("gpt", "tok_emb", r"it cannot act at tok_emb \(Embedding\), got 'tok_emb'; it can act at the weight layers "),
        ("gpt", "blocks.*.norm1", r"it cannot act at blocks.0.norm1 \(LayerNorm\), blocks.1.norm1 \(LayerNorm\), got "),
        ("gpt", "lm_haed", r"no path matches, got 'lm_haed'; there are .* Did you mean 'lm_head'\?"),
        ("lstm", "embedding", r"it cannot act at embedding \(Embedding\), got 'embedding'; it can act at fc, lstm\."),
        ("lstm", ":GRU", r"no module is of this class, got ':GRU'; there are "),
        ("transformer_encoder", "**.out_proj", r"the model never calls encoder.layers.0.self_attn.out_proj \("),
    ],
)
def test_places_without_a_weight_to_draw_are_refused(setting: str, name: str, place: str, message: str) -> None:
    model, inputs = specimen(name)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match=f"^initialize: {setting}: {message}"):
        apply(model, [Initialize(**{setting: place})], inputs)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_loaded_and_tied_weights_are_left_at_named_places_too() -> None:
    teacher, x = PlainNet(), torch.randn(SERIES)
    weights = {name: value for name, value in teacher.state_dict().items() if name.startswith("conv")}
    model = apply(PlainNet(), [Initialize(at=["conv1", "fc1"]), Transfer(weights)], x)
    assert torch.equal(model.conv1.weight, teacher.conv1.weight)
    with pytest.raises(NoEffectError, match="weight layers whose weights no trick has loaded"):
        apply(PlainNet(), [Initialize(at="conv*"), Transfer(weights)], x)
    tied, inputs = specimen("gpt2")
    with pytest.raises(NoEffectError, match="lm_head: its weight is that of an embedding"):
        apply(tied, [Initialize(at="lm_head")], inputs)
