"""One run, step by step: a `Run` that owns data, optimizer, device and the global generators. `fit` stands on it."""

from __future__ import annotations

import itertools
import math
import operator
import platform
import time
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from types import TracebackType
from typing import Any, Self

import torch
from attrs import frozen
from torch import Tensor, nn

from trickbox import ranks
from trickbox.checks import (
    check_loss,
    check_model,
    check_settings,
    check_smallest,
    check_valid,
    check_wrapped,
    is_sharded,
    plan_surgery,
)
from trickbox.data import KeptGenerators, Source, as_batch, as_source, check_finite, find_device, length
from trickbox.errors import ConfigError
from trickbox.history import History
from trickbox.metrics import MODES, Forward, Meter, check_metrics, default_metrics, loss_of_model
from trickbox.nest import call
from trickbox.optimization import OptimizerFactory, build_optimizer, keep_groups
from trickbox.phases import Core
from trickbox.run import Run, Wrap
from trickbox.state import Batch, Loss
from trickbox.steps import drop_gradients, evaluates_closure
from trickbox.streams import GlobalState, derive, seed_global


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


class Session(Run):
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
        loss: Loss | None = None,
        optimizer: OptimizerFactory | torch.optim.Optimizer,
        tricks: Any = (),
        max_epochs: int | None = None,
        max_steps: int | None = None,
        batch_size: int = 32,
        last_batch: str = "keep",
        metrics: Mapping[str, Any] | None = None,
        seed: int = 0,
        device: str | torch.device = "auto",
        forward: Forward = call,
        wrap: Wrap | None = None,
    ) -> None:
        check_model(model)
        check_settings(loss, max_epochs, max_steps, batch_size, last_batch, seed, metrics)
        ranks.check_joined()
        self._core = Core(forward)
        super().__init__(model, tricks, seed=seed, forward=forward, wrap=wrap, core=self._core)
        self._given_optimizer = optimizer
        self._device = find_device(device)
        self._train = as_source(train, name="train", batch_size=batch_size, device=self._device, last=last_batch)
        self._valid: Source | None = None
        if valid is not None:
            self._valid = as_source(valid, name="valid", batch_size=batch_size, device=self._device)
        self._kept = KeptGenerators(train, valid)
        self._loss = loss_of_model if loss is None else loss
        self._metrics = metrics
        self._max_epochs, self._max_steps = max_epochs, max_steps
        self._seconds: list[float] = []
        self._broken_off = 0
        self._handed = Batch(None, None, 0)
        self._own_batches = 0
        self._window: list[tuple[Batch, int]] = []

    def __enter__(self) -> Self:
        if hasattr(self, "_state"):
            raise ConfigError("a session is one run and cannot be opened again; make a new Session")
        before = GlobalState()
        put_optimizer_back = keep_groups(self._given_optimizer)
        try:
            self._open()
        except BaseException as error:
            self._explain(error)
            self._unfollow()
            self._take_back()
            put_optimizer_back()
            before.put_back()
            self._kept.put_back()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._end(error)
        finally:
            self._globals.put_back()
            self._kept.put_back()

    def epochs(self) -> Iterator[int]:
        """The epochs; when the body of one ends, its tail runs: validate, `epoch_end`, history row."""
        state = self.state
        for epoch in itertools.count() if self._max_epochs is None else range(self._max_epochs):
            self._start_epoch(epoch)
            started = time.perf_counter()
            yield epoch
            self._flush()
            self._synchronize()
            self._seconds.append(time.perf_counter() - started)
            self._finish_epoch()
            if state.stop_reason or self._enough():
                return

    def batches(self) -> Iterator[Batch]:
        """The training batches of this epoch, on the device, after the `batch` hooks."""
        state, batch_hook = self.state, self._calls["batch"]
        complete = False
        try:
            for index, batch in enumerate(self._train.epoch(self._seed, state.epoch)):
                self._move(state.epoch, index)
                state.batch = batch
                if batch_hook is not None:
                    self._guarded(batch_hook)
                self._handed = state.batch
                yield state.batch
                if self._enough():
                    break
            complete = True
        finally:
            self._broken_off += not complete

    def step(self, batch: Any, loss: Tensor | None = None, outputs: Any = None) -> Tensor:
        """Train on one batch: loss, gradients, update. Returns the loss, on the device.

        A *batch* of your own, ``(inputs, targets)``, goes through the `batch` hooks first. With *loss*, computed by
        the caller and not scaled, only gradients and update run; give *outputs* too for training metrics.
        Raises `ConfigError` when a trick acts on the loss that the caller computes.
        """
        state = self._state
        if batch is not self._handed:
            self._take_over(batch, loss)
        state.outputs = outputs
        try:
            if loss is None:
                loss = self._compute_loss(state)
            elif self._loss_is_tricked:
                raise ConfigError("a trick acts in compute_loss, which a loss handed to step() passes by")
            else:
                state.again = None  # only the caller could compute it once more
            state.batch_loss = loss
            if state.batches_per_update > 1:
                self._accumulate()
            else:
                self._backward(state)
                self._update_once()
        except Exception as error:
            self._steps.put_back()
            self._explain(error)
            raise
        self._meter.add(state.outputs, state.batch.targets, loss, state.batch.size)
        return loss

    def result(self) -> Result:
        """What the run leaves behind so far."""
        state = self.state
        reason = state.stop_reason or self._ending()
        return Result(self._model, state.history, dict(state.metrics), reason, self._record(), list(self._seconds))

    # -- the stages ----------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        self._model.to(self._device)
        sample = self._train.sample()
        check_finite("train", *sample)
        surgery = plan_surgery(self._model, sample, self._forward, "train")
        metrics = self._make_meters(surgery.tape.output, sample)
        check_loss("train", self._loss, surgery.tape.output, sample)
        if self._valid is not None:
            check_valid(self._model, self._loss, self._valid.sample(), self._forward)
        modes: dict[str, str | None] = {}
        for side in ("train", "val") if self._valid is not None else ("train",):
            modes |= {f"{side}_{name}": MODES.get(name) for name in ("loss", *metrics)}
        smallest = self._train.smallest()
        self._begin(
            sample,
            surgery=surgery,
            loss=self._loss,
            max_epochs=self._max_epochs,
            max_steps=self._max_steps,
            batches_per_epoch=length(self._train),
            smallest_batch=None if smallest is None else smallest.size,
            metric_modes=modes,
        )
        if surgery.trained is not None:
            check_smallest(self._model, smallest, self._forward)
        check_wrapped(self._wrapped)
        self._core.model, self._core.sharded = self._wrapped, is_sharded(self._wrapped)
        state = self._state
        state.optimizer = build_optimizer(self._given_optimizer, state, self._before)
        drop_gradients(state.optimizer)
        state.again = self._passes = self._replay
        self._core.closure = evaluates_closure(state.optimizer)
        self._steps.follow(state.optimizer)
        self._globals = GlobalState()
        state.streams.own_globals()
        self._compute_loss, self._backward = self._answered("compute_loss"), self._answered("backward")
        self._validate, self._answered_update = self._answered("validate"), self._answered("update")
        self._loss_is_tricked = bool(self._box.acting("compute_loss"))
        self._fire("fit_start")

    def _make_meters(self, output: Any, sample: Batch) -> dict[str, Any]:
        metrics = dict(default_metrics(output, sample.targets) if self._metrics is None else self._metrics)
        check_metrics(metrics)
        classes = isinstance(sample.targets, Tensor) and not sample.targets.is_floating_point()
        self._meter = Meter(metrics, classes, together=True)
        self._core.valid, self._core.meter = self._valid, Meter(metrics, together=True)
        return metrics

    def _answered(self, phase: str) -> Any:
        function = self._calls[phase]
        assert function is not None, f"the core answers {phase}"
        return function

    def _start_epoch(self, epoch: int) -> None:
        self._move(epoch, 0)
        # A loader draws its order from them, the same on all ranks.
        seed_global(derive(self._seed, "order", epoch))
        self._meter.reset()
        self._own_batches = 0
        self._model.train()
        self._fire("epoch_start")

    def _take_over(self, batch: Any, loss: Tensor | None) -> None:
        """Make a batch that `batches` has not given the one of the run.

        Where the caller has the loss already, no trick can act on it; the pair that the last batch was unpacked to has
        been acted on.
        """
        state, handed = self.state, self._handed
        if isinstance(batch, tuple) and len(batch) == 2 and all(map(operator.is_, batch, handed)):
            state.batch = handed
            return
        self._move(state.epoch, self._own_batches)
        self._own_batches += 1
        state.batch = batch if isinstance(batch, Batch) else as_batch(batch, "step", self._device)
        if loss is None:
            self._fire("batch")

    def _accumulate(self) -> None:
        """Add the gradients of one of several batches that share an update, and make it with the last of them."""
        state = self._state
        if not self._window:
            self._core.window = state.batches_per_update * state.batch.size
        self._window.append((state.batch, state.batch_index))
        self._backward(state)
        if len(self._window) == state.batches_per_update:
            self._weigh()
            self._update_once()

    def _update_once(self) -> None:
        """Fire `update` for the batches since the last one."""
        self._steps.ours = True
        try:
            self._answered_update(self._state)
        finally:
            self._steps.ours = False
            self._state.again = self._passes
            if self._window:
                self._window.clear()

    def _weigh(self) -> None:
        """Where an update got other samples than expected, such as the last of an epoch, make its gradients a mean."""
        samples = sum(batch.size for batch, _ in self._window)
        if samples != self._core.window:
            gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, self._core.window / samples)

    def _flush(self) -> None:
        """Make the update that the last batches of an epoch wait for."""
        if self._window:
            self._weigh()
            self._guarded(lambda _: self._update_once())

    def _replay(self) -> Tensor:
        state, batch, outputs = self._state, self._state.batch, self._state.outputs
        assert state.optimizer is not None
        drop_gradients(state.optimizer)
        for one, index in list(self._window) or [(batch, state.batch_index)]:
            self._move(state.epoch, index)
            state.batch = one
            state.batch_loss = self._compute_loss(state)
            self._backward(state)
        if self._window:
            self._weigh()
        state.batch, state.outputs = batch, outputs
        return state.batch_loss.detach()  # type: ignore[no-any-return]

    def _finish_epoch(self) -> None:
        state = self._state
        trained = {f"train_{name}": value for name, value in self._meter.result().items()}
        state.evaluated = None
        state.metrics = trained | self._guarded(self._validate)
        if not math.isfinite(trained.get("train_loss", 0.0)):
            reason = f"diverged: train_loss is {trained['train_loss']} in epoch {state.epoch}"
            if ranks.rank() == 0:
                warnings.warn(f"{reason}; training stops. A smaller learning rate usually helps", stacklevel=4)
            state.stop(reason)
        self._fire("epoch_end")
        self._write_row()

    def _enough(self) -> bool:
        return self._max_steps is not None and self._state.step >= self._max_steps

    def _ending(self) -> str:
        """Why a run ended that no trick has stopped: its length is done, or the loop was left early."""
        state, done = self._state, len(self._state.history)
        if self._enough():
            return f"max_steps: all {self._max_steps} steps are done"
        if done == self._max_epochs and not self._broken_off:
            return f"max_epochs: all {self._max_epochs} epochs are done"
        planned = f" of {self._max_epochs}" if self._max_epochs is not None else ""
        reason = (
            f"the loop ended early: {done}{planned} epochs, {self._broken_off} of them broken off, {state.step} steps"
        )
        try:
            return f"{reason} of {state.total_steps}; schedules came to {state.progress:.0%} of their way"
        except ConfigError:  # nobody knows how long it was to be
            return reason

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
            **({} if self._max_steps is None else {"max_steps": self._max_steps}),
            **({"ranks": ranks.world()} if ranks.world() > 1 else {}),
        }
