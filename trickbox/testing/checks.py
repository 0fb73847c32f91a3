"""One function for each promise that every trick must hold. Each takes a trick and raises `AssertionError`."""

from __future__ import annotations

import contextlib
import copy
import json
import pickle
import random
import warnings
from collections.abc import Callable
from functools import partial
from itertools import zip_longest
from typing import Any

import attrs
import numpy as np
import torch
from attrs import field
from torch import Tensor, nn

from trickbox.catalog import entries, resolve
from trickbox.errors import ConfigError, NoEffectError
from trickbox.hooks import hookimpl
from trickbox.session import Result, Session
from trickbox.state import State
from trickbox.surgery import undo
from trickbox.testing.models import Bare, tiny_data, tiny_model_for
from trickbox.trick import fields_of, fresh, hooks_of, is_off, name_of, to_config, trick

Check = Callable[[Any], None]


def check_documented(subject: Any) -> None:
    """The docstring begins with one line that promises something, and says what it costs."""
    text = (type(subject).__doc__ or "").strip()
    assert text.splitlines()[0].endswith("."), "the first line of the docstring must be a sentence with a full stop"
    assert "cost" in text.lower(), "the docstring must say what the trick costs"


def check_entry_point(subject: Any) -> None:
    """A registered trick has the entry point that its class name says, and no other class has it."""
    path = f"{type(subject).__module__}:{type(subject).__qualname__}"
    registered = [entry for entry in entries() if entry.value == path]
    if registered:
        assert [entry.name for entry in registered] == [name_of(subject)], "the entry point must be named as the class"


def check_config_round_trip(subject: Any) -> None:
    """The JSON form gives back an equal trick."""
    config = json.loads(json.dumps(to_config(subject)))
    settings = {name: value for name, value in config.items() if name != "trick"}
    assert to_config(type(subject)(**settings)) == to_config(subject), "JSON and back changed the settings"
    if any(entry.name == name_of(subject) for entry in entries()):
        assert to_config(resolve(config)) == to_config(subject)


def check_copies(subject: Any) -> None:
    """Fresh copies, deep copies and pickles keep the settings."""
    for clone in (fresh(subject), copy.deepcopy(subject), pickle.loads(pickle.dumps(subject))):
        assert clone is not subject
        assert to_config(clone) == to_config(subject), "a copy has other settings"


def check_bad_settings(subject: Any) -> None:
    """No setting takes just anything: an arbitrary object is refused with the trick's name."""
    for name in fields_of(subject):
        try:
            fresh(subject, **{name: object()})
        except ConfigError as error:
            assert name_of(subject) in str(error), f"the error of {name!r} must name the trick, got: {error}"
        else:
            raise AssertionError(f"the setting {name!r} takes any object; give it a validator")


def check_trains(subject: Any) -> None:
    """A tiny model trains with it, and the record names it."""
    result = _run([subject])
    assert np.isfinite(result.history["train_loss"]).all(), "the loss is not finite"
    assert result.record["tricks"][0]["trick"] == name_of(subject)
    json.dumps(result.record)


def check_deterministic(subject: Any) -> None:
    """The same seed twice gives the same bits."""
    _assert_same(_run([subject]), _run([subject]), "the same seed twice")


def check_off_is_off(subject: Any) -> None:
    """At its off settings a trick changes no bit of training."""
    if subject.off is None:
        return
    off = fresh(subject, **subject.off)
    assert is_off(off)
    plain, tricked = _run([], tiny_model_for(subject)), _run([off], tiny_model_for(subject))
    _assert_same(plain, tricked, "off settings and no trick at all")


def check_undo(subject: Any) -> None:
    """`undo` gives back the same class, keys, hooks and bits."""
    model = tiny_model_for(subject)
    before = _snapshot(model)
    with _session(model, [subject]):
        pass
    undo(model)
    after = _snapshot(model)
    assert list(after) == list(before), "undo left other keys"
    for name, value in before.items():
        assert torch.equal(after[name], value), f"undo did not give back {name}"
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks, "undo left a hook on the model"
    assert all(p.requires_grad for p in model.parameters()), "undo left a parameter frozen"
    assert not [name for name in model.__dict__ if "trickbox" in name], "undo left an attribute on the model"


def check_undo_after_training(subject: Any) -> None:
    """After training, `undo` keeps what was trained and takes off what was added."""
    model = tiny_model_for(subject)
    keys = list(model.state_dict())
    result = _run([subject], model)
    trained = {name: value.clone() for name, value in result.model.state_dict().items() if "trickbox" not in name}
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    undo(model)
    assert list(model.state_dict()) == keys
    for name, value in model.state_dict().items():
        assert name in frozen or torch.equal(value, trained[name]), f"undo changed the trained {name}"


def check_keys_stay(subject: Any) -> None:
    """The model's own keys stay, added ones lie under ``trickbox``, and a plain checkpoint loads strictly."""
    model = tiny_model_for(subject)
    plain = _snapshot(model)
    with _session(model, [subject]):
        keys = list(model.state_dict())
        assert [key for key in keys if ".trickbox." not in f".{key}"] == list(plain), "the model's own keys changed"
        model.load_state_dict(plain)


def check_object_untouched(subject: Any) -> None:
    """A run works on a copy: the object that was passed is the same afterwards."""
    before = {a.name: copy.deepcopy(getattr(subject, a.name)) for a in attrs.fields(type(subject))}
    _run([subject])
    for name, value in before.items():
        assert repr(getattr(subject, name)) == repr(value), f"the run changed {name!r} of the object that was passed"


def check_globals_untouched(subject: Any) -> None:
    """Nothing global is left changed, after a run and after an exception in the middle of one."""
    for loss in (nn.CrossEntropyLoss(), _FailsAt(4)):
        before = _globals()
        with contextlib.suppress(_PlantedError):
            _run([subject], loss=loss)
        assert _globals() == before, "global state is left changed"


def check_pairing(subject: Any) -> None:
    """Adding the trick changes neither data order, nor weights that it does not write, nor another trick's draws."""
    plain, tricked = Witness(), Witness()
    for witness, tricks in ((plain, []), (tricked, [subject])):
        model = tiny_model_for(subject)
        with _session(model, [witness, *tricks]) as session:
            member = next(m.trick for m in session._box.members if m.kind == "witness")
            written = session.state.surgery.written()
            for _ in session.epochs():
                for batch in session.batches():
                    session.step(batch)
            witness.seen, witness.weights = member.seen, member.weights
    assert len(plain.seen) == len(tricked.seen), "the number of batches changed"
    for one, other in zip(plain.seen, tricked.seen, strict=True):
        assert torch.equal(one[0], other[0]), "the data order changed"
        assert torch.equal(one[1], other[1]), "another trick's draws changed"
    for name, value in plain.weights.items():
        assert name in written or torch.equal(tricked.weights[name], value), f"the initial {name} changed"


def check_runs_do_not_interact(subject: Any) -> None:
    """One object in two interleaved runs gives what it gives in two separate ones."""
    alone = [_run([subject], seed=seed) for seed in (0, 1)]
    models = [tiny_model_for(subject), tiny_model_for(subject)]
    sessions = [_session(model, [subject], seed=seed) for seed, model in enumerate(models)]
    with sessions[0] as one, sessions[1] as other:
        for _ in zip_longest(one.epochs(), other.epochs()):
            for first, second in zip(one.batches(), other.batches(), strict=True):
                # The global generators, from which the model's own dropout draws, belong to whoever steps.
                for session, batch in ((one, first), (other, second)):
                    state = session.state
                    torch.manual_seed(state.streams.derive("noise", state.epoch) + state.batch_index)
                    session.step(batch)
    for session, model, expected in zip(sessions, models, alone, strict=True):
        if not session.state.stop_reason:
            _assert_same(expected, session.result(), "interleaved and alone", history=False)
        assert model is session.result().model


def check_no_effect(subject: Any) -> None:
    """A trick that only edits the model is an error on a model where it finds nothing."""
    if hooks_of(subject) != ["init"] or is_off(subject):
        return
    model = Bare()
    try:
        with _session(model, [subject]) as session:
            state = session.state
            acted = bool(state.scales or state.parameter_options) or state.batches_per_update > 1
    except (NoEffectError, ConfigError) as error:
        assert name_of(subject) in str(error), f"the error must name the trick, got: {error}"
    else:
        assert acted, "it found nothing to act on and said nothing"
    assert list(model.state_dict()) == ["factor"], "a refused trick left something on the model"


@trick
class Witness:
    """Write down every batch, the initial weights, and draws of its own. Cost: it copies every batch."""

    seen: list[tuple[Tensor, Tensor]] = field(factory=list, init=False)
    weights: dict[str, Tensor] = field(factory=dict, init=False)
    _generator: torch.Generator = field(factory=torch.Generator, init=False)

    @hookimpl
    def init(self, state: State) -> None:
        self._generator = state.stream()

    @hookimpl
    def fit_start(self, state: State) -> None:
        self.weights.update(_snapshot(state.model))

    @hookimpl
    def batch(self, state: State) -> None:
        self.seen.append((state.batch.inputs.clone(), torch.rand(2, generator=self._generator)))


class _PlantedError(Exception):
    pass


class _FailsAt(nn.CrossEntropyLoss):
    """A loss that raises at one of its calls with gradients."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.calls_left = call

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.calls_left -= torch.is_grad_enabled()
        if self.calls_left == 0:
            raise _PlantedError
        return super().forward(outputs, targets)


def _session(model: nn.Module, tricks: list[Any], seed: int = 0, loss: nn.Module | None = None) -> Session:
    return Session(
        model,
        tiny_data(40),
        tiny_data(20, seed=1),
        loss=loss or nn.CrossEntropyLoss(),
        optimizer=partial(torch.optim.Adam, lr=0.01),
        tricks=tricks,
        max_epochs=3,
        batch_size=16,
        seed=seed,
        device="cpu",
    )


def _run(tricks: list[Any], model: nn.Module | None = None, seed: int = 0, loss: nn.Module | None = None) -> Result:
    with warnings.catch_warnings(), _session(model or tiny_model_for(*tricks), tricks, seed, loss) as session:
        for _ in session.epochs():
            for batch in session.batches():
                session.step(batch)
    return session.result()


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _assert_same(one: Result, other: Result, what: str, history: bool = True) -> None:
    if history:
        assert one.history.rows == other.history.rows, f"{what}: the histories differ"
    for name, value in one.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], value), f"{what}: {name} differs"


def _globals() -> list[Any]:
    numpy_state: Any = np.random.get_state()
    return [
        torch.get_rng_state().tolist(),
        random.getstate(),
        numpy_state[1].tolist(),
        numpy_state[2:],
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
    ]


CHECKS: dict[str, Check] = {name: value for name, value in list(globals().items()) if name.startswith("check_")}
"""Every check by name, in the order in which they are written here."""
