"""The stopping rule against an independent reference, and what a run gives back."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from attrs import field
from attrs.validators import instance_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from trickbox_tricks.early_stopping import EarlyStopping, early_stop

from trickbox import ConfigError, Result, Session, fit
from trickbox.authoring import State, hookimpl, is_better, resolve_monitor, trick

MODES = {"train_loss": "min", "val_loss": "min", "val_accuracy": "max", "val_f1": None}


class ByTheBook:
    """The rule as the documentation of Keras tells it, one epoch at a time."""

    def __init__(self, sign: int, patience: int, delta: float, baseline: float | None, start: int) -> None:
        self.sign, self.patience, self.delta, self.baseline, self.start = sign, patience, delta, baseline, start
        self.best, self.best_epoch, self.bad_in_a_row, self.stopped = None, None, 0, False  # type: ignore[var-annotated]

    def beats(self, value: float, other: float | None) -> bool:
        return not math.isnan(value) and (other is None or self.sign * (value - other) > self.delta)

    def see(self, epoch: int, value: float) -> None:
        if epoch < self.start:
            return
        improved = self.beats(value, self.best)
        if improved:
            self.best, self.best_epoch = value, epoch  # type: ignore[assignment]
        resets = improved and (self.baseline is None or self.beats(value, self.baseline))
        self.bad_in_a_row = 0 if resets else self.bad_in_a_row + 1
        self.stopped = not improved and self.bad_in_a_row >= self.patience and epoch > 0


# Eighths are exact in floats, so that no rounding can tell the two apart.
@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(st.sampled_from([*[x / 8 for x in range(-4, 12)], math.nan]), min_size=1, max_size=25),
    mode=st.sampled_from(["min", "max"]),
    patience=st.integers(0, 4),
    delta=st.sampled_from([0.0, 0.125, 0.5]),
    baseline=st.sampled_from([None, 0.25, 1.0]),
    start=st.integers(0, 4),
)
def test_the_rule_is_keras(
    values: list[float], mode: str, patience: int, delta: float, baseline: float | None, start: int
) -> None:
    book = ByTheBook(-1 if mode == "min" else 1, patience, delta, baseline, start)
    for epoch, value in enumerate(values):
        book.see(epoch, value)
        got = early_stop(
            values[: epoch + 1], mode=mode, patience=patience, min_delta=delta, baseline=baseline,
            start_from_epoch=start,
        )  # fmt: skip
        assert got == (book.best_epoch, book.stopped)
        if book.stopped:
            return


def test_the_stop_comes_patience_epochs_after_the_best() -> None:
    values = [3.0, 1.0, 2.0, 2.0, 2.0, 2.0]
    stops = [early_stop(values[: n + 1], mode="min", patience=3)[1] for n in range(len(values))]
    assert stops.index(True) == 1 + 3


def test_nan_never_becomes_the_best() -> None:
    assert early_stop([math.nan, 2.0, math.nan], mode="min", patience=9) == (1, False)
    assert early_stop([math.nan] * 4, mode="max", patience=3) == (None, True)
    assert not is_better(math.nan, math.inf, "min")


def test_an_equal_value_is_no_improvement() -> None:
    assert early_stop([1.0, 1.0], mode="min", patience=9)[0] == 0
    assert early_stop([1.0, 1.0], mode="max", patience=9)[0] == 0


# -- runs whose metric follows a script ------------------------------------------------------------------------------


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(16, 3, generator=generator), torch.arange(16) % 2


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


@trick
class Scripted:
    """Let the training loss take the given values, one an epoch."""

    values: tuple[float, ...] = field(validator=instance_of(tuple))

    @hookimpl
    def epoch_end(self, state: State) -> None:
        state.metrics["train_loss"] = self.values[state.epoch]


def scripted(values: tuple[float, ...], **settings_: Any) -> tuple[Result, list[dict[str, Tensor]], nn.Module]:
    """Train where the training loss is said to take *values*; also gives the weights after each epoch."""
    model, seen = net(), []
    tricks = [Scripted(values), EarlyStopping("train_loss", **settings_)]
    optimizer = partial(torch.optim.SGD, lr=0.5)
    with Session(
        model, data(), loss=nn.CrossEntropyLoss(), optimizer=optimizer, tricks=tricks, max_epochs=len(values)
    ) as session:
        for _ in session.epochs():
            for batch in session.batches():
                session.step(batch)
            seen.append({name: value.clone() for name, value in model.state_dict().items()})
    return session.result(), seen, model


def same(model: nn.Module, weights: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_the_best_weights_come_back_bit_by_bit_with_their_metrics() -> None:
    result, seen, model = scripted((3.0, 1.0, 2.0, 2.0, 2.0), patience=2)
    assert len(seen) == len(result.history) == 4
    assert same(model, seen[1])
    assert not same(model, seen[3])  # also running statistics and counters moved in between
    assert result.metrics["train_loss"] == 1.0
    assert result.metrics["train_accuracy"] == result.history["train_accuracy"][1]
    assert result.stop_reason == "early_stopping: train_loss has not improved for 2 epochs (best 1 in epoch 1)"


def test_the_best_weights_come_back_also_from_a_run_that_ended_by_itself() -> None:
    result, seen, model = scripted((1.0, 2.0, 2.0), patience=9)
    assert result.stop_reason.startswith("max_epochs")
    assert same(model, seen[0])


def test_without_restoring_the_last_weights_stay() -> None:
    result, seen, model = scripted((1.0, 2.0, 2.0), patience=1, restore_best_weights=False)
    assert len(seen) == 2
    assert same(model, seen[-1])
    assert result.metrics["train_loss"] == 2.0


def test_a_metric_that_was_never_a_number_restores_nothing() -> None:
    result, seen, model = scripted((math.nan, math.nan, math.nan), patience=2)
    assert len(seen) == 2
    assert same(model, seen[-1])
    assert result.stop_reason == "early_stopping: train_loss has not improved for 2 epochs"


def test_epochs_before_the_start_are_neither_counted_nor_kept() -> None:
    _, seen, model = scripted((0.0, 0.0, 5.0, 6.0, 6.0, 6.0), patience=2, start_from_epoch=2)
    assert len(seen) == 5
    assert same(model, seen[2])


def test_the_best_weights_come_back_after_an_error() -> None:
    _, seen, _ = scripted((1.0,))
    model, tricks = net(), [Scripted((1.0, 2.0)), EarlyStopping("train_loss")]
    run = partial(fit, model, data(), loss=nn.CrossEntropyLoss(), optimizer=partial(torch.optim.SGD, lr=0.5))
    with pytest.raises(IndexError):
        run(tricks=tricks, max_epochs=5)
    assert same(model, seen[0])


def test_the_weights_that_were_evaluated_are_the_ones_that_come_back() -> None:
    @trick
    class Evaluates:
        """Say that the metrics of the second epoch belong to other weights. Cost: none."""

        @hookimpl
        def epoch_end(self, state: State) -> None:
            if state.epoch == 1:
                state.evaluated = {name: torch.zeros_like(value) for name, value in state.model.state_dict().items()}

    model, tricks = net(), [Evaluates(), Scripted((2.0, 1.0, 3.0)), EarlyStopping("train_loss")]
    optimizer = partial(torch.optim.SGD, lr=0.5)
    result = fit(model, data(), loss=nn.CrossEntropyLoss(), optimizer=optimizer, tricks=tricks, max_epochs=3)
    assert not any(value.any() for value in model.state_dict().values())
    assert result.metrics["train_loss"] == 1.0


def test_off_changes_no_bit() -> None:
    plain, tricked = net(), net()
    run = partial(fit, train=data(), valid=data(), loss=nn.CrossEntropyLoss(), max_epochs=3)
    optimizer = partial(torch.optim.SGD, lr=0.5)
    history = run(plain, optimizer=optimizer).history
    off = EarlyStopping(**EarlyStopping.off)  # type: ignore[arg-type]
    assert run(tricked, optimizer=optimizer, tricks=[off]).history == history
    assert same(tricked, plain.state_dict())


@pytest.mark.parametrize(
    ("monitor", "mode", "expected"),
    [("val_loss", None, "min"), ("val_accuracy", None, "max"), ("val_f1", "max", "max")],
)
def test_the_direction_is_the_declared_one(monitor: str, mode: str | None, expected: str) -> None:
    assert resolve_monitor("early_stopping", monitor, mode, MODES) == expected


def test_a_metric_of_unknown_direction_is_refused() -> None:
    with pytest.raises(ConfigError, match="early_stopping: metric 'val_f1' declares no better direction; set mode"):
        resolve_monitor("early_stopping", "val_f1", None, MODES)


@pytest.mark.parametrize(
    ("monitor", "message"), [("val_loss", "Give validation data"), ("train_los", "Did you mean 'train_loss'")]
)
def test_a_metric_that_is_not_recorded_is_refused_before_training(monitor: str, message: str) -> None:
    model = net()
    before = net().state_dict()
    with pytest.raises(ConfigError, match=message):
        fit(
            model, data(), loss=nn.CrossEntropyLoss(), optimizer=torch.optim.SGD, tricks=[EarlyStopping(monitor)],
            max_epochs=2,
        )  # fmt: skip
    assert same(model, before)


@pytest.mark.parametrize("settings_", [{"patience": -1}, {"min_delta": -0.1}, {"mode": "auto"}, {"baseline": math.nan}])
def test_bad_settings_are_refused(settings_: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"early_stopping: {next(iter(settings_))} must be"):
        EarlyStopping(**settings_)
