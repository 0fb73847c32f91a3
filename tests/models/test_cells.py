"""Every trick on every model of the zoo: what it leaves as it was, and in which ways the edited model can be used."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from built_ins import edits_only, every_trick
from torch import nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel

import trickbox as tb
from trickbox.nest import call, tensors
from trickbox.testing.zoo import ZOO, specimen
from trickbox.trick import fresh

pytestmark = pytest.mark.slow

NO_GRAPH = {"lstm", "gru", "encoder_decoder"}
"""Models that no graph of their own can hold whole, with or without tricks."""


@pytest.fixture(scope="module")
def tricks(tmp_path_factory):
    found = {name: t for name, t in every_trick(tmp_path_factory.mktemp("weights")).items() if edits_only(t)}
    del found["transfer"]  # its weights are those of another net
    return {**found, "attention_dropout": fresh(found["dropout"], where="attention")}


def outputs(model, inputs):
    return [tensor for tensor in tensors(call(model, inputs)) if tensor.is_floating_point()]


def equal(some, others):
    return all(map(torch.equal, some, others))


def close(some, others):
    for one, other in zip(some, others, strict=True):
        torch.testing.assert_close(one, other)


def look(model):
    """All that undo must give back."""
    return [
        (path, type(module), module.training, sorted(vars(module)), *(list(hooks.values()) for hooks in _hooks(module)))
        for path, module in model.named_modules()
    ] + [(name, p.requires_grad, p.grad is None) for name, p in model.named_parameters()]


def _hooks(module):
    return [value for name, value in vars(module).items() if name.endswith("_hooks")]


@pytest.mark.parametrize("name", ZOO)
def test_a_model_with_tricks_on_is_as_usable_as_without(tricks, name):
    acted = []
    for trick in tricks.values():
        model, inputs = specimen(name)
        model.eval()
        before, keys = look(model), copy.deepcopy(model.state_dict())
        try:
            tb.apply(model, [trick], inputs)
        except tb.NoEffectError:
            pass
        else:
            acted.append(trick)
            use(model, inputs, keys, graph=name not in NO_GRAPH)
            tb.undo(model)
        assert look(model) == before, trick
        assert equal(model.state_dict().values(), keys.values()), trick
    assert acted or name == "functional_weights"


def use(model, inputs, keys, graph):
    """Go through the ways in which people use a model; each gives what the model itself gives."""
    state = model.state_dict()
    assert [key for key in state if ".trickbox." not in f".{key}"] == list(keys)
    found = outputs(model, inputs)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    for copied in copies(model):
        assert equal(outputs(copied, inputs), found)
        copied.load_state_dict(saved)
        assert equal(outputs(copied, inputs), found)
    if not any(isinstance(inputs, kind) for kind in (tuple, dict)):
        values = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        close([t for t in tensors(functional_call(model, values, (inputs,))) if t.is_floating_point()], found)
    averaged = AveragedModel(model)
    averaged.update_parameters(model)
    close(outputs(averaged.module.eval(), inputs), found)
    if graph:
        torch._dynamo.reset()
        compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="eager")
        close(outputs(compiled, inputs), found)
    train(copy.deepcopy(model), inputs, keys)


def copies(model):
    """By deepcopy, and by pickle and torch.save where the model has no parametrization, which neither can hold."""
    yield copy.deepcopy(model)
    if not any(nn.utils.parametrize.is_parametrized(module) for module in model.modules()):
        yield pickle.loads(pickle.dumps(model))
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        yield torch.load(file, weights_only=False)


def train(model, inputs, keys):
    """One step from a plain checkpoint; what a trick added learns too, unless it is out of play."""
    model.load_state_dict(keys)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sum(output.square().sum() for output in outputs(model, inputs)).backward()
    optimizer.step()
    added = [p for name, p in model.named_parameters() if ".trickbox." in f".{name}" and p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in added)
    assert all(p.isfinite().all() for p in model.parameters())
