"""One run, step by step: the session fires the hooks. `fit`, hand-written loops and adapters all stand on it."""

from __future__ import annotations

import math
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import version
from types import TracebackType
from typing import Any, Self

import torch
from attrs import frozen
from torch import Tensor, nn

from trickbox.box import Box
from trickbox.checks import check_loss, check_settings, check_valid, plan_surgery
from trickbox.data import KeptGenerators, Source, as_source, check_finite, find_device, length
from trickbox.errors import ConfigError
from trickbox.history import History
from trickbox.hooks import HOOKS
from trickbox.metrics import MODES, Forward, Meter, check_metrics, default_metrics
from trickbox.nest import call
from trickbox.optimization import OptimizerFactory, build_optimizer, keep_groups, restore_scales
from trickbox.phases import Core
from trickbox.state import Batch, Loss, State
from trickbox.streams import GlobalState, Streams
from trickbox.surgery import forget_trained, undo


@frozen
class Result:
    """What a run leaves behind."""

    model: nn.Module
    """The model that was passed, trained, with its tricks on; `undo` takes them off."""
    history: History
    metrics: dict[str, float]
    """The metrics of the last finished epoch, or of the epoch whose weights a trick has brought back."""
    stop_reason: str
    record: dict[str, Any]
    """What ran, as JSON: tricks with settings and origin, seed, versions."""
    seconds: list[float]
    """Training time of each epoch, without validation."""


@cache
def versions() -> dict[str, str]:
    """What the record says of the software; read once."""
    return {"trickbox": version("trickbox"), "torch": torch.__version__, "python": platform.python_version()}


class Session:
    """One training run, to be used as a context manager; see `fit` for the arguments.

    >>> net, data = nn.Linear(2, 2), (torch.randn(8, 2), torch.zeros(8, dtype=torch.long))
    >>> with Session(net, data, loss=nn.CrossEntropyLoss(), optimizer=torch.optim.SGD, max_epochs=2) as session:
    ...     for epoch in session.epochs():
    ...         for batch in session.batches():
    ...             _ = session.step(batch)
    >>> len(session.result().history)
    2
    """

    def __init__(
        self,
        model: nn.Module,
        train: Any,
        valid: Any = None,
        *,
        loss: Loss,
        optimizer: OptimizerFactory | torch.optim.Optimizer,
        tricks: Any = (),
        max_epochs: int,
        batch_size: int = 32,
        metrics: Mapping[str, Any] | None = None,
        seed: int = 0,
        device: str | torch.device = "auto",
        forward: Forward = call,
    ) -> None:
        check_settings(model, loss, max_epochs, batch_size, seed, metrics)
        self._core = Core(forward)
        self._box = Box(tricks, self._core)
        self._model = model
        self._optimizer = optimizer
        self._device = find_device(device)
        self._train = as_source(train, name="train", batch_size=batch_size, device=self._device)
        self._valid: Source | None = None
        if valid is not None:
            self._valid = as_source(valid, name="valid", batch_size=batch_size, device=self._device)
        self._kept = KeptGenerators(train, valid)
        self._loss = loss
        self._metrics = metrics
        self._max_epochs = max_epochs
        self._seed = seed
        self._seconds: list[float] = []

    @property
    def state(self) -> State:
        """What the run knows now. Raises `ConfigError` before the session is entered."""
        if not hasattr(self, "_state"):
            raise ConfigError("the session is not open yet; use it in a with statement")
        return self._state

    def __enter__(self) -> Self:
        if hasattr(self, "_state"):
            raise ConfigError("a session is one run and cannot be opened again; make a new Session")
        self._globals = GlobalState()
        put_optimizer_back = keep_groups(self._optimizer)
        try:
            self._open()
        except BaseException as error:
            self._explain(error)
            undo(self._model)
            put_optimizer_back()
            self._put_back()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._end(error)
        finally:
            self._put_back()

    def epochs(self) -> Iterator[int]:
        """The epochs; when the body of one ends, its tail runs: validate, `epoch_end`, history row."""
        state = self.state
        for epoch in range(self._max_epochs):
            self._start_epoch(epoch)
            started = time.perf_counter()
            yield epoch
            self._synchronize()
            self._seconds.append(time.perf_counter() - started)
            self._finish_epoch()
            if state.stop_reason:
                return

    def batches(self) -> Iterator[Batch]:
        """The training batches of this epoch, on the device, after the `batch` hooks."""
        state, streams, batch_hook = self.state, self.state.streams, self._batch
        for index, batch in enumerate(self._train.epoch(self._seed, state.epoch)):
            state.batch_index = index
            state.batch = batch
            streams.advance(index)
            if batch_hook is not None:
                self._guarded(batch_hook)
            yield state.batch

    def step(self, batch: Batch, loss: Tensor | None = None, outputs: Any = None) -> Tensor:
        """Train on one batch: loss, gradients, update. Returns the loss, on the device.

        With *loss*, computed by the caller, only gradients and update run; give *outputs* too for training metrics.
        Raises `ConfigError` when a trick acts on the loss that the caller computes.
        """
        state = self.state
        state.batch, state.outputs = batch, outputs
        try:
            if loss is None:
                loss = self._compute_loss(state)
            elif self._loss_is_tricked:
                raise ConfigError("a trick acts in compute_loss, which a loss handed to step() passes by")
            state.batch_loss = loss
            self._backward(state)
            if self._update(state):
                state.step += 1
        except Exception as error:
            self._explain(error)
            raise
        self._meter.add(state.outputs, state.batch.targets, loss, batch.size)
        return loss

    def result(self) -> Result:
        """What the run leaves behind so far."""
        state = self.state
        reason = state.stop_reason or f"max_epochs: all {self._max_epochs} epochs are done"
        return Result(self._model, state.history, dict(state.metrics), reason, self._record(), list(self._seconds))

    # -- the stages ----------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        before = {id(parameter) for parameter in self._model.parameters()}
        self._state = state = self._plan()
        self._box.init(state)
        state.optimizer = build_optimizer(self._optimizer, state, before)
        state.optimizer.zero_grad()
        self._compile()
        if self._fit_start is not None:
            self._fit_start(state)

    def _plan(self) -> State:
        self._model.to(self._device)
        sample = self._train.sample()
        check_finite("train", *sample)
        streams = Streams(self._seed, self._device)
        surgery = plan_surgery(self._model, sample, self._core.forward)
        found = default_metrics(surgery.tape.output, sample.targets)
        metrics = dict(found if self._metrics is None else self._metrics)
        check_metrics(metrics)
        check_loss("train", self._loss, surgery.tape.output, sample)
        if self._valid is not None:
            check_valid(self._model, self._loss, self._valid.sample(), self._core.forward)
        classes = isinstance(sample.targets, Tensor) and not sample.targets.is_floating_point()
        self._meter = Meter(metrics, classes)
        self._core.valid, self._core.meter = self._valid, Meter(metrics)
        modes: dict[str, str | None] = {}
        for side in ("train", "val") if self._valid is not None else ("train",):
            modes |= {f"{side}_{name}": MODES.get(name) for name in ("loss", *metrics)}
        return State(
            model=self._model,
            loss=self._loss,
            device=self._device,
            streams=streams,
            surgery=surgery,
            history=History(),
            max_epochs=self._max_epochs,
            batches_per_epoch=length(self._train),
            batch=sample,
            metric_modes=modes,
        )

    def _compile(self) -> None:
        calls = {hook: self._box.compiled(hook) for hook in HOOKS}
        self._fit_start, self._epoch_start = calls["fit_start"], calls["epoch_start"]
        self._batch, self._epoch_end = calls["batch"], calls["epoch_end"]
        self._compute_loss = _phase(calls, "compute_loss")
        self._backward, self._update = _phase(calls, "backward"), _phase(calls, "update")
        self._validate = _phase(calls, "validate")
        self._loss_is_tricked = any(name != "core" for name, _ in self._box.each("compute_loss"))

    def _start_epoch(self, epoch: int) -> None:
        state = self.state
        state.epoch = epoch
        state.streams.start_epoch(epoch)
        self._meter.reset()
        self._model.train()
        if self._epoch_start is not None:
            self._guarded(self._epoch_start)

    def _finish_epoch(self) -> None:
        state = self.state
        trained = {f"train_{name}": value for name, value in self._meter.result().items()}
        state.metrics = trained | self._guarded(self._validate)
        if not math.isfinite(trained.get("train_loss", 0.0)):
            reason = f"diverged: train_loss is {trained['train_loss']} in epoch {state.epoch}"
            warnings.warn(f"{reason}; training stops. A smaller learning rate usually helps", stacklevel=4)
            state.stop(reason)
        if self._epoch_end is not None:
            self._guarded(self._epoch_end)
        assert state.optimizer is not None
        rate = float(state.optimizer.param_groups[0]["lr"])
        state.history.rows.append({"epoch": state.epoch, "step": state.step, **state.metrics, "lr": rate})

    def _end(self, first: BaseException | None) -> None:
        """Fire `fit_end` for every trick, whatever another one raises; the first error of the run is the one raised."""
        errors = []
        for _, function in self._box.each("fit_end"):
            try:
                self._guarded(function)
            except BaseException as error:
                errors.append(error)
        forget_trained(self._model)
        if self.state.optimizer is not None:
            restore_scales(self.state.optimizer)
        if errors and first is None:
            raise errors[0]
        for later in errors:
            assert first is not None
            first.add_note(f"then fit_end failed too: {type(later).__name__}: {later}")

    def _guarded(self, function: Callable[[State], Any]) -> Any:
        try:
            return function(self._state)
        except Exception as error:
            self._explain(error)
            raise

    def _explain(self, error: BaseException) -> None:
        blamed = self._box.blame(error)
        if blamed is not None and hasattr(self, "_state"):
            error.add_note(f"raised in {blamed}, epoch {self._state.epoch}, step {self._state.step}")

    def _put_back(self) -> None:
        self._globals.put_back()
        self._kept.put_back()

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _record(self) -> dict[str, Any]:
        return {
            "tricks": self._box.record(),
            "seed": self._seed,
            "max_epochs": self._max_epochs,
            "device": str(self._device),
            "threads": torch.get_num_threads(),
            "versions": versions(),
        }


def _phase(calls: Mapping[str, Callable[[State], Any] | None], hook: str) -> Callable[[State], Any]:
    function = calls[hook]
    assert function is not None, f"the core answers {hook}"
    return function
