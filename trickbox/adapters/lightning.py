"""Tricks in Lightning's Trainer: one callback, and the LightningModule stays as it is."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from typing import Any

from trickbox.adapters import Driven, Wraps, checked, first_batch, missing, split, unchanged
from trickbox.errors import ConfigError, DataError
from trickbox.nest import call, shapes
from trickbox.streams import forked
from trickbox.surgery import Surgery, evaluating

_NAMES = ("lightning.pytorch", "pytorch_lightning")
_packages = [n for n in _NAMES if sys.modules.get(n)] or [n for n in _NAMES if find_spec(n.partition(".")[0])][:1]
if not _packages:
    raise ImportError(missing("lightning"))
# Lightning has two names, and under each takes callbacks of its own class only.
_Callback: Any = type("Callback", tuple(importlib.import_module(name).Callback for name in _packages), {})


class Tricks(_Callback):
    """A callback that trains with *tricks*: ``Trainer(callbacks=[Tricks([Dropout(0.1), EarlyStopping("val_loss")])])``.

    inputs   one batch as ``forward`` takes it, to plan with; by default the first one of the training data
    seed     of everything that tricks draw; by default torch's own, ``torch.initial_seed()``
    steps    the updates of an optimizer in the whole fit, where Lightning does not know it: in manual optimization

    The module is edited when ``fit`` begins, after its own ``setup``, and keeps its tricks; `trickbox.undo` takes them
    off. Metrics have the names that the module logs; tricks look at them once an epoch, and where validation has
    another rhythm, after each validation. All optimizers are followed. `run` is the run of the last fit, with its
    ``run.state.history``.

    Raises `ConfigError`, `DataError` or `NoEffectError` before training; at the end of the first epoch where a trick
    watches a metric that nobody logs. Refused are layers built in ``configure_model``, sharded strategies and spawned
    processes, ``dataloader_iter``, a fit that goes on from a checkpoint, and tricks on the loss in manual optimization.
    Cost: two dry forwards at the beginning, two more where a trick makes targets soft, and some microseconds a batch.
    """

    def __init__(self, tricks: Any, inputs: Any = None, seed: int | None = None, steps: int | None = None) -> None:
        super().__init__()
        self._tricks, self._inputs, self._seed, self._steps = checked(tricks), inputs, seed, steps
        self._wraps = Wraps()
        self.run: Driven | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            self.run, self._index = None, -1
            self._wraps.add(pl_module, "setup", partial(self._set_up, trainer, pl_module))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self.run is None:
            return
        if trainer.global_step:
            raise ConfigError(
                f"this fit goes on after {trainer.global_step} steps of an earlier one, of which tricks know nothing; "
                "train from the beginning with a new Trainer"
            )
        groups = [len(optimizer.param_groups) for optimizer in trainer.optimizers]
        self.run.watch(*trainer.optimizers)
        if trainer.lr_scheduler_configs and groups != [len(o.param_groups) for o in trainer.optimizers]:
            raise ConfigError(
                "a trick gives some parameters a rate of their own, in a new group, which the lr_scheduler of the "
                "module does not know; use a schedule trick instead of it"
            )

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._close(exception)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._close()

    def _close(self, error: BaseException | None = None) -> None:
        self._wraps.put_back()
        if self.run is not None:
            self.run.__exit__(None if error is None else type(error), error, None)

    # -- the beginning -------------------------------------------------------------------------------------------------

    def _set_up(self, trainer: Any, module: Any, original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        _refuse(trainer, module)
        trainer.fit_loop.setup_data()
        if trainer.train_dataloader is None:  # nothing will be trained
            return
        module.to(trainer.strategy.root_device)
        if trainer.precision in ("bf16-true", "16-true", "64-true"):
            trainer.precision_plugin.convert_module(module)
        run = Driven(module, self._tricks, seed=self._seed)
        if not module.automatic_optimization and (acting := run._box.acting("compute_loss")):
            raise ConfigError(f"{acting[0]} acts on the loss, which manual optimization keeps to itself")
        plan, length = self._plan(trainer, module), self._length(trainer, module)
        try:
            run._open(**plan, **length)
        except ConfigError as error:
            if length["max_steps"] is None:
                error.add_note("Lightning does not know how many updates there will be; write: Tricks(..., steps=)")
            raise
        self.run = run
        self._wraps.add(module, "training_step", partial(self._train, run, trainer, module))
        self._wraps.add(module, "backward", partial(_backward, run))
        self._wraps.add(module, "on_train_epoch_end", partial(_end_epoch, run, trainer))
        self._wraps.add(trainer.fit_loop.epoch_loop.val_loop, "run", partial(_validate, run, trainer))

    def _plan(self, trainer: Any, module: Any) -> dict[str, Any]:
        """A sample and its tape: that of `forward` where the training step runs the same layers, else of the step."""
        if self._inputs is not None:
            return {"sample": split((self._inputs, None))}
        with forked():
            batch = trainer.precision_plugin.convert_input(first_batch(trainer.train_dataloader))
            batch = trainer.strategy.batch_to_device(module._on_before_batch_transfer(batch, dataloader_idx=0))
        sample, step = split(batch), _Step(trainer, module, batch)
        of_forward, of_step = _planned(module, sample.inputs, call), _planned(module, sample.inputs, step)
        if isinstance(of_step, Surgery):
            same = isinstance(of_forward, Surgery) and _layers(of_forward) == _layers(of_step)
            return {"sample": sample, "surgery": of_forward if same else of_step, "loss": step.loss}
        if isinstance(of_forward, Surgery):
            return {"sample": sample, "surgery": of_forward}
        raise DataError(
            f"neither forward nor training_step can take a batch of shape {shapes(batch)}; give Tricks(..., inputs=) "
            f"one batch as forward takes it. training_step: {of_step}. forward: {of_forward}"
        ) from of_step

    def _length(self, trainer: Any, module: Any) -> dict[str, Any]:
        """The length of the fit in updates and epochs, as far as it is known."""
        changing = any(hasattr(callback, "going_to_accumulate_grad_batches") for callback in trainer.callbacks)
        known = module.automatic_optimization and not changing
        steps, batches = trainer.estimated_stepping_batches, trainer.num_training_batches
        an_epoch = math.ceil(batches / trainer.accumulate_grad_batches) if known and batches < math.inf else None
        return {
            "max_steps": self._steps or (int(steps) if known and 0 < steps < math.inf else None),
            "max_epochs": trainer.max_epochs if trainer.max_epochs > 0 else None,
            "batches_per_epoch": an_epoch,
        }

    # -- the seams -----------------------------------------------------------------------------------------------------

    def _train(
        self, run: Driven, trainer: Any, module: Any, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        if not trainer.training:  # a validation step may call it
            return original(*args, **kwargs)
        batch, *others = args
        outputs: Any = None

        def compute(batch: Any) -> Any:
            nonlocal outputs
            outputs = original(batch, *others)
            return outputs["loss"] if isinstance(outputs, Mapping) else outputs

        run.repeats = module.automatic_optimization and trainer.accumulate_grad_batches == 1
        again, self._index = trainer.fit_loop.total_batch_idx == self._index, trainer.fit_loop.total_batch_idx
        with _quiet(trainer, module) if run.repeating else nullcontext():
            loss = run.loss_of(batch, compute, again)
        return {**outputs, "loss": loss} if isinstance(outputs, Mapping) else loss


class _Step:
    """The training step on one batch, as a forward and as a loss."""

    def __init__(self, trainer: Any, module: Any, batch: Any) -> None:
        self._trainer, self._module, self._batch = trainer, module, batch

    def __repr__(self) -> str:
        return f"{type(self._module).__name__}.training_step"

    def __call__(self, module: Any, inputs: Any) -> Any:
        return self._run(self._batch)

    def loss(self, outputs: Any, targets: Any) -> Any:
        """What the step makes of the pair with other targets; its outputs are always those of its batch."""
        inputs, _ = self._batch
        with evaluating(self._module):
            found = self._run(type(self._batch)([inputs, targets]))
        return found["loss"] if isinstance(found, Mapping) else found

    def _run(self, batch: Any) -> Any:
        step = self._module.training_step
        with _quiet(self._trainer, self._module):
            return step(*(batch, 0)[: len(inspect.signature(step).parameters)])


@contextmanager
def _quiet(trainer: Any, module: Any) -> Iterator[None]:
    """Let a training step log nothing and leave no trace on the module."""
    loggers, dummy = trainer.loggers, importlib.import_module(f"{_packages[0]}.loggers.logger").DummyLogger
    trainer.loggers = [dummy() for _ in loggers]
    try:
        with Wraps() as wraps:
            wraps.silence(module, "log", "log_dict", "print")
            with unchanged(module):
                yield
    finally:
        trainer.loggers = loggers


def _planned(module: Any, inputs: Any, forward: Any) -> Surgery | Exception:
    try:
        return Surgery.on(module, inputs, forward)
    except Exception as error:  # a module may refuse in any way
        return error


def _layers(surgery: Surgery) -> list[str]:
    """The layers with weights that a tape has run, in order."""
    parts = dict(surgery.model.named_modules())
    return [event.path for event in surgery.tape.modules() if parts[event.path]._parameters]


def _backward(run: Driven, original: Callable[..., Any], loss: Any, *args: Any, **kwargs: Any) -> None:
    run.backward(loss, lambda loss: original(loss, *args, **kwargs))


def _validate(run: Driven, trainer: Any, original: Callable[[], Any]) -> Any:
    if trainer.sanity_checking:
        return original()
    outputs = None

    def compute() -> dict[str, float]:
        nonlocal outputs
        outputs = original()
        return _metrics(trainer)

    run.validation(compute)
    if not _once_an_epoch(trainer):
        _tell(run, trainer)
    return outputs


def _end_epoch(run: Driven, trainer: Any, original: Callable[[], Any]) -> None:
    original()
    if _once_an_epoch(trainer):
        _tell(run, trainer)


def _tell(run: Driven, trainer: Any) -> None:
    if run.epoch_end(**_metrics(trainer) | run._measured):
        trainer.should_stop = True


def _metrics(trainer: Any) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _once_an_epoch(trainer: Any) -> bool:
    """Whether tricks look at the metrics at the end of each epoch, as Lightning's own EarlyStopping does."""
    regular = trainer.val_check_interval == 1.0 and trainer.check_val_every_n_epoch == 1
    return regular or not trainer.enable_validation


def _refuse(trainer: Any, module: Any) -> None:
    """Raise `ConfigError` for a fit that tricks cannot follow."""
    built_late = next(kind for kind in type(module).__mro__ if "configure_model" in vars(kind)).__module__
    strategy = type(trainer.strategy).__name__
    if getattr(module, "_compiler_ctx", None) is not None:
        raise ConfigError("the module is compiled already; compile after tricks, in on_fit_start: self.net.compile()")
    if built_late.partition(".")[0] not in ("lightning", "pytorch_lightning"):
        raise ConfigError("the module builds layers in configure_model, after tricks; build them in __init__ or setup")
    if any(word in strategy for word in ("FSDP", "DeepSpeed", "ModelParallel")):
        raise ConfigError(f"{strategy} shards the model before tricks can edit it; use strategy='ddp', or trickbox.fit")
    if any(kind.__name__ == "_MultiProcessingLauncher" for kind in type(trainer.strategy.launcher).__mro__):
        raise ConfigError("models of spawned or forked processes do not come back with tricks; use strategy='ddp'")
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise ConfigError("training_step takes dataloader_iter, so tricks see no batch; let it take batch, batch_idx")
