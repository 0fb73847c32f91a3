"""strip and bake: equal outputs, the user's own class and keys, and what cannot be folded named, not lost."""

from __future__ import annotations

import contextlib
import copy
import pickle
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from built_ins import every_trick
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

import trickbox as tb
from trickbox.nest import call, map_tensors, tensors
from trickbox.surgery import Draws, evaluating, is_tricked
from trickbox.surgery.bake import WithTricks, fold_batch_norm
from trickbox.testing import tiny_data, tiny_model
from trickbox.testing.zoo import ZOO, specimen
from trickbox.trick import hooks_of


def outputs(model, inputs):
    with torch.no_grad(), evaluating(model):
        return [tensor.clone() for tensor in tensors(call(model, inputs))]


def assert_near(found, expected):
    """Equal to 1e-5 of the largest output in single precision, 1e-10 in double."""
    for one, other in zip(found, expected, strict=True):
        tolerance = 1e-10 if other.dtype is torch.float64 else 1e-5
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * max(1.0, float(other.detach().abs().max())))


def lived(model):
    """*model* as if it had been trained: every norm and every adapter is somewhere."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if ".trickbox." in f".{name}" and tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model


def precise(name):
    """A model of the zoo and its inputs in double precision, in which rounding hides no mistake."""
    model, inputs = specimen(name)
    return model.double(), map_tensors(lambda t: t.double() if t.is_floating_point() else t, inputs)


def tricked(tricks, name="cnn_2d"):
    model, inputs = precise(name)
    return lived(tb.apply(model, tricks, inputs)), inputs


def hooks(model):
    found = [name for name in vars(nn.Module()) if name.endswith("_hooks")]
    return [(path, name) for path, m in model.named_modules() for name in found if getattr(m, name)]


# -- folding -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape", "transposed"),
    [
        (nn.Conv1d(2, 3, 3), (4, 2, 8), False),
        (nn.Conv2d(4, 6, 3, groups=2), (4, 4, 8, 8), False),
        (nn.ConvTranspose2d(2, 3, 3, stride=2), (4, 2, 5, 5), True),
    ],
)
def test_a_batch_norm_goes_into_a_convolution_as_torch_puts_it(layer, shape, transposed):
    kind = {3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
    norm = _at_random(kind(layer.out_channels, eps=0.3))
    expected, x = fuse_conv_bn_eval(layer.eval(), norm, transpose=transposed), torch.randn(shape)
    fused = copy.deepcopy(layer)
    assert fold_batch_norm(fused, norm) == ""
    torch.testing.assert_close(fused.weight, expected.weight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fused.bias, expected.bias, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fused(x), norm(layer(x)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norm_goes_into_a_dense_layer_as_torch_puts_it(affine):
    layer, norm, x = nn.Linear(5, 7), _at_random(nn.BatchNorm1d(7, affine=affine)), torch.randn(4, 5)
    fused = copy.deepcopy(layer)
    assert fold_batch_norm(fused, norm) == ""
    torch.testing.assert_close(fused(x), norm(layer(x)), rtol=1e-5, atol=1e-5)
    if affine:
        torch.testing.assert_close(fused.weight, fuse_linear_bn_eval(layer.eval(), norm).weight)


def _at_random(norm):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in (*norm.parameters(), norm.running_mean, norm.running_var):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return norm.eval()


CANNOT = [
    (nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3), "needs a bias"),
    (nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False), "has no statistics of its own"),
    (nn.ConvTranspose1d(4, 4, 3, groups=2), nn.BatchNorm1d(4), "transposed convolution in groups"),
    (nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.BatchNorm1d(3), "only torch's own layers"),
]


def test_what_a_batch_norm_cannot_go_into_is_said_and_nothing_changes():
    for layer, norm, why in CANNOT:
        before = copy.deepcopy(layer.state_dict())
        assert why in fold_batch_norm(layer, norm)
        assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


# -- strip -------------------------------------------------------------------------------------------------------------

FOLDABLE = [
    [{"trick": "batch_norm", "dense": True, "eps": 0.1}],
    [{"trick": "lora", "rank": 2, "alpha": 6}],
    [{"trick": "dropout", "p": 0.5}],
    [{"trick": "lora", "rank": 2, "alpha": 6}, {"trick": "batch_norm", "dense": True}, "dropout"],
    ["freeze", "batch_norm"],
    ["weight_standardization", "batch_norm", "dropout"],
    [{"trick": "lora", "rank": 2, "alpha": 6, "at": "fc1"}, "weight_standardization"],
    [{"trick": "dropout", "where": "before_head"}, "initialize"],
]


@pytest.mark.parametrize("tricks", FOLDABLE, ids=str)
def test_the_users_own_class_and_keys_come_back_with_equal_outputs(tricks):
    model, x = specimen("cnn_2d")
    kind, keys, attributes = type(model), list(model.state_dict()), set(vars(model))
    expected = outputs(lived(tb.apply(model, tricks, x)), x)
    model.train()
    assert tb.strip(model) is model
    assert (type(model), list(model.state_dict()), set(vars(model))) == (kind, keys, attributes)
    assert not hooks(model)
    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())
    assert_near(outputs(model, x), expected)
    tb.undo(model)
    assert_near(outputs(model, x), expected)


def test_an_adapter_is_added_to_the_weight_and_no_other_bit_changes():
    model, x = specimen("mlp")
    before = copy.deepcopy(model.state_dict())
    tb.apply(model, [tb.get("lora")(2, 6, at="0")], x)
    adapter = lived(model)[0].trickbox.lora
    tb.strip(model)
    torch.testing.assert_close(model[0].weight, before["0.weight"] + 3 * adapter.up.weight @ adapter.down.weight)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if name != "0.weight")


def test_a_standardized_weight_is_written_down_unless_it_serves_elsewhere():
    model, x = specimen("cnn_2d")
    tb.apply(model, ["weight_standardization"], x)
    rows = tb.strip(model).conv1.weight.flatten(1)
    torch.testing.assert_close(rows.mean(1), torch.zeros(len(rows)), rtol=0, atol=1e-6)
    torch.testing.assert_close(rows.var(1, correction=0), torch.ones(len(rows)), rtol=0, atol=1e-3)

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.head = nn.Conv1d(4, 4, 3), nn.Conv1d(4, 4, 3), nn.Linear(20, 2)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.head(self.two(self.one(x)).flatten(1))

    model, x = Tied(), torch.randn(3, 4, 9)
    tb.apply(model, [{"trick": "weight_standardization", "at": "one"}], x)
    before, expected = copy.deepcopy(model.state_dict()), outputs(model, x)
    with pytest.raises(tb.SurgeryError, match="one: folding would change a weight that serves elsewhere too"):
        tb.strip(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert_near(outputs(tb.bake(model), x), expected)


@pytest.mark.parametrize("name", ["gpt2", "recurrent_depth"])
def test_adapters_of_weights_the_other_way_round_and_of_shared_layers_are_folded(name):
    model, inputs = tricked([tb.get("lora")(2, 6)], name)
    expected = outputs(model, inputs)
    assert_near(outputs(tb.strip(model), inputs), expected)
    assert not [key for key in model.state_dict() if "trickbox" in key]


@pytest.mark.parametrize("training", [True, False])
def test_a_dropout_that_was_exchanged_is_the_models_own_again_in_the_models_mode(training):
    model, x = specimen("mlp_dropout")
    own = model[2]
    tb.apply(model, ["dropout"], x)
    assert model[2] is not own
    tb.strip(model.train(training))
    assert model[2] is own
    assert own.training is training


def test_what_was_trained_is_what_is_stripped():
    model = tiny_model()
    result = tb.fit(
        model,
        tiny_data(40),
        loss=nn.CrossEntropyLoss(),
        optimizer=partial(torch.optim.Adam, lr=0.01),
        tricks=[tb.get("batch_norm")(dense=True), "dropout", "one_cycle"],
        max_epochs=3,
        batch_size=20,
    )
    x = tiny_data(8, seed=3)[0]
    expected = outputs(result.model, x)
    assert_near(outputs(tb.strip(model), x), expected)
    assert list(model.state_dict()) == list(tiny_model().state_dict())


REFUSED = {
    "layer_norm": ("cnn_2d", r"conv1: layer_norm \(GroupNorm\) cannot be folded; conv2: layer_norm"),
    "residual": ("recurrent_depth", "residual"),
    "convert": ("vgg_batch_norm", "features.1: a BatchNorm2d was replaced for good"),
    "shared": ("siamese", r"tower.0: batch_norm \(BatchNorm1d\) acts on a part of what the layer does"),
    "unbiased": ("unbiased", r"0: batch_norm \(BatchNorm1d\) needs a bias, which its layer has not"),
    "tied": ("tied", r"0: batch_norm \(BatchNorm1d\) would change a weight that serves elsewhere too"),
}


def refused(kind):
    """A model with something on it that cannot be folded, and inputs."""
    if kind in ("unbiased", "tied"):
        model, x = nn.Sequential(nn.Linear(6, 6, bias=kind == "tied"), nn.ReLU(), nn.Linear(6, 6)), torch.randn(5, 6)
        if kind == "tied":
            model[2].weight = model[0].weight
        return lived(tb.apply(model, ["batch_norm"], x)), x
    tricks = {
        "layer_norm": ["layer_norm", "dropout"],
        "residual": [tb.get("residual")(at="layer"), tb.get("dropout")(at="layer")],
        "convert": [tb.get("layer_norm")()],
        "shared": [tb.get("batch_norm")(at="tower.0")],
    }
    return tricked(tricks[kind], REFUSED[kind][0])


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_folded_is_an_error_by_name_nothing_has_changed_and_it_can_be_baked(kind):
    model, inputs = refused(kind)
    before, expected, hooked = copy.deepcopy(model.state_dict()), outputs(model, inputs), hooks(model)
    with pytest.raises(tb.SurgeryError, match=f"^strip: .*{REFUSED[kind][1]}.*Nothing was changed; trickbox.bake"):
        tb.strip(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(map(torch.equal, outputs(model, inputs), expected))
    assert hooks(model) == hooked
    assert is_tricked(model)
    assert_near(outputs(tb.bake(model), inputs), expected)


def test_a_weight_that_a_function_reads_too_is_not_changed():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.head = nn.Linear(6, 4), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(F.linear(self.encode(x).relu(), self.encode.weight.t()))

    x = torch.randn(5, 6)
    model = lived(tb.apply(Tied(), ["batch_norm"], x))
    with pytest.raises(tb.SurgeryError, match=r"encode: batch_norm .* serves elsewhere too"):
        tb.strip(model)
    assert_near(outputs(tb.bake(model), x), outputs(model, x))


def test_a_model_without_tricks_stays_as_it_is_and_one_with_tricks_inside_is_refused():
    model, x = specimen("mlp")
    before = copy.deepcopy(model.state_dict())
    assert tb.strip(model) is model
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    tb.apply(model, ["dropout"], x)
    for function in (tb.strip, tb.bake, partial(tb.save, path="nowhere")):
        with pytest.raises(tb.SurgeryError, match="pass that part, '0'"):
            function(nn.Sequential(model))


def test_a_stripped_model_takes_tricks_and_trains_again():
    model, x = tricked([tb.get("lora")(2), "dropout"], "mlp")
    tb.strip(model)
    tb.apply(model, ["lora", "batch_norm"], x)
    model(x).sum().backward()
    assert sum(p.grad is not None for p in model.parameters()) > 4


# -- bake --------------------------------------------------------------------------------------------------------------

BAKED = {
    "norm": (["layer_norm", "dropout"], "cnn_2d"),
    "folded": ([{"trick": "batch_norm", "dense": True}, "dropout", {"trick": "lora", "rank": 2}], "cnn_2d"),
    "shortcut": ([{"trick": "residual"}, "layer_norm"], "mlp"),
    "long_shortcut": ([{"trick": "residual", "layers": 2, "shortcut": "projection"}], "mlp_functional"),
    "input": ([{"trick": "dropout", "where": "before_head"}, "layer_norm"], "mlp_functional"),
    "shared_adapter": ([{"trick": "lora", "rank": 2}], "siamese"),
    "converted": (["layer_norm", "dropout"], "vgg_batch_norm"),
    "frozen": (["freeze"], "vgg_batch_norm"),
}


def export(model, inputs, strict=False):
    args, kwargs = (
        ((), inputs) if isinstance(inputs, dict) else (inputs if isinstance(inputs, tuple) else (inputs,), {})
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        return torch.export.export(model, args, kwargs, strict=strict).module()


@pytest.mark.parametrize("kind", BAKED)
def test_a_baked_model_is_a_plain_copy_with_equal_outputs(kind):
    model, inputs = tricked(*BAKED[kind])
    model.train()
    before, expected, hooked = copy.deepcopy(model.state_dict()), outputs(model, inputs), hooks(model)
    baked = tb.bake(model)
    assert not hooks(baked)
    assert not any("trickbox" in name for name in vars(baked))
    assert not any(module.training for module in baked.modules())
    assert not any(isinstance(value, Draws) for module in baked.modules() for value in vars(module).values())
    assert_near(outputs(baked, inputs), expected)
    assert_near(outputs(pickle.loads(pickle.dumps(baked)), inputs), expected)
    with torch.no_grad():
        for parameter in baked.parameters():
            parameter.zero_()
    assert hooks(model) == hooked
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(map(torch.equal, outputs(model, inputs), expected))
    assert model.training


@pytest.mark.slow
@pytest.mark.parametrize("kind", BAKED)
def test_a_baked_model_can_be_exported_and_traced(kind):
    model, inputs = tricked(*BAKED[kind])
    baked, expected = tb.bake(model), outputs(model, inputs)
    for strict in (False, True):
        assert_near(outputs_of(export(baked, inputs, strict), inputs), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        assert_near(outputs_of(torch.jit.trace(baked, inputs), inputs), expected)


def outputs_of(function, inputs):
    with torch.no_grad():
        return list(tensors(call(function, inputs)))


def test_export_of_a_baked_model_equals_it():
    model, x = tricked(["layer_norm", "residual", "dropout"], "mlp")
    assert_near(outputs_of(export(tb.bake(model), x), x), outputs(model, x))


KEPT = {
    "one_call": ([{"trick": "batch_norm", "at": "tower.0[1]"}], "siamese"),
    "function": (["re_zero", "qk_norm"], "vit"),
    "block": ([{"trick": "layer_norm", "at": "**.linear1"}], "transformer_encoder"),
}


@pytest.mark.parametrize("kind", KEPT)
def test_calls_functions_and_torchs_own_blocks_keep_their_hooks_and_are_exported_all_the_same(kind):
    model, inputs = tricked(*KEPT[kind])
    baked = tb.bake(model)
    assert hooks(baked)
    assert not is_tricked(baked)
    assert_near(outputs(baked, inputs), outputs(model, inputs))
    assert_near(outputs_of(export(baked, inputs), inputs), outputs(model, inputs))


def test_a_bias_is_made_for_a_norm_that_needs_one():
    model, _ = refused("unbiased")
    baked = tb.bake(model)
    assert list(baked.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert model[0].bias is None


def test_what_is_left_of_the_whole_model_stands_around_it():
    x = torch.randn(4, 6)
    model = lived(tb.apply(nn.Linear(6, 6), [tb.get("layer_norm")(at="(model)")], x))
    baked = tb.bake(model)
    assert isinstance(baked, WithTricks)
    assert_near(outputs(baked, x), outputs(model, x))


def test_other_names_of_a_layer_are_still_found_on_it():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.head = nn.Linear(6, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.fc(x[:, : self.fc.in_features])) * self.fc.weight.sum()

    x = torch.randn(4, 8)
    model = lived(tb.apply(Reads(), ["layer_norm"], x))
    baked = tb.bake(model)
    assert isinstance(baked.fc, WithTricks)
    assert_near(outputs(baked, x), outputs(model, x))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = baked.fc.no_such_name


SHIPPED = {
    "mlp": ["layer_norm", "dropout"],
    "resnet": ["stochastic_depth", "layer_scale"],
    "cnn_2d": ["batch_norm", "residual"],
    "convnext": ["layer_scale"],
    "gpt": ["qk_norm"],
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("name", SHIPPED)
def test_a_baked_model_runs_in_onnx(name):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is missing: pip install 'trickbox[onnx]'")
    model, x = specimen(name)
    baked = tb.bake(tb.apply(model, SHIPPED[name], x))
    program = torch.onnx.export(baked, (x,), dynamo=True)
    session = runtime.InferenceSession(program.model_proto.SerializeToString())
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), baked(x), rtol=1e-5, atol=1e-5)


# -- every trick on every model ----------------------------------------------------------------------------------------

EXPORTED = ("cnn_2d", "resnet", "vit", "gpt2", "llama", "unet", "siamese", "mapping_inputs")


@pytest.fixture(scope="module")
def surgeries(tmp_path_factory):
    found = every_trick(tmp_path_factory.mktemp("weights"))
    return {name: trick for name, trick in found.items() if hooks_of(trick) == ["init"] and name != "transfer"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_every_trick_that_acts_is_stripped_or_refused_and_baked_with_equal_outputs(surgeries, name):
    for trick in surgeries.values():
        model, inputs = precise(name)
        kind, keys = type(model), list(model.state_dict())
        try:
            tb.apply(model, [trick], inputs)
        except (tb.NoEffectError, tb.ConfigError):
            continue
        lived(model)
        expected = outputs(model, inputs)
        assert_near(outputs(tb.bake(model), inputs), expected)
        with contextlib.suppress(tb.SurgeryError):
            tb.strip(model)
            assert (type(model), list(model.state_dict())) == (kind, keys)
            assert not hooks(model)
        assert_near(outputs(model, inputs), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTED)
def test_every_baked_model_is_exported_with_equal_outputs(name):
    model, inputs = precise(name)
    recipe = [tb.optional(trick) for trick in ("layer_norm", "residual", "dropout", "stochastic_depth", "lora")]
    lived(tb.apply(model, recipe, inputs))
    assert_near(outputs_of(export(tb.bake(model), inputs), inputs), outputs(model, inputs))
