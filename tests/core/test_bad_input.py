"""What cannot work is said before any training: a clear error that names the fix; model and randomness stay."""

# ruff: noqa: ARG005  # hooks, losses and metrics have fixed signatures

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import trickbox as tb
from trickbox.authoring import hookimpl, trick


def toy(name, **facts):
    @hookimpl
    def batch(self, state):
        raise AssertionError("training has begun")

    return trick(type(name, (), {"__doc__": "Toy. Cost: none.", "batch": batch, **facts}))()


X, Y = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3


def with_nan(value):
    inputs = X.clone()
    inputs[3:5, 1] = value
    return inputs


BAD_DATA = {
    "features that the model cannot take": ((X[:, :3], Y), r"the model cannot take inputs of shape \(8, 3\)"),
    "inputs and targets of unequal length": ((X, Y[:19]), r"differ in length: \(20, 4\) and \(19,\)"),
    "inputs of unequal length": (({"a": X, "b": X[:5]}, Y), "differ in length"),
    "targets without dimension": ((X, torch.tensor(3)), "differ in length"),
    "no samples": ((X[:0], Y[:0]), "is empty; give at least one sample"),
    "empty arrays": ((np.zeros((0, 4)), np.zeros(0, dtype=int)), "is empty"),
    "an empty list": ([], "is empty: it has no batch"),
    "a loader that drops its only batch": (
        DataLoader(TensorDataset(X[:3], Y[:3]), batch_size=8, drop_last=True),
        "drop_last=True",
    ),
    "NaN in the inputs": ((with_nan(float("nan")), Y), "2 samples of the inputs hold NaN or infinity; clean or drop"),
    "infinity in the inputs": ((with_nan(float("inf")), Y), "2 samples of the inputs"),
    "NaN in the targets": ((X, torch.full((20,), float("nan"))), "samples of the targets"),
    "NaN in a loader": ([(with_nan(float("nan"))[:8], Y[:8])], "2 samples of the inputs"),
    "a generator": (((X, Y) for _ in range(3)), "is an iterator, which is empty after one epoch; give a list or"),
    "an iterator over a list": (iter([(X, Y)]), "is an iterator"),
    "zip": (zip(X.split(5), Y.split(5), strict=True), "is an iterator"),
    "triples": ([(X, Y, Y)], r"must give pairs \(inputs, targets\), or mappings that the model takes, got 3 parts"),
    "single tensors": ([X, X, X], "must give pairs .* got a Tensor"),
    "mappings with other names": (
        [{"x": X, "y": Y}],
        "the model cannot take inputs .* unexpected keyword argument 'x'",
    ),
    "mappings without targets": ([{"input": X}], r"the loss cannot take outputs \(20, 3\) with targets a NoneType"),
    "mappings without tensors": ([{"input": "text"}], "must give tensors or arrays"),
    "mappings with NaN": ([{"input": with_nan(float("nan"))}], "2 samples of the inputs hold NaN"),
    "one mapping": ({"input": X, "labels": Y}, "must give pairs .* got a str"),
    "pairs without tensors": ([("a", "b")], "must give tensors or arrays"),
    "a tensor": (X, "must give pairs"),
    "a dataset": (TensorDataset(X, Y), "must be a pair of tensors or arrays, a DataLoader .* got a TensorDataset"),
    "nothing": (3, "must be a pair of tensors or arrays"),
    "a function": (lambda: None, "must be a pair of tensors"),
    "lists of numbers": ((X.tolist(), Y), "the inputs must be tensors or arrays, got a list"),
    "targets in words": ((X, np.array(["a", "b"] * 10)), "cannot become tensors; make them numbers"),
    "targets that the loss cannot take": ((X, Y.float()), r"the loss cannot take outputs \(8, 3\) with targets \(8,\)"),
    "classes out of range": ((X, Y + 3), "the loss cannot take"),
}


@pytest.mark.parametrize("what", BAD_DATA)
def test_bad_training_data_is_said(run, net, untouched, what):
    data, message = BAD_DATA[what]
    with untouched(net), pytest.raises(tb.DataError, match=message) as caught:
        run([toy("Early")], model=net, train=data)
    assert "train" in str(caught.value) or "arrays of" in str(caught.value)


@pytest.mark.parametrize("what", [what for what in BAD_DATA if "generator" not in what and "zip" not in what])
def test_bad_validation_data_is_said_before_training_too(run, net, untouched, what):
    data, message = BAD_DATA[what]
    with untouched(net), pytest.raises(tb.DataError, match=message) as caught:
        run([toy("Early")], model=net, valid=data)
    assert "valid" in str(caught.value) or "arrays of" in str(caught.value)


class Net(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)


BAD_SETTINGS = {
    "an unknown trick": ({"tricks": ["dropuot"]}, r"no trick 'dropuot' is installed\. Did you mean 'dropout'"),
    "an unknown setting": ({"tricks": [{"trick": "dropout", "prob": 0.1}]}, "dropout: no setting 'prob'; it has"),
    "a bad setting": ({"tricks": [{"trick": "dropout", "p": 1.5}]}, "dropout: p must be in .*, got 1.5"),
    "tricks in conflict": (
        {"tricks": [toy("Cat"), toy("Dog", conflicts="cat")]},
        "dog and cat cannot be in the same run; drop one",
    ),
    "a trick that is missing": ({"tricks": [toy("Dog", requires="cat")]}, "dog needs 'cat' in the same run; add it"),
    "a trick class": ({"tricks": [type(toy("Cat"))]}, r"Cat is a class; make an object of it: Cat\(\)"),
    "no length": ({"max_epochs": None}, "the run needs a length: give max_epochs, or max_steps"),
    "no steps": ({"max_steps": 0}, "max_steps must be a whole number of at least 1, got 0"),
    "half a step": ({"max_steps": 1.5, "max_epochs": None}, "max_steps must be a whole number"),
    "True steps": ({"max_steps": True}, "max_steps must be a whole number"),
    "no epochs": ({"max_epochs": 0}, "max_epochs must be a whole number of at least 1, got 0"),
    "half an epoch": ({"max_epochs": 1.5}, "max_epochs must be a whole number"),
    "True epochs": ({"max_epochs": True}, "max_epochs must be a whole number"),
    "a negative seed": ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
    "no seed": ({"seed": None}, "seed must be a whole number"),
    "empty batches": ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
    "a loss that is no function": ({"loss": "mse"}, r"loss must be a function .*nn.CrossEntropyLoss\(\), got 'mse'"),
    "the class of a loss": ({"loss": nn.CrossEntropyLoss}, "loss must be a function of"),
    "the class of a model": ({"model": Net}, "model must be an nn.Module object, got .*Net"),
    "a function as model": ({"model": torch.relu}, "model must be an nn.Module object"),
    "no optimizer": ({"optimizer": 0.1}, "optimizer must be an optimizer or a function of the parameters"),
    "the optimizer of another model": (
        {"optimizer": torch.optim.SGD(Net().parameters(), lr=0.1)},
        "not of this model; build it from model.parameters",
    ),
    "a wrap that gives nothing": ({"wrap": lambda model: None}, "wrap must give what the loop calls, got None"),
    "a metric that is no function": ({"metrics": {"f1": "macro"}}, "'f1' must be a function"),
}


@pytest.mark.parametrize("what", BAD_SETTINGS)
def test_bad_settings_are_said(run, net, untouched, what):
    options, message = BAD_SETTINGS[what]
    options = dict(options)
    tricks = options.pop("tricks", [toy("Early")])
    with untouched(net), pytest.raises(tb.ConfigError, match=message):
        run(tricks, **({"model": net} | options))


BAD_LOSSES = {
    "one loss a sample": lambda o, t: F.cross_entropy(o, t, reduction="none"),
    "a plain number": lambda o, t: 1.0,
    "nothing": lambda o, t: None,
    "a pair": lambda o, t: (F.cross_entropy(o, t), 0),
}


@pytest.mark.parametrize("what", BAD_LOSSES)
def test_a_loss_that_is_not_one_number_is_said(run, net, untouched, what):
    with (
        untouched(net),
        pytest.raises(tb.DataError, match=r"it must give one number, got .*; average over the samples"),
    ):
        run([toy("Early")], model=net, loss=BAD_LOSSES[what])


class Named(nn.Linear):
    """What a model that takes a batch by name may be given."""

    def forward(self, input, **_):  # noqa: A002
        return super().forward(input)


@pytest.mark.parametrize(
    ("outputs", "kind"),
    [
        (lambda logits: logits, "Tensor"),
        (lambda logits: {"logits": logits}, "dict"),
        (lambda logits: {"logits": logits, "loss": None}, "dict"),
        (lambda logits: (logits.sum(), logits), "tuple"),
    ],
)
def test_without_a_loss_outputs_that_hold_none_are_said_before_training(run, untouched, outputs, kind):
    class Net(Named):
        def forward(self, input):  # noqa: A002
            return outputs(super().forward(input))

    model = Net(4, 3)
    for data in ((X, Y), [{"input": X}]):
        with (
            untouched(model),
            pytest.raises(tb.ConfigError, match=f"the model's outputs, a {kind}, hold none; pass loss="),
        ):
            run([toy("Early")], model=model, train=data, loss=None)


ENTRIES = {
    "fit": lambda model, tricks: tb.fit(
        model, (X, Y), loss=nn.CrossEntropyLoss(), optimizer=torch.optim.SGD, tricks=tricks, max_epochs=1
    ),
    "attach": lambda model, tricks: tb.attach(model, tricks, X),
    "apply": lambda model, tricks: tb.apply(model, tricks, X),
}


@pytest.fixture
def alone():
    """A process group of this process only."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("entry", ["fit", "attach"])
def test_a_trick_that_is_on_the_model_already_is_refused(net, untouched, entry):
    tb.apply(net, ["layer_norm", "freeze"], X)
    keys = list(net.state_dict())
    with (
        untouched(net),
        pytest.raises(tb.ConfigError, match=r"freeze is on the model already; call trickbox.undo\(model\) first"),
    ):
        ENTRIES[entry](net, ["dropout", "freeze"])
    assert list(net.state_dict()) == keys


def with_compiled_part(net):
    net[0] = torch.compile(net[0], backend="eager")
    net(X)  # now the graph of that part is there, and would not see what tricks add
    return net


def after(method):
    def wrap(net):
        method(net)
        return net

    return wrap


REFUSED = {
    "compiled": (partial(torch.compile, backend="eager"), "wrapped in OptimizedModule; pass the module inside"),
    "compiled in place": (after(lambda net: net.compile(backend="eager")), "compiled already, .* wrap=torch.compile"),
    "with a part compiled in place": (after(lambda net: net[0].compile(backend="eager")), "compiled already"),
    "with a compiled part": (with_compiled_part, "compiled already"),
    "in several replicas": (nn.DataParallel, "wrapped in DataParallel; pass the module inside, and wrap=DataParallel"),
    "scripted": (torch.jit.script, "model is a ScriptModule, .* pass the module it was made from"),
    "traced": (lambda net: torch.jit.trace(net, X), "model is a ScriptModule"),
}


def test_a_wrap_that_gives_nothing_is_said_by_attach_too(net, untouched):
    with untouched(net), pytest.raises(tb.ConfigError, match="wrap must give what the loop calls, got None"):
        tb.attach(net, ["dropout"], X, wrap=lambda model: None)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("what", REFUSED)
def test_a_model_that_surgery_cannot_edit_is_refused_with_the_fix(net, untouched, entry, what):
    wrap, message = REFUSED[what]
    model = wrap(net)
    with untouched(net), pytest.raises(tb.ConfigError, match=message):
        ENTRIES[entry](model, ["dropout"])


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_model_that_was_called_inside_a_compiled_one_is_refused_while_that_exists(net, untouched, entry):
    compiled = torch.compile(net, backend="eager")
    compiled(X)
    with untouched(net), pytest.raises(tb.ConfigError, match=r"compiled already, .* wrap=torch\.compile"):
        ENTRIES[entry](net, ["dropout"])
    del compiled
    ENTRIES[entry](net, ["dropout"])


def sharded(net):
    return fully_shard(net, mesh=init_device_mesh("cpu", (1,)))


def sharded_and_wrapped(net):
    return FullyShardedDataParallel(net, device_id=torch.device("cpu"))


@pytest.mark.filterwarnings("ignore:.*FSDP")
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (
            DistributedDataParallel,
            "wrapped in DistributedDataParallel; pass the module inside, and wrap=DistributedDataParallel",
        ),
        (DistributedDataParallel, "wrapped in DistributedDataParallel; pass the module inside, and wrap=Distributed"),
        (sharded_and_wrapped, "wrapped in FullyShardedDataParallel|sharded already"),
    ],
    ids=["ddp", "fully_shard", "fsdp"],
)
def test_a_model_that_is_shared_by_processes_already_is_refused_with_the_fix(alone, net, entry, wrap, message):
    model = wrap(net)
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(tb.ConfigError, match=message):
        ENTRIES[entry](model, ["layer_norm"])
    assert [name for name, _ in model.named_modules()] == names


def test_a_trick_that_needs_a_loop_is_refused_without_one(net, data, untouched):
    with (
        untouched(net),
        pytest.raises(tb.ConfigError, match="early acts in batch and needs a loop: use attach, fit or Session"),
    ):
        tb.apply(net, [toy("Early")], data[0])


def test_a_trick_that_scales_the_rate_is_refused_without_a_loop(net, data, untouched):
    @trick
    class Scales:
        """Scale the rate. Cost: none."""

        @hookimpl
        def init(self, state):
            state.scale("lr", lambda state: 0.5)

    with untouched(net), pytest.raises(tb.ConfigError, match="sets how parameters are optimized and needs a loop"):
        tb.apply(net, ["layer_norm", Scales()], data[0])


def test_inputs_of_a_wrong_shape_are_said_by_surgery_alone_too(net, untouched):
    for function in (lambda: tb.apply(net, ["dropout"], X[:, :2]), lambda: tb.explain(net, X[:, :2], ["dropout"])):
        with untouched(net), pytest.raises(tb.DataError, match=r"the model cannot take inputs of shape \(20, 2\)"):
            function()
