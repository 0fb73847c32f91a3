"""docs/reference/hooks.md tells the truth about the hooks, and every hook has a trick that needs it."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
import textwrap
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import trickbox as tb
from trickbox import hooks
from trickbox.authoring import hookimpl, trick
from trickbox.hooks import HOOKS, MOMENTS, PHASES, Hooks
from trickbox.testing import tiny_data, tiny_model
from trickbox.trick import hooks_of, name_of

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "hooks.md").read_text()
SPECIFIED = [name for name, _ in inspect.getmembers(Hooks, inspect.isfunction) if not name.startswith("_")]
SECTIONS = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", PAGE, re.DOTALL | re.MULTILINE))


def train(*tricks, **settings):
    return tb.fit(
        tiny_model(), tiny_data(40), tiny_data(20, seed=1), loss=settings.pop("loss", nn.CrossEntropyLoss()),
        optimizer=partial(torch.optim.SGD, lr=0.1), tricks=tricks, max_epochs=2, batch_size=16, device="cpu",
        **settings,
    )  # fmt: skip


def signature(hook: str) -> str:
    return f"def {hook}{inspect.signature(getattr(Hooks, hook))}".replace("'", "")


def implemented(source: str) -> list[str]:
    """The names of all functions in *source* that are marked as hook implementations, in classes."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            functions = [inner for inner in node.body if isinstance(inner, ast.FunctionDef)]
            found += [f.name for f in functions if any("hookimpl" in ast.unparse(d) for d in f.decorator_list)]
    return found


def examples(text: str) -> str:
    return "".join(example.source for example in doctest.DocTestParser().get_examples(text))


# -- what the page says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", SPECIFIED)
def test_the_exact_signature_is_on_the_page(hook):
    assert f"```python\n{signature(hook)}\n```" in SECTIONS[hook], signature(hook)


@pytest.mark.parametrize("hook", SPECIFIED)
def test_the_kind_is_the_right_one(hook):
    kind = "Phase" if hook in PHASES else "Moment"
    assert re.search(rf"^{kind}[.,] ", SECTIONS[hook], re.MULTILINE), f"{hook} is a {kind.lower()}"


@pytest.mark.parametrize("hook", SPECIFIED)
def test_an_example_implements_it(hook):
    assert hook in implemented(examples(SECTIONS[hook]))


def test_the_page_has_the_hooks_in_the_order_in_which_they_fire():
    assert list(SECTIONS) == list(HOOKS)
    assert sorted(HOOKS) == sorted(SPECIFIED) == sorted([*PHASES, *MOMENTS])


def test_the_loop_on_the_page_is_the_one_in_the_code():
    (loop,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    assert textwrap.indent(loop, "    ") in (hooks.__doc__ or "")
    mentioned = [word for word in re.findall(r"\w+", loop) if word in HOOKS]
    assert list(dict.fromkeys(mentioned)) == list(HOOKS)


def test_the_page_names_no_hook_that_does_not_exist():
    source = re.sub(r">>> @trick\n\.\.\. class Misspelt.*?```", "", PAGE, flags=re.DOTALL)
    named = {*implemented(examples(source)), *SECTIONS, *re.findall(r"def (\w+)\(self, state", source)}
    assert named <= set(HOOKS)


# -- what the code does ----------------------------------------------------------------------------------------------


@trick
class Trace:
    """Write down every hook as it fires. Cost: one call a hook."""

    @hookimpl
    def init(self, state):
        fired.clear()
        fired.append("init")

    @hookimpl
    def fit_start(self, state):
        fired.append("fit_start")

    @hookimpl
    def epoch_start(self, state):
        fired.append("epoch_start")

    @hookimpl
    def batch(self, state):
        fired.append("batch")

    @hookimpl
    def compute_loss(self, state):
        fired.append("compute_loss")

    @hookimpl
    def backward(self, state):
        fired.append("backward")

    @hookimpl
    def update(self, state):
        fired.append("update")

    @hookimpl
    def validate(self, state):
        fired.append("validate")

    @hookimpl
    def epoch_end(self, state):
        fired.append("epoch_end")

    @hookimpl
    def fit_end(self, state):
        fired.append("fit_end")


fired: list[str] = []


def test_a_run_fires_the_hooks_in_that_order():
    train(Trace())
    batch = ["batch", "compute_loss", "backward", "update"]
    epoch = ["epoch_start", *batch * 3, "validate", "epoch_end"]
    assert fired == ["init", "fit_start", *epoch, *epoch, "fit_end"]
    assert list(dict.fromkeys(fired)) == list(HOOKS)


# -- every hook earns its place: a trick that needs it, against an independent oracle ---------------------------------


@trick
class Decay:
    """Set a weight decay of 0.1. Cost: none measurable."""

    @hookimpl
    def fit_start(self, state):
        for group in state.optimizer.param_groups:
            group["weight_decay"] = 0.1


@trick
class HeadFirst:
    """Train only the head in the first two epochs. Cost: none."""

    @hookimpl
    def epoch_start(self, state):
        for name, parameter in state.model.named_parameters():
            parameter.requires_grad_(state.epoch >= 2 or name.startswith("fc2"))


@trick
class Smooth:
    """Label smoothing by 0.1 from the mean log probability. Cost: one pass over the outputs."""

    @hookimpl(wrapper=True)
    def compute_loss(self, state):
        loss = yield
        return 0.9 * loss - 0.1 * state.outputs.log_softmax(1).mean()


@trick
class Halve:
    """Halve all gradients. Cost: one pass over them."""

    @hookimpl(wrapper=True)
    def backward(self, state):
        answer = yield
        for parameter in state.model.parameters():
            parameter.grad *= 0.5
        return answer


@trick
class Never:
    """Make no update. Cost: none."""

    @hookimpl
    def update(self, state):
        return False


@trick
class Zeroed:
    """Validate with all weights at zero. Cost: a copy of the weights."""

    @hookimpl(wrapper=True)
    def validate(self, state):
        trained = [parameter.detach().clone() for parameter in state.model.parameters()]
        try:
            with torch.no_grad():
                for parameter in state.model.parameters():
                    parameter.zero_()
            return (yield)
        finally:
            with torch.no_grad():
                for parameter, value in zip(state.model.parameters(), trained, strict=True):
                    parameter.copy_(value)


TEST_TRICKS = (Decay, HeadFirst, Smooth, Halve, Never, Zeroed)
"""Tricks of this file, for the hooks that no built-in trick needs; each is tested below."""


def train_with(**settings):
    """The same run without any trick, with other settings of SGD."""
    return tb.fit(
        tiny_model(), tiny_data(40), loss=nn.CrossEntropyLoss(), max_epochs=2, batch_size=16, device="cpu",
        optimizer=partial(torch.optim.SGD, **settings),
    )  # fmt: skip


def test_fit_start_can_change_the_parameter_groups():
    decayed, torchs = train(Decay()), train_with(lr=0.1, weight_decay=0.1)
    assert decayed.history["train_loss"] == torchs.history["train_loss"]


def test_epoch_start_can_choose_what_is_trained():
    start, model = tiny_model(), train(HeadFirst()).model
    assert torch.equal(model.conv1.weight, start.conv1.weight)
    assert not torch.equal(model.fc2.weight, start.fc2.weight)


def test_compute_loss_can_change_the_loss():
    smoothed, torchs = train(Smooth()), train(loss=nn.CrossEntropyLoss(label_smoothing=0.1))
    assert smoothed.history["train_loss"] == pytest.approx(torchs.history["train_loss"], rel=1e-4)


def test_backward_can_change_the_gradients():
    halved, plain = train(Halve()), train_with(lr=0.05)
    assert halved.history["train_loss"] == pytest.approx(plain.history["train_loss"], rel=1e-5)


def test_update_can_be_put_off():
    result = train(Never())
    assert result.history["step"] == [0, 0]
    assert torch.equal(result.model.fc1.weight, tiny_model().fc1.weight)


def test_validate_can_swap_weights_for_the_duration():
    swapped, plain = train(Zeroed()), train()
    assert swapped.history["val_loss"] == pytest.approx([torch.tensor(3.0).log().item()] * 2)
    assert all(torch.equal(a, b) for a, b in zip(swapped.model.parameters(), plain.model.parameters(), strict=True))


@pytest.mark.parametrize("hook", SPECIFIED)
def test_a_trick_needs_it(hook):
    built_in = [name for name in tb.available() if hook in hooks_of(tb.get(name)) and name != "placebo"]
    tested = [name_of(cls) for cls in TEST_TRICKS if hook in hooks_of(cls)]
    assert built_in or tested, f"no built-in trick and no test trick needs {hook}"
