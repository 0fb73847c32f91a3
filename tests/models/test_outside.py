"""Tricks on architectures that nobody here wrote: they act or say why not, and what they did can be taken back."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from models.architectures import ARCHITECTURES
from models.expected import SETTINGS, TRICKS

import trickbox as tb
from trickbox.nest import call, tensors
from trickbox.surgery import evaluating

pytestmark = pytest.mark.slow


def outputs(model, inputs):
    with torch.no_grad(), evaluating(model):
        return [tensor for tensor in tensors(call(model, inputs)) if tensor.is_floating_point()]


def look(model):
    """All that undo must give back: classes, modes, hooks, values, and what is trained."""
    modules = [
        (
            path,
            type(module),
            module.training,
            *(list(v.values()) for n, v in vars(module).items() if n.endswith("_hooks")),
        )
        for path, module in model.named_modules()
    ]
    trained = [(name, parameter.requires_grad) for name, parameter in model.named_parameters()]
    return modules, trained


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tricks_act_or_say_why_not_and_undo_is_exact(name):
    architecture = ARCHITECTURES[name]
    pytest.importorskip(architecture.source, reason=f"{architecture.source} is missing: pip install 'trickbox[models]'")
    model, inputs = architecture.build(), architecture.inputs()
    outputs(model, inputs)  # some install hooks of their own in their first forward
    plain, before, copies = copy.deepcopy(model.state_dict()), look(model), ways_to_copy(model)
    for trick in TRICKS:
        try:
            tb.apply(model, [SETTINGS.get(trick, trick)], inputs)
        except tb.NoEffectError:
            pass
        else:
            check_tricked(model, inputs, plain, copies)
            tb.undo(model)
        assert same(model.state_dict(), plain), trick
        assert look(model) == before, trick


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def ways_to_copy(model):
    """By deepcopy, and by pickle where the plain model can be pickled."""
    try:
        by_pickle(model)
    except (RuntimeError, AttributeError, pickle.PicklingError):
        return [copy.deepcopy]
    return [copy.deepcopy, by_pickle]


def check_tricked(model, inputs, plain, copies):
    assert {name for name in plain if "running_" not in name and "num_batches" not in name} <= model.state_dict().keys()
    found = outputs(model, inputs)
    for copied in copies:
        assert all(map(torch.equal, outputs(copied(model), inputs), found))
    trained = copy.deepcopy(model).train()
    trained.load_state_dict(plain)
    sum(tensor.square().sum() for tensor in tensors(call(trained, inputs)) if tensor.is_floating_point()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in trained.parameters())
