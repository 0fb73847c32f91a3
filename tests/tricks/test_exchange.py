"""One norm in the place of another: what is taken over, keys both ways, undo, and the models that others built."""

from __future__ import annotations

import copy
import io
import pickle
from collections import OrderedDict
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trickbox_tricks import EMA, BatchNorm, ConvertNorm, Dropout, EarlyStopping, GroupNorm, LayerNorm

import trickbox as tb
from trickbox import ConfigError, NoEffectError, apply, nest, undo
from trickbox.surgery.ledger import ledger
from trickbox.surgery.norms import NORM_KINDS
from trickbox.testing.zoo import specimen

X = torch.randn(4, 1, 9, generator=torch.Generator().manual_seed(0))
WITHOUT = [kind for kind in NORM_KINDS if kind != "batch_norm"]
"""The kinds that have no running statistics."""
STATISTICS = ["running_mean", "running_var", "num_batches_tracked"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def net(norm: nn.Module) -> nn.Sequential:
    """A small net around a norm of six channels, which has seen something."""
    model = nn.Sequential(nn.Conv1d(1, 6, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(42, 2))
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    model(X + 1)
    return model


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(value, other[name]) for name, value in one.items())


# -- keys, both ways ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WITHOUT)
def test_a_norm_in_the_place_of_batch_norm_keeps_its_keys_both_ways(kind: str) -> None:
    plain, other = net(nn.BatchNorm1d(6)), net(nn.BatchNorm1d(6))
    before = copy.deepcopy(plain.state_dict())
    model = apply(copy.deepcopy(plain), [ConvertNorm(kind)], X)
    assert same(model.state_dict(), before)
    for twin in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin.train()(X)
        assert same({n: v for n, v in twin.state_dict().items() if "running" in n or "num" in n},
                    {n: v for n, v in before.items() if "running" in n or "num" in n})  # fmt: skip
        other.load_state_dict(twin.state_dict(), strict=True)
        assert same(other.state_dict(), before)
        twin.load_state_dict(net(nn.BatchNorm1d(6)).state_dict(), strict=True)
        twin.load_state_dict(before, strict=True)
        assert same(twin.state_dict(), before)
    with pytest.raises(RuntimeError, match="typo"):
        model.load_state_dict({**before, "1.typo": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="running_var"):
        model.load_state_dict({n: v for n, v in before.items() if n != "1.running_var"})


@pytest.mark.parametrize("old", [nn.GroupNorm(2, 6), nn.InstanceNorm1d(6), nn.GroupNorm(1, 6, bias=False)])
def test_the_statistics_of_batch_norm_in_the_place_of_another_lie_under_trickbox(old: nn.Module) -> None:
    plain = net(copy.deepcopy(old))
    keys, before = list(plain.state_dict()), copy.deepcopy(plain.state_dict())
    model = apply(copy.deepcopy(plain), [ConvertNorm("batch_norm")], X)
    model(X)
    saved = copy.deepcopy(model.state_dict())
    assert [name for name in saved if "trickbox" not in name] == keys
    assert [name for name in saved if "trickbox" in name] == [f"1.trickbox.{name}" for name in STATISTICS]
    assert torch.equal(saved["1.trickbox.running_mean"], model[1].running_mean)
    model(X)
    kept = model[1].running_mean.clone()
    assert not torch.equal(kept, saved["1.trickbox.running_mean"])
    for twin in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin.load_state_dict(before, strict=True)
        assert torch.equal(twin[1].running_mean, kept)
        twin.load_state_dict(saved, strict=True)
        assert same(twin.state_dict(), saved)
    with pytest.raises(RuntimeError, match="typo"):
        model.load_state_dict({**saved, "1.trickbox.typo": torch.zeros(1)})
    undo(model)
    assert list(model.state_dict()) == keys


def test_a_file_of_a_model_with_exchanged_norms_is_read_in_one_with_the_same_tricks() -> None:
    model, fresh = (apply(net(nn.GroupNorm(2, 6)), [BatchNorm(), Dropout(0.5, at="1")], X) for _ in range(2))
    model(X)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert same(fresh.state_dict(), model.state_dict())
    assert torch.equal(fresh.eval()(X), model.eval()(X))


def test_averages_and_best_weights_hold_the_statistics_of_exchanged_norms() -> None:
    model, data = net(nn.GroupNorm(2, 6)), (torch.randn(32, 1, 9), torch.arange(32) % 2)
    result = tb.fit(
        model, data, data, loss=nn.CrossEntropyLoss(), optimizer=partial(torch.optim.SGD, lr=0.1), max_epochs=3,
        tricks=[BatchNorm(), EMA(0.5), EarlyStopping(patience=1)], device="cpu",
    )  # fmt: skip
    outputs = result.model.eval()(data[0])
    assert result.metrics["val_loss"] == pytest.approx(float(nn.functional.cross_entropy(outputs, data[1]).detach()))


def test_running_statistics_of_instance_norm_are_those_of_the_batch_norm_that_follows() -> None:
    plain = net(nn.InstanceNorm1d(6, affine=True, track_running_stats=True))
    model = apply(copy.deepcopy(plain), [ConvertNorm("batch_norm")], X)
    assert same(model.state_dict(), plain.state_dict())
    assert plain[1].running_mean.any()


def test_there_and_back_again_is_the_old_norm() -> None:
    plain = net(nn.BatchNorm1d(6, eps=1e-3))
    model = apply(copy.deepcopy(plain), [ConvertNorm("rms_norm")], X)
    apply(model, [("back", ConvertNorm("batch_norm"))], X)
    assert same(model.state_dict(), plain.state_dict())
    assert torch.equal(model.eval()(X), plain.eval()(X))


def test_statistics_that_a_trick_brought_go_with_its_norm() -> None:
    plain = net(nn.GroupNorm(2, 6))
    model = apply(copy.deepcopy(plain), [ConvertNorm("batch_norm")], X)
    apply(model, [("again", ConvertNorm("rms_norm"))], X)
    assert same(model.state_dict(), plain.state_dict())


# -- what is taken over ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WITHOUT)
def test_gain_shift_eps_dtype_mode_and_freedom_are_taken_over(kind: str) -> None:
    old = nn.BatchNorm1d(6, eps=1e-2).double()
    model = nn.Sequential(nn.Conv1d(1, 6, 3), old, nn.Flatten(), nn.Linear(42, 2)).double()
    old.eval().weight.requires_grad_(False)
    apply(model, [ConvertNorm(kind)], X.double())
    new = model[1]
    assert new is not old
    assert (new.weight, new.bias) == (old.weight, old.bias)
    assert (new.eps, new.training, model.training) == (1e-2, False, True)
    assert not new.weight.requires_grad
    undo(model)
    assert model[1] is old


def test_batch_norm_takes_the_dtype_too() -> None:
    model = apply(net(nn.GroupNorm(2, 6)).double(), [ConvertNorm("batch_norm")], X.double())
    assert model[1].running_mean.dtype is torch.float64


def test_hooks_of_the_user_and_what_tricks_attached_go_along() -> None:
    model, seen = net(nn.BatchNorm1d(6)), []
    model[1].register_forward_hook(lambda norm, _, __: seen.append(type(norm).__name__))
    apply(model, [Dropout(0.5, at="1")], X)
    apply(model, [ConvertNorm("group_norm")], X)
    seen.clear()
    assert (model(X) == 0).sum() == 0
    dropped = model[1](model[0](X))
    assert (dropped == 0).float().mean() > 0.2
    undo(model)
    model(X)
    assert seen == ["GroupNorm", "GroupNorm", "BatchNorm1d"]
    assert (model[1](model[0](X)) == 0).sum() == 0


def test_undo_keeps_what_was_trained_and_nothing_else_moves() -> None:
    plain = net(nn.BatchNorm1d(6))
    model = copy.deepcopy(plain)
    undo(apply(model, [ConvertNorm("layer_norm")], X))
    assert same(model.state_dict(), plain.state_dict())
    apply(model, [ConvertNorm("layer_norm")], X)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(X).square().sum().backward()
    optimizer.step()
    trained = model[1].weight.detach().clone()
    undo(model)
    assert torch.equal(model[1].weight, trained)
    assert not torch.equal(trained, plain[1].weight)
    assert torch.equal(model[1].running_mean, plain[1].running_mean)


# -- equal to what others built ----------------------------------------------------------------------------------------


def rms_by_hand(model: nn.Module) -> nn.Module:
    """*model* with RMS norms, whose shift comes behind, written by hand in the place of its layer norms."""

    class Shifted(nn.RMSNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.bias

    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.LayerNorm:
                norm = Shifted(child.normalized_shape, eps=child.eps)
                norm.weight, norm.bias = child.weight, child.bias
                setattr(parent, name, norm)
    return model


@pytest.mark.parametrize("name", ["gpt", "vit", "bert", "transformer_encoder"])
def test_a_transformer_with_rms_norms_is_that_written_by_hand_bit_for_bit(name: str) -> None:
    model, inputs = specimen(name)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.bias)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    by_hand = rms_by_hand(copy.deepcopy(model))
    apply(model, [ConvertNorm("rms_norm")], inputs)
    for one in (model, by_hand):
        one.train()
        sum(t.square().sum() for t in nest.tensors(nest.call(one, inputs))).backward()
    theirs = dict(by_hand.named_parameters())
    assert [n for n, p in model.named_parameters() if "norm" in n] == [n for n in theirs if "norm" in n]
    assert all(torch.equal(p.grad, theirs[n].grad) for n, p in model.named_parameters() if p.grad is not None)
    trained = list(nest.tensors(nest.call(by_hand, inputs)))
    with torch.no_grad():  # where torch's encoder layer would work out layer norms by itself
        for one in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            found = list(nest.tensors(nest.call(one.eval(), inputs)))
            assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, trained, strict=True))


def test_a_resnet_with_group_norms_is_the_one_that_torchvision_builds_with_them() -> None:
    models = pytest.importorskip("torchvision.models", reason="pip install 'trickbox[models]'")
    images = torch.randn(2, 3, 32, 32)
    plain = models.resnet18(num_classes=5)
    theirs = models.resnet18(num_classes=5, norm_layer=lambda channels: nn.GroupNorm(min(32, channels // 4), channels))
    theirs.load_state_dict(plain.state_dict(), strict=False)
    ours = apply(plain, [ConvertNorm("group_norm")], images)
    assert torch.equal(ours(images), theirs(images))


def test_both_tricks_exchange_alike() -> None:
    one, inputs = specimen("resnet")
    other = copy.deepcopy(one)
    apply(one, [GroupNorm()], inputs)
    apply(other, [ConvertNorm("group_norm")], inputs)
    assert repr(one) == repr(other)
    assert torch.equal(one(inputs), other(inputs))


def test_it_compiles_into_one_graph() -> None:
    for kind in NORM_KINDS:
        torch._dynamo.reset()
        model = apply(net(nn.GroupNorm(3, 6)), [ConvertNorm(kind)], X)
        assert torch.equal(torch.compile(copy.deepcopy(model), fullgraph=True, backend="eager")(X), model(X))


# -- which norms -------------------------------------------------------------------------------------------------------


def test_the_norms_in_front_of_layers_are_replaced_and_none_is_added() -> None:
    model, inputs = specimen("resnet_preactivation")
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    apply(model, [ConvertNorm("group_norm")], inputs)
    assert [name for name, module in model.named_modules() if isinstance(module, nn.GroupNorm)] == norms
    assert not any("trickbox" in name for name in model.state_dict())


def test_at_and_not_at_name_norms() -> None:
    model, inputs = specimen("gpt")
    apply(model, [ConvertNorm("rms_norm", at="blocks.*.norm1", not_at="blocks.1.**")], inputs)
    assert [name for name, module in model.named_modules() if isinstance(module, nn.RMSNorm)] == ["blocks.0.norm1"]
    with pytest.raises(ConfigError, match=r"at: it cannot act at blocks.0.attn.proj \(Linear\)"):
        apply(specimen("gpt")[0], [ConvertNorm("rms_norm", at="blocks.0.attn.proj")], inputs)


class Louder(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Fp32(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


def test_a_class_derived_from_a_norm_of_torch_is_replaced_where_it_does_the_same() -> None:
    def dense(norm: nn.Module) -> nn.Sequential:
        return nn.Sequential(nn.Linear(3, 6), norm, nn.ReLU(), nn.Linear(6, 2))

    x = torch.randn(4, 3)
    assert isinstance(apply(dense(Fp32(6)), [ConvertNorm("rms_norm")], x)[1], nn.RMSNorm)
    with pytest.raises(NoEffectError, match="1: it is a Louder, a class whose work only its own code knows"):
        apply(dense(Louder(6)), [ConvertNorm("rms_norm")], x)


def test_synchronized_batch_norm_is_batch_norm() -> None:
    assert isinstance(apply(net(nn.SyncBatchNorm(6)), [ConvertNorm("group_norm")], X)[1], nn.GroupNorm)
    with pytest.raises(NoEffectError, match="1: it is a SyncBatchNorm already"):
        apply(net(nn.SyncBatchNorm(6)), [ConvertNorm("batch_norm")], X)


def test_frozen_batch_norm_and_other_classes_of_their_own_stay_and_are_named() -> None:
    ops = pytest.importorskip("torchvision.ops", reason="pip install 'trickbox[models]'")
    model = nn.Sequential(nn.Conv2d(1, 6, 3), ops.FrozenBatchNorm2d(6), nn.Flatten(), nn.Linear(96, 2))
    with pytest.raises(NoEffectError, match="1: it is a FrozenBatchNorm2d, a class whose work"):
        apply(model, [ConvertNorm("group_norm")], torch.randn(2, 1, 6, 6))
    model, inputs = specimen("llama")
    with pytest.raises(NoEffectError, match="it is a LlamaRMSNorm, a class whose work only its own code knows"):
        apply(model, [ConvertNorm("layer_norm")], inputs)


def test_timms_layer_norm_is_replaced_and_its_norm_with_an_activation_inside_stays() -> None:
    layers = pytest.importorskip("timm.layers", reason="pip install 'trickbox[models]'")
    model = nn.Sequential(nn.Linear(3, 6), layers.LayerNorm(6), nn.ReLU(), nn.Linear(6, 2))
    assert isinstance(apply(model, [ConvertNorm("rms_norm")], torch.randn(4, 3))[1], nn.RMSNorm)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), layers.BatchNormAct2d(6), nn.Flatten(), nn.Linear(96, 2))
    with pytest.raises(NoEffectError, match="it is a BatchNormAct2d, a class whose work"):
        apply(model, [ConvertNorm("group_norm")], torch.randn(2, 1, 6, 6))


def test_a_norm_that_is_used_twice_is_replaced_once_everywhere() -> None:
    shared = nn.BatchNorm1d(3)
    model = nn.Sequential(nn.Conv1d(1, 3, 3), shared, nn.Conv1d(3, 3, 3), shared, nn.Flatten(), nn.Linear(15, 2))
    apply(model, [ConvertNorm("instance_norm")], X)
    assert model[1] is model[3]
    assert isinstance(model[1], nn.GroupNorm)
    assert [edit.path for edit in ledger(model).edits] == ["1"]


def test_a_norm_of_features_gets_what_suits_features() -> None:
    layers = OrderedDict(fc=nn.Linear(3, 8), norm=nn.BatchNorm1d(8), act=nn.ReLU(), out=nn.Linear(8, 2))
    x, features = torch.randn(4, 3), torch.randn(4, 8)
    layer, rms = (
        apply(nn.Sequential(copy.deepcopy(layers)), [ConvertNorm(f"{kind}_norm")], x).norm for kind in ("layer", "rms")
    )
    assert isinstance(layer, nn.LayerNorm)
    assert torch.allclose(rms(features), nn.RMSNorm(8, eps=1e-5)(features))
    with pytest.raises(NoEffectError, match="only what convolutions put out has positions"):
        apply(nn.Sequential(layers), [ConvertNorm("instance_norm")], x)


def test_a_model_without_norms_has_none_to_replace() -> None:
    with pytest.raises(NoEffectError, match=r"looked for norms of the model's own; .* \(model\): it has no norms"):
        apply(
            nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), [ConvertNorm("layer_norm")], torch.randn(4, 3)
        )


def test_it_goes_with_no_trick_that_inserts_norms() -> None:
    for other in (BatchNorm(), LayerNorm(), GroupNorm()):
        with pytest.raises(ConfigError, match="cannot be in the same run"):
            apply(net(nn.BatchNorm1d(6)), [ConvertNorm("rms_norm"), other], X)
    with pytest.raises(ConfigError, match=r"convert_norm: to must be one of batch_norm, .* Did you mean 'group_norm'"):
        ConvertNorm("groupnorm")


# -- a small last batch ------------------------------------------------------------------------------------------------


def fit(samples: int, trick: Any, norm: nn.Module | None = None, **settings: Any) -> None:
    data = torch.randn(samples, 1, 9), torch.arange(samples) % 2
    optimizer = partial(torch.optim.SGD, lr=0.1)
    tb.fit(
        net(norm or nn.Identity()), data, loss=nn.CrossEntropyLoss(), optimizer=optimizer, tricks=[trick], max_epochs=1,
        batch_size=16, device="cpu", **settings,
    )  # fmt: skip


def test_a_last_batch_of_fewer_than_half_the_samples_is_warned_of_by_name() -> None:
    said = r"norms: the last batch of an epoch has 7 samples and the others have 16, .* last_batch='balance' or 'drop'"
    with pytest.warns(UserWarning, match=said):
        fit(39, ("norms", BatchNorm()))
    with pytest.warns(UserWarning, match=said):
        fit(39, ("norms", ConvertNorm("batch_norm")), nn.GroupNorm(2, 6))


def test_there_is_no_warning_where_there_is_no_reason() -> None:
    fit(40, BatchNorm())  # the last one has 8
    fit(48, BatchNorm())
    fit(39, BatchNorm(), last_batch="balance")
    fit(39, BatchNorm(), last_batch="drop")
    fit(39, GroupNorm())
    fit(39, ConvertNorm("layer_norm"), nn.GroupNorm(2, 6))
    fit(7, BatchNorm())  # the only one
