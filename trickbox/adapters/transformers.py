"""Tricks in the Trainer of transformers: one import and one argument, and model and loop stay as they are."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

from trickbox.adapters import Driven, Wraps, checked, first_batch, missing, split
from trickbox.errors import ConfigError
from trickbox.streams import forked

if find_spec("transformers") is None or find_spec("accelerate") is None:
    raise ImportError(missing("transformers"))
import transformers


class TricksMixin:
    """Makes a Trainer of your own one that trains with tricks: ``class MyTrainer(TricksMixin, YourTrainer)``.

    tricks   tricks, names or JSON forms; see `trickbox.fit`

    The model is edited when ``train`` begins, and keeps its tricks; `trickbox.undo` takes them off. Metrics have the
    names that the Trainer gives them, as in ``EarlyStopping("eval_loss")``; tricks look at them after every evaluation;
    where nothing is evaluated, an epoch ends without any. Schedules count updates, and multiply with the Trainer's own,
    which ``lr_scheduler_type="constant"`` leaves out. What tricks draw comes from ``args.seed``. `run` is the run of
    the last ``train``, with its ``run.state.history``.

    Raises `ConfigError`, `DataError` or `NoEffectError` before training, and for a watched metric that is not there,
    after the first evaluation. Refused are ``model_init`` and ``auto_find_batch_size``, which make the model or the
    loop anew, ``resume_from_checkpoint``, several GPUs in one process, FSDP and DeepSpeed, and
    ``load_best_model_at_end`` together with a trick that gives the model its last weights. Cost: one dry forward at the
    beginning, and some microseconds a batch.
    """

    def __init__(self, *args: Any, tricks: Any = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tricks = checked(tricks)
        self.run: Driven | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        train: Callable[..., Any] = super().train  # type: ignore[misc]
        if not self.tricks:
            return train(*args, **kwargs)
        _refuse(self, *args, **kwargs)
        seams = _Seams(self)
        self.run = seams.run
        try:
            with seams.run:
                return train(*args, **kwargs)
        finally:
            seams.wraps.put_back()


class Trainer(TricksMixin, transformers.Trainer):
    """The Trainer of transformers with an argument more, ``tricks=[...]``; see `TricksMixin`."""


class _Seams:
    """One run of a trainer, and the methods of the trainer that reach it."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.args, self.wraps = trainer, trainer.args, Wraps()
        self.evaluates = str(getattr(self.args.eval_strategy, "value", self.args.eval_strategy)) != "no"
        self.run = Driven(trainer.model, trainer.tricks, seed=self.args.seed, forward=self._forward)
        self.run.labels = tuple(trainer.label_names)
        with forked():
            loader = trainer.get_train_dataloader()
        epochs, steps_per_epoch, *_, steps = trainer.set_initial_training_values(self.args, loader)
        self.run._open(
            split(trainer._prepare_inputs(first_batch(loader)), self.run.labels),
            max_epochs=epochs if epochs < sys.maxsize else None,
            batches_per_epoch=steps_per_epoch,
            max_steps=steps,
            metric_modes=None if self.evaluates else {},
        )
        if self.args.load_best_model_at_end and (acting := self.run._box.acting("fit_end")):
            self.run._take_back()
            raise ConfigError(f"{acting[0]} and load_best_model_at_end both give the model its last weights; drop one")
        self.wraps.add(trainer, "create_optimizer", self._watch)
        self.wraps.add(trainer, "compute_loss", self._compute_loss)
        self.wraps.add(trainer.accelerator, "backward", self._backward)
        self.wraps.add(trainer, "evaluate", self._evaluate)
        self.wraps.add(trainer.callback_handler, "on_epoch_end", self._end_epoch)

    def _forward(self, model: Any, inputs: Any) -> Any:
        with Wraps() as wraps:
            wraps.silence(self.trainer, "log")
            return self.trainer.compute_loss(model, dict(inputs), return_outputs=True)[1]

    def _watch(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        original(*args, **kwargs)
        optimizer, own = self.trainer.optimizer, self.trainer.lr_scheduler is not None
        groups = len(optimizer.param_groups)
        self.run.watch(optimizer)
        if own and not self.trainer._created_lr_scheduler and len(optimizer.param_groups) != groups:
            raise ConfigError(
                "a trick gives some parameters a rate of their own, in a new group, which the scheduler that was "
                "passed does not know; leave the scheduler to the Trainer"
            )
        return optimizer

    def _compute_loss(self, original: Callable[..., Any], model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not model.training:
            return original(model, inputs, *args, **kwargs)
        rest: tuple[Any, ...] | None = None

        def compute(batch: Any) -> Any:
            nonlocal rest
            found = original(model, batch, *args, **kwargs)
            if not isinstance(found, tuple):
                return found
            loss, *outputs = found
            rest = tuple(outputs)
            return loss

        loss = self.run.loss_of(inputs, compute)
        return loss if rest is None else (loss, *rest)

    def _backward(self, original: Callable[..., Any], loss: Any, **kwargs: Any) -> None:
        self.run.backward(loss, partial(original, **kwargs))

    def _evaluate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        found: dict[str, Any] = {}

        def compute() -> dict[str, float]:
            with Wraps() as wraps:  # of several data sets, each is an evaluation inside this one
                wraps.add(self.trainer, "evaluate", lambda _, *args, **kwargs: original(*args, **kwargs))
                found.update(original(*args, **kwargs))
            return {k: v for k, v in found.items() if k.startswith("eval_") and isinstance(v, (int, float))}

        metrics = self.run.validation(compute)
        of_the_loop = not args and kwargs.keys() <= {"ignore_keys"}
        if of_the_loop and self.evaluates and self.run.state.step:
            self._tell(metrics)
        self.run._measured = {}
        return found | metrics

    def _end_epoch(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        control = original(*args, **kwargs)
        if not self.evaluates:
            self._tell({})
        return control

    def _tell(self, metrics: dict[str, Any]) -> None:
        if self.run.epoch_end(**metrics):
            self.trainer.control.should_training_stop = True


def _refuse(trainer: Any, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> None:
    """Raise `ConfigError` for a training that tricks cannot follow."""
    reasons = {
        "model_init makes the model anew in train(), after the tricks; pass model=": trainer.model_init is not None,
        "auto_find_batch_size begins the loop anew; set the batch size": trainer.args.auto_find_batch_size,
        "resume_from_checkpoint goes on after steps of which tricks know nothing; train from the beginning": (
            resume_from_checkpoint
        ),
        "DataParallel copies the model for each GPU in every step; start one process a GPU, with torchrun": (
            trainer.args.n_gpu > 1
        ),
        "FSDP and DeepSpeed put parameters and steps of their own in the place of torch's; use DDP, or trickbox.fit": (
            trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ConfigError(reason)
