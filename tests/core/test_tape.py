"""The tape: what one dry forward really calls, whatever the model looks like, and no trace of it afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trickbox.authoring import Surgery, gain_after, norm_after
from trickbox.surgery import WEIGHT_LAYERS, record
from trickbox.testing import tiny_data, tiny_model


def modules(tape):
    return [(event.path, event.call) for event in tape.modules() if event.path]


def functions(tape):
    return [(event.path, event.name) for event in tape.events if not event.is_module]


def event_of(tape, path, call=0):
    return next(event for event in tape.modules() if (event.path, event.call) == (path, call))


def sites(model, inputs, *kinds):
    return [(site.path, site.call, site.output_shape) for site in Surgery.on(model, inputs).sites(*kinds)]


class Model(nn.Module):
    """A model whose layers are arguments and whose forward is a function."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = forward

    def forward(self, *args, **kwargs):
        return self.run(self, *args, **kwargs)


def test_the_worked_example_of_the_design():
    """Functional relus, one pool used twice, an inline flatten: order, call numbers and shapes as executed."""
    tape = record(tiny_model(), tiny_data(5)[0])
    assert modules(tape) == [
        ("conv1", 0), ("pool", 0), ("conv2", 0), ("pool", 1), ("fc1", 0), ("own_dropout", 0), ("fc2", 0),
    ]  # fmt: skip
    assert functions(tape) == [("", "relu"), ("", "relu"), ("", "flatten"), ("", "relu")]
    assert [event.output_shapes[0] for event in tape.modules() if event.path == "pool"] == [(5, 4, 12), (5, 4, 6)]
    assert tape.events[0].name == "TinyNet"
    assert tape.calls("pool") == 2
    assert tape.calls("conv1") == 1


@pytest.mark.parametrize(
    "relu",
    [
        F.relu, torch.relu, lambda x: x.relu(), lambda x: x.relu_(), lambda x: F.relu(x, inplace=True), F.relu_,
        torch.relu_, nn.ReLU(), nn.ReLU(inplace=True), lambda x: F.relu(input=x), lambda x: F.relu6(x),
    ],
)  # fmt: skip
@pytest.mark.parametrize("between", [lambda x: x, lambda x: F.max_pool1d(x, 2), lambda x: x.transpose(0, 1)[:, :2]])
def test_the_activation_that_follows_is_found_in_every_spelling(relu, between):
    layers = {"act": relu} if isinstance(relu, nn.Module) else {}
    model = Model(
        lambda self, x: self.b(relu(between(self.a(x)))), a=nn.Conv1d(2, 3, 3), b=nn.AdaptiveAvgPool1d(1), **layers
    )
    tape = record(model, torch.zeros(4, 2, 8))
    assert gain_after(model, tape, event_of(tape, "a")) == 2**0.5
    assert gain_after(model, tape, event_of(tape, "b")) == 1


@pytest.mark.parametrize(
    ("function", "gain"),
    [(torch.tanh, "tanh"), (F.gelu, "relu"), (F.leaky_relu, "leaky_relu"), (torch.sigmoid, "sigmoid"), (F.selu, "selu"),
     (lambda x: x + 1, "linear"), (lambda x: torch.relu(x * 2), "linear")],
)  # fmt: skip
def test_other_activations_are_told_apart_and_arithmetic_is_none(function, gain):
    model = Model(lambda self, x: function(self.a(x)), a=nn.Linear(2, 3))
    tape = record(model, torch.zeros(4, 2))
    assert gain_after(model, tape, event_of(tape, "a")) == nn.init.calculate_gain(gain)


def test_the_activation_of_a_branch_is_its_own():
    """Two layers side by side: each is followed by what consumes its own output, not by what runs next."""

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        return torch.tanh(a) + torch.relu(b)

    model = Model(forward, a=nn.Linear(2, 3), b=nn.Linear(2, 3))
    tape = record(model, torch.zeros(4, 2))
    assert [gain_after(model, tape, event_of(tape, path)) for path in "ab"] == [5 / 3, 2**0.5]


def test_a_module_called_twice_has_two_calls_with_their_own_shapes():
    model = Model(lambda self, x: self.pool(self.pool(x)), pool=nn.MaxPool1d(2))
    assert sites(model, torch.zeros(1, 2, 8), nn.MaxPool1d) == [("pool", 0, (1, 2, 4)), ("pool", 1, (1, 2, 2))]


def test_a_module_under_two_names_is_one_site_called_twice():
    shared = nn.Linear(3, 3)
    model = Model(lambda self, x: self.b(self.a(x)), a=shared, b=shared)
    assert sites(model, torch.zeros(1, 3), nn.Linear) == [("a", 0, (1, 3)), ("a", 1, (1, 3))]


def test_tied_weights_are_two_sites_of_one_parameter():
    model = Model(lambda self, x: self.b(self.a(x)), a=nn.Linear(3, 3), b=nn.Linear(3, 3))
    model.b.weight = model.a.weight
    assert [path for path, _, _ in sites(model, torch.zeros(1, 3), nn.Linear)] == ["a", "b"]


def test_a_module_that_is_never_called_is_no_site():
    model = Model(lambda self, x: self.a(x), a=nn.Linear(3, 3), unused=nn.Linear(3, 3))
    assert [path for path, _, _ in sites(model, torch.zeros(1, 3), nn.Linear)] == ["a"]


def test_an_early_exit_ends_the_tape():
    model = Model(
        lambda self, x: self.a(x) if x.sum() == 0 else self.b(self.a(x)), a=nn.Linear(3, 3), b=nn.Linear(3, 3)
    )
    assert modules(record(model, torch.zeros(1, 3))) == [("a", 0)]
    assert modules(record(model, torch.ones(1, 3))) == [("a", 0), ("b", 0)]


def test_layers_called_with_keywords_have_shapes_too():
    model = Model(lambda self, x: self.a(input=x), a=nn.Linear(3, 2))
    event = event_of(record(model, torch.zeros(5, 3)), "a")
    assert (event.input_shapes, event.output_shapes) == (((5, 3),), ((5, 2),))


@pytest.mark.parametrize("inputs", [{"left": torch.zeros(4, 3), "right": torch.zeros(4, 2)},
                                    (torch.zeros(4, 3), torch.zeros(4, 2))])  # fmt: skip
def test_inputs_may_be_mappings_and_tuples(inputs):
    model = Model(lambda self, left, right: self.a(left) + self.b(right), a=nn.Linear(3, 1), b=nn.Linear(2, 1))
    tape = record(model, inputs)
    assert modules(tape) == [("a", 0), ("b", 0)]
    assert tape.events[0].input_shapes == ((4, 3), (4, 2))


def test_outputs_may_be_any_nest():
    model = Model(lambda self, x: {"logits": self.a(x), "all": [x, (x,)]}, a=nn.Linear(3, 2))
    tape = record(model, torch.zeros(4, 3))
    assert tape.events[0].output_shapes == ((4, 2), (4, 3), (4, 3))
    assert set(tape.output) == {"logits", "all"}
    assert not tape.output["logits"].requires_grad


def test_attention_shows_what_is_really_called():
    """`MultiheadAttention` uses the weights of its `out_proj` without calling it: there is nothing to attach to."""
    model = nn.Sequential(nn.MultiheadAttention(4, 2, batch_first=True))
    tape = record(model[0], (torch.zeros(2, 5, 4),) * 3)
    assert modules(tape) == []
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    found = sites(layer, torch.zeros(2, 5, 4), nn.Linear, nn.LayerNorm)
    assert [path for path, _, _ in found] == ["norm1", "linear1", "linear2", "norm2"]
    assert found[1][2] == (2, 5, 8)


def test_a_transformer_encoder_calls_each_of_its_layers():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    paths = [path for path, _, _ in sites(model, torch.zeros(2, 5, 4), nn.Linear)]
    assert paths == [f"layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)]


def test_a_two_dimensional_net():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)
    )
    surgery = Surgery.on(model, torch.zeros(4, 1, 6, 6))
    assert [site.output_shape for site in surgery.sites(*WEIGHT_LAYERS)] == [(4, 2, 4, 4), (4, 3)]
    assert gain_after(model, surgery.tape, event_of(surgery.tape, "0")) == 2**0.5
    assert norm_after(model, surgery.tape, event_of(surgery.tape, "0")).path == "1"
    assert norm_after(model, surgery.tape, event_of(surgery.tape, "5")) is None
    assert surgery.head().path == "5"


def test_a_model_that_is_one_layer_is_its_own_site():
    surgery = Surgery.on(nn.Linear(3, 2), torch.zeros(4, 3))
    (site,) = surgery.sites(nn.Linear)
    assert (site.path, site.label, site.output_shape) == ("", "(model)", (4, 2))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_leaves_whose_first_output_counts(kind):
    model = Model(
        lambda self, x: self.head(self.rnn(x)[0][:, -1]), rnn=kind(3, 4, batch_first=True), head=nn.Linear(4, 2)
    )
    surgery = Surgery.on(model, torch.zeros(2, 5, 3))
    assert [site.output_shape for site in surgery.sites(kind)] == [(2, 5, 4)]
    assert modules(surgery.tape) == [("rnn", 0), ("head", 0)]
    assert functions(surgery.tape) == [("", "getitem")]


def test_lazy_layers_are_there_after_recording():
    model = nn.Sequential(nn.LazyConv1d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    surgery = Surgery.on(model, torch.zeros(2, 3, 8))
    assert [site.event.name for site in surgery.sites(*WEIGHT_LAYERS)] == ["Conv1d", "Linear"]
    assert type(model[0]) is nn.Conv1d
    assert model[3].weight.shape == (2, 24)


def test_a_lazy_model_trains(run, data):
    model = nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.LazyLinear(3))
    assert len(run(["dropout"], model=model).history) == 2


def test_recording_leaves_no_trace(untouched):
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(18, 2))
    model[1].eval()
    model[0].weight.requires_grad_(False)
    inputs = torch.randn(4, 2, 8)
    kept = inputs.clone()
    with untouched(model):
        tape = record(model, inputs)
    assert torch.equal(inputs, kept)
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()
    assert torch.equal(tape.output, model(inputs))
    assert not any(
        isinstance(m, torch.overrides.TorchFunctionMode) for m in torch.overrides._get_current_function_mode_stack()
    )


def test_a_forward_that_fails_leaves_no_trace_either(untouched):
    def fails(self, x):
        self.a(x)
        torch.rand(3)
        raise KeyError

    model = Model(fails, a=nn.Linear(3, 2))
    with untouched(model), pytest.raises(KeyError):
        record(model, torch.zeros(4, 3))


def test_the_hooks_of_the_user_stay_and_fire():
    model, calls = nn.Sequential(nn.Linear(3, 2)), []
    model[0].register_forward_hook(lambda *_: calls.append("after"))
    model[0].register_forward_pre_hook(lambda *_: calls.append("before"))
    record(model, torch.zeros(4, 3))
    assert calls == ["before", "after"]
    assert len(model[0]._forward_hooks) == len(model[0]._forward_pre_hooks) == 1


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (nn.ReLU(), "relu"),
        (nn.ReLU6(), "relu"),
        (nn.LeakyReLU(), "leaky_relu"),
        (nn.LeakyReLU(0.3), ("leaky_relu", 0.3)),
        (nn.PReLU(), ("leaky_relu", 0.25)),
        (nn.RReLU(0.2, 0.2), ("leaky_relu", 0.2)),
        (nn.Tanh(), "tanh"),
        (nn.Hardtanh(), "tanh"),
        (nn.Sigmoid(), "sigmoid"),
        (nn.LogSigmoid(), "sigmoid"),
        (nn.SELU(), "selu"),
        (nn.GELU(), "relu"),
        (nn.SiLU(), "relu"),
        (nn.Softplus(), "relu"),
        (nn.Hardswish(), "relu"),
        (nn.Softmax(1), "linear"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_every_activation_is_known_as_a_module_and_behind_transparent_ops(activation, expected):
    for between in (nn.Identity(), nn.BatchNorm1d(3), nn.Dropout(0.5)):
        net = nn.Sequential(nn.Linear(2, 3), between, activation, nn.Linear(3, 1))
        tape = record(net, torch.zeros(4, 2))
        name, slope = expected if isinstance(expected, tuple) else (expected, None)
        assert gain_after(net, tape, event_of(tape, "0")) == pytest.approx(nn.init.calculate_gain(name, slope))


@pytest.mark.parametrize(
    "activation", [nn.LeakyReLU(0.5), nn.PReLU(3), nn.RReLU(0.1, 0.9)], ids=lambda a: a._get_name()
)
def test_a_gain_keeps_the_second_moment_of_normal_numbers(activation):
    if isinstance(activation, nn.PReLU):
        activation.weight.data = torch.tensor([0.1, -0.5, 0.9])
    net = nn.Sequential(nn.Linear(2, 3), activation, nn.Linear(3, 1))
    gain = gain_after(net, tape := record(net, torch.zeros(4, 2)), event_of(tape, "0"))
    out = activation(gain * torch.randn(400_000, 3, generator=torch.Generator().manual_seed(0)))
    assert out.square().mean().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("function", ["leaky_relu", "leaky_relu_", "relu_", "logsigmoid", "tanh", "gelu", "silu"])
def test_every_activation_is_known_as_a_function(function):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 3)

        def forward(self, x):
            return getattr(nn.functional, function)(self.layer(x).to(torch.float32))

    net = Net()
    known = {"leaky": "leaky_relu", "logsi": "sigmoid", "tanh": "tanh"}
    gain = gain_after(net, tape := record(net, torch.zeros(4, 2)), event_of(tape, "layer"))
    assert gain == nn.init.calculate_gain(known.get(function[:5], "relu"))
