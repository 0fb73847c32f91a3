"""LoRA: equal to a layer with the sum in its weight, at the right layers, and nothing else learns."""

from __future__ import annotations

import copy
import math
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trickbox_tricks.dropout import Dropout
from trickbox_tricks.lora import Adapter, LoRA, low_rank
from trickbox_tricks.normalization import BatchNorm
from trickbox_tricks.transfer import Freeze

from trickbox import ConfigError, NoEffectError, apply, attach, explain, fit, undo
from trickbox.nest import call, tensors
from trickbox.surgery import evaluating
from trickbox.testing.specimens.language import Conv1D
from trickbox.testing.zoo import ZOO, specimen
from trickbox.trick import name_of


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def dense(*widths: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))


def adapters(model: nn.Module) -> dict[str, Adapter]:
    """The adapters by the path of their layer."""
    return {path.split(".trickbox.")[0]: m for path, m in model.named_modules() if isinstance(m, Adapter)}


def learned(model: nn.Module) -> nn.Module:
    """The model as if its adapters had been trained."""
    for adapter in adapters(model).values():
        nn.init.normal_(adapter.up.weight)
    return model


def trained(model: nn.Module) -> set[str]:
    """The names of the model's own parameters that train."""
    return {name for name, p in model.named_parameters() if p.requires_grad and ".trickbox." not in name}


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    with torch.no_grad(), evaluating(model):
        return list(tensors(call(model, inputs)))


# -- the formula -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "factor"), [(None, 1.0), (4.0, 2.0), (16, 8.0)])
def test_a_dense_layer_is_one_with_the_sum_in_its_weight(alpha: float | None, factor: float) -> None:
    plain, x = dense(7, 9, 3), torch.randn(5, 4, 7)
    model = learned(apply(copy.deepcopy(plain), [LoRA(2, alpha, at="0")], x))
    a, b = (getattr(model[0].trickbox.lora, name).weight for name in ("down", "up"))
    assert (a.shape, b.shape) == ((2, 7), (9, 2))
    plain[0].weight = nn.Parameter(plain[0].weight + factor * b @ a)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-5, atol=1e-5)


GEOMETRIES: list[tuple[int, dict[str, Any]]] = [
    (2, {"kernel_size": 1}),
    (2, {"kernel_size": (3, 2), "stride": 2, "padding": 1}),
    (2, {"kernel_size": 3, "dilation": 2, "padding": "same"}),
    (1, {"kernel_size": 5, "padding": 2, "padding_mode": "circular", "bias": False}),
    (3, {"kernel_size": 3, "stride": (1, 2, 3)}),
]


def test_a_convolution_is_one_with_the_sum_in_its_kernel() -> None:
    for dimensions, geometry in GEOMETRIES:
        check_convolution(dimensions, geometry)


def check_convolution(dimensions: int, geometry: dict[str, Any]) -> None:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    plain, x = (
        nn.Sequential(kind(3, 5, **geometry), nn.Flatten(), nn.LazyLinear(2)),
        torch.randn(2, 3, *[7] * dimensions),
    )
    plain(x)
    model = learned(apply(copy.deepcopy(plain), [LoRA(2, 6)], x))
    a, b = model[0].trickbox.lora.down.weight, model[0].trickbox.lora.up.weight
    assert b.shape == (5, 2, *[1] * dimensions)
    plain[0].weight = nn.Parameter(plain[0].weight + 3 * torch.einsum("or...,ri...->oi...", b, a))
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)


def test_it_is_the_published_formula_of_a_convolution() -> None:
    conv, x = nn.Conv2d(3, 6, 3, stride=2, padding=1), torch.randn(2, 3, 8, 8)
    model = learned(apply(nn.Sequential(copy.deepcopy(conv), nn.Conv2d(6, 2, 1)), [LoRA(4, 8)], x))
    lora_a, lora_b = nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.Conv2d(4, 6, 1, 1, bias=False)
    lora_a.weight, lora_b.weight = model[0].trickbox.lora.down.weight, model[0].trickbox.lora.up.weight
    assert torch.equal(model[0](x), conv(x) + lora_b(lora_a(x)) * 2.0)


@pytest.mark.parametrize(("width", "features"), [(6, 6), (6, 4)])
def test_a_layer_with_its_weight_the_other_way_round(width: int, features: int) -> None:
    plain, x = nn.Sequential(Conv1D(features, width), nn.Linear(features, 2)), torch.randn(5, width)
    model = learned(apply(copy.deepcopy(plain), [LoRA(3, 6)], x))
    a, b = model[0].trickbox.lora.down.weight, model[0].trickbox.lora.up.weight
    plain[0].weight = nn.Parameter(plain[0].weight + 2 * (b @ a).t())
    torch.testing.assert_close(model(x), plain(x), rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_formula() -> None:
    x, g = torch.randn(5, 7), torch.randn(5, 3)
    model = learned(apply(nn.Sequential(nn.Linear(7, 3)), [LoRA(2, 6, at="0")], x))
    a, b = model[0].trickbox.lora.down.weight, model[0].trickbox.lora.up.weight
    (model(x) * g).sum().backward()
    torch.testing.assert_close(b.grad, 3 * g.t() @ (x @ a.t()))
    torch.testing.assert_close(a.grad, 3 * b.t() @ g.t() @ x)
    assert model[0].weight.grad is None


def test_the_change_is_linear_in_scale_and_of_the_rank() -> None:
    down, up = torch.randn(2, 6), torch.randn(5, 2)
    assert torch.equal(low_rank(down, up, 2.0), 2.0 * (up @ down))
    assert torch.linalg.matrix_rank(low_rank(down, up, 1.0)) == 2


def test_it_begins_as_the_model_was_bit_for_bit() -> None:
    for name in ("mlp", "resnet", "gpt2", "recurrent_depth"):
        model, inputs = specimen(name)
        before = outputs(model, inputs)
        assert all(map(torch.equal, outputs(apply(model, [LoRA()], inputs), inputs), before)), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_every_model_begins_as_it_was_and_adapters_are_sums_in_its_weights(name: str) -> None:
    model, inputs = specimen(name)
    before = outputs(model, inputs)
    try:
        apply(model, [LoRA(2)], inputs)
    except NoEffectError:
        assert name in ("generator", "spectral_norm", "functional_weights", "lstm", "gru", "graph")
        return
    assert all(map(torch.equal, outputs(model, inputs), before))
    found = outputs(learned(model), inputs)
    changes = {path: (adapter.weight, adapter.change().detach()) for path, adapter in adapters(model).items()}
    undo(model)
    with torch.no_grad():
        for path, (weight, change) in changes.items():
            getattr(model.get_submodule(path), weight).add_(change)
    for one, other in zip(outputs(model, inputs), found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


# -- draws -------------------------------------------------------------------------------------------------------------


def test_a_is_drawn_as_torch_draws_a_layer() -> None:
    model = apply(dense(400, 50, 2), [LoRA(30)], torch.randn(4, 400))
    a = model[0].trickbox.lora.down.weight
    assert a.abs().max() <= 1 / math.sqrt(400)
    assert a.std().item() == pytest.approx(1 / math.sqrt(3 * 400), rel=0.03)
    assert not model[0].trickbox.lora.up.weight.any()


def test_what_is_drawn_at_a_layer_depends_on_nothing_else() -> None:
    x, before = torch.randn(4, 6), torch.get_rng_state()
    alone = apply(dense(6, 6, 6, 2), [LoRA(at="1")], x, seed=5)
    model = apply(dense(6, 6, 6, 2), [Dropout(), LoRA()], x, seed=5)
    a = [m[1].trickbox.lora.down.weight for m in (alone, model)]
    assert torch.equal(a[0], a[1])
    assert not torch.equal(a[1], model[0].trickbox.lora.down.weight)
    assert not torch.equal(a[1], apply(dense(6, 6, 6, 2), [LoRA()], x, seed=6)[1].trickbox.lora.down.weight)
    assert not torch.equal(before, torch.get_rng_state())  # of the nets alone: see the suite's check of pairing


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_adapters_have_the_type_of_their_layer(dtype: torch.dtype) -> None:
    model, x = nn.Sequential(Conv1D(4, 6), nn.Linear(4, 2)).to(dtype), torch.randn(5, 6, dtype=dtype)
    apply(model, [LoRA()], x)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model(x).dtype is dtype


# -- where -------------------------------------------------------------------------------------------------------------


def test_in_blocks_it_spares_stem_skip_paths_and_head() -> None:
    model, x = specimen("resnet")
    apply(model, [LoRA()], x)
    assert set(adapters(model)) == {f"layer{i}.{j}.conv{k}" for i in (1, 2) for j in (0, 1) for k in (1, 2)}
    assert model.layer2[0].downsample is not None


def test_in_a_transformer_it_takes_all_layers_of_the_blocks() -> None:
    model, tokens = specimen("llama")
    apply(model, [LoRA()], tokens)
    names = {path.rpartition(".")[2] for path in adapters(model)}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_without_blocks_it_takes_all_but_the_head() -> None:
    model, x = specimen("cnn_2d")
    assert set(adapters(apply(model, [LoRA()], x))) == {"conv1", "conv2", "fc1", "fc2"}


def test_two_ranks_at_two_places() -> None:
    model = apply(dense(6, 6, 6, 2), [LoRA(2, at="0"), LoRA(3, at="1")], torch.randn(4, 6))
    assert [len(adapter.down.weight) for adapter in adapters(model).values()] == [2, 3]
    assert trained(model) == {"2.weight", "2.bias"}


def test_parameters_are_rank_times_both_widths() -> None:
    model, x = dense(20, 30, 2), torch.randn(4, 20)
    assert "Parameters: 692 before, 942 after" in explain(model, x, [LoRA(5)])
    added = sum(p.numel() for p in apply(model, [LoRA(5)], x)[0].trickbox.parameters())
    assert added == 5 * (20 + 30)


class Shifted(nn.Linear):
    """A layer that does more than its weight says."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight - self.weight.mean(), self.bias)


class Standardized(nn.Conv1d):
    """A convolution that does more than its weight says."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight / self.weight.std(), self.bias)


class Renamed(nn.Conv2d):
    """A layer that does what its base does."""


REFUSED: list[tuple[nn.Module, tuple[int, ...], str]] = [
    (nn.ConvTranspose1d(3, 4, 3), (3, 8), "it is a transposed convolution, or one in groups"),
    (nn.Conv1d(4, 4, 3, groups=2), (4, 8), "it is a transposed convolution, or one in groups"),
    (nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)), (3, 8), "its weight is computed"),
    (Shifted(8, 4), (3, 8), "what a Shifted puts out is more than its weight times its input"),
    (Standardized(3, 4, 3), (3, 8), "what a Standardized puts out is more"),
]


def test_a_layer_that_it_would_not_merge_into_is_left_alone_by_name() -> None:
    for layer, shape, why in REFUSED:
        x = torch.randn(2, *shape)
        model = nn.Sequential(layer, nn.Flatten(), nn.Linear(layer(x)[0].numel(), 2))
        with pytest.raises(NoEffectError, match=f"0: {why}"):
            apply(model, [LoRA()], x)
        assert trained(model) == {name for name, _ in model.named_parameters()}


def test_a_layer_that_needs_another_input_is_left_alone_by_name() -> None:
    model, inputs = specimen("graph")
    with pytest.raises(NoEffectError, match="what a GraphConvolution puts out is more"):
        apply(model, [LoRA()], inputs)


def test_a_class_of_ones_own_that_does_the_same_gets_one() -> None:
    model = apply(nn.Sequential(Renamed(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)), [LoRA()], torch.randn(2, 3, 8, 8))
    assert list(adapters(model)) == ["0"]


def test_a_tied_head_is_refused_by_name() -> None:
    model, tokens = specimen("gpt2")
    with pytest.raises(NoEffectError, match="lm_head: it shares its weight with wte"):
        apply(model, [LoRA(at="lm_head")], tokens)
    with pytest.raises(ConfigError, match="lora: head: lm_head shares its weight with wte; use head='auto'"):
        apply(model, [LoRA(head="train")], tokens)


def test_a_weight_that_a_function_uses_elsewhere_is_refused_by_name() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.head = nn.Linear(6, 4), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.linear(self.encode(x).relu(), self.encode.weight.t()))

    with pytest.raises(NoEffectError, match=r"encode: it shares its weight with \(model\)"):
        apply(Tied(), [LoRA()], torch.randn(3, 6))


# -- shared layers -----------------------------------------------------------------------------------------------------


def test_a_layer_that_is_called_three_times_has_one_adapter() -> None:
    model, x = specimen("recurrent_depth")
    plain = copy.deepcopy(model)
    run = attach(model, [LoRA(2)], x, steps=1)
    assert [name for name, _ in model.layer.named_parameters() if "trickbox" in name] == [
        "trickbox.lora.down.weight",
        "trickbox.lora.up.weight",
    ]
    added = sum(p.numel() for name, p in model.named_parameters() if ".trickbox." in name)
    assert sum(note.parameters for note in run.state.surgery.notes) == added
    learned(model)
    with torch.no_grad():
        for path, adapter in adapters(model).items():
            plain.get_submodule(path).weight.add_(adapter.change())
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)
    model(x).sum().backward()
    plain(x).sum().backward()
    adapter = model.layer.trickbox.lora
    expected = adapter.up.weight.t() @ plain.layer.weight.grad
    torch.testing.assert_close(adapter.down.weight.grad, expected, rtol=1e-4, atol=1e-4)
    undo(model)
    assert not hasattr(model.layer, "trickbox")


def test_one_call_of_a_layer_that_is_named_means_all() -> None:
    model, inputs = specimen("siamese")
    apply(model, [LoRA(at="tower.0[1]")], inputs)
    assert [slot.call for slot in model.tower[0].trickbox.slots] == [0, 1]
    assert set(adapters(model)) == {"tower.0"}


# -- what learns -------------------------------------------------------------------------------------------------------


HEADS: list[tuple[str, str, set[str]]] = [
    ("resnet", "auto", {"fc.weight", "fc.bias"}),
    ("resnet", "freeze", set()),
    ("two_heads", "auto", {f"{kind}_head.{leaf}" for kind in ("class", "box") for leaf in ("weight", "bias")}),
    ("llama", "auto", set()),
    ("llama", "train", {"lm_head.weight"}),
    ("gpt2", "auto", set()),
    ("bert", "auto", {"classifier.weight", "classifier.bias"}),
]


def test_nothing_of_the_model_trains_but_the_head() -> None:
    for name, head, expected in HEADS:
        model, inputs = specimen(name)
        apply(model, [LoRA(head=head)], inputs)
        assert trained(model) == expected, (name, head)
        assert all(p.requires_grad for adapter in adapters(model).values() for p in adapter.parameters())


def test_a_head_that_has_an_adapter_is_frozen() -> None:
    model = apply(dense(6, 6, 2), [LoRA(at="1")], torch.randn(4, 6))
    assert trained(model) == set()


def test_statistics_rest_and_dropouts_go_on() -> None:
    model, x = specimen("vgg_batch_norm")
    apply(model.train(), [LoRA()], x)
    before = {name: value.clone() for name, value in model.named_buffers()}
    one, other = model(x + 1), model(x + 1)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert not torch.equal(one, other)


def test_norms_that_another_trick_adds_learn_along() -> None:
    model = apply(dense(6, 6, 2), [LoRA(), BatchNorm()], torch.randn(8, 6)).train()
    norm = model[0].trickbox.batch_norm
    model(torch.randn(8, 6)).sum().backward()
    assert norm.weight.requires_grad
    assert norm.running_mean.any()


def test_training_moves_adapters_and_head_and_no_other_bit() -> None:
    x = torch.randn(32, 6)
    model, y = dense(6, 8, 2), (x[:, 0] > 0).long()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = fit(
        model,
        (x, y),
        loss=nn.CrossEntropyLoss(),
        optimizer=partial(torch.optim.AdamW, lr=0.05),
        tricks=[LoRA(2)],
        max_epochs=5,
        batch_size=32,
    )
    losses = result.history["train_loss"]
    assert losses[-1] < losses[0]
    changed = {name for name, value in before.items() if not torch.equal(value, model.state_dict()[name])}
    assert changed == {"1.weight", "1.bias"}
    assert model[0].trickbox.lora.up.weight.any()


def test_undo_gives_back_flags_hooks_and_bits() -> None:
    model, x = specimen("vgg_batch_norm")
    model.features[0].weight.requires_grad_(False)
    before, state = trained(model), copy.deepcopy(model.state_dict())
    undo(apply(model, [LoRA()], x))
    assert trained(model) == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_it_cannot_go_with_freeze() -> None:
    with pytest.raises(ConfigError, match="cannot be in the same run"):
        apply(dense(6, 6, 2), [LoRA(), Freeze()], torch.randn(4, 6))


def test_its_name_is_the_fields_own() -> None:
    assert name_of(LoRA) == "lora"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "recurrent_depth"])
def test_a_compiled_model_does_the_same(name: str) -> None:
    model, inputs = specimen(name)
    learned(apply(model.eval(), [LoRA()], inputs))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(inputs), model(inputs))
