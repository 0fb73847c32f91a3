"""The architectures that tricks are tried on: each runs, is always the same, and is recorded without a trace."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from models.architectures import ARCHITECTURES

from trickbox.nest import call, tensors
from trickbox.surgery import record

pytestmark = pytest.mark.slow


@pytest.fixture(params=ARCHITECTURES)
def architecture(request):
    found = ARCHITECTURES[request.param]
    pytest.importorskip(found.source, reason=f"{found.source} is missing: pip install 'trickbox[models]'")
    return found


def random_states():
    return str((torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def everything(model):
    """Its modes and its hooks, module by module."""
    return [
        (path, module.training, *(list(value) for name, value in vars(module).items() if name.endswith("_hooks")))
        for path, module in model.named_modules()
    ]


def test_it_is_always_the_same_and_leaves_the_random_states_alone(architecture):
    before = random_states()
    model, inputs = architecture.build(), architecture.inputs()
    assert random_states() == before
    torch.rand(1)  # the next are made at another state
    again, inputs_again = architecture.build(), architecture.inputs()
    assert same(model.state_dict(), again.state_dict())
    assert all(map(torch.equal, tensors(inputs), tensors(inputs_again)))


def test_it_runs_in_eval_and_in_train(architecture):
    model, inputs = architecture.build(), architecture.inputs()
    model.eval()
    with torch.no_grad():
        outputs = list(tensors(call(model, inputs)))
    assert outputs
    assert all(output.isfinite().all() for output in outputs)

    model.train()
    outputs = [output for output in tensors(call(model, inputs)) if output.requires_grad]
    # Not their squares: some heads begin at zero, and would get no gradient.
    torch.stack([(output - 1).square().mean() for output in outputs]).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)


def test_it_is_recorded_without_a_trace(architecture):
    model, inputs = architecture.build(), architecture.inputs()
    model.eval()
    call(model, inputs)  # some models of transformers hook themselves when they are first run
    model.train()
    layer = [module for module in model.modules() if next(module.parameters(recurse=False), None) is not None][-1]
    layer.eval()  # not the mode of the others
    layer.register_forward_hook(lambda *_: None)
    states = {name: value.clone() for name, value in model.state_dict().items()}
    modes_and_hooks, drawn = everything(model), random_states()

    tape = record(model, inputs)

    assert any(event.is_module and event.path for event in tape.modules())
    assert same(states, model.state_dict())
    assert everything(model) == modes_and_hooks
    assert random_states() == drawn
    assert all(parameter.grad is None for parameter in model.parameters())
