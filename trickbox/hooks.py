"""START HERE: the training loop, and the ten places where a trick can act.

    record the tape, then   init            once: edit the model and the loss; there is no optimizer yet
    build the optimizer     fit_start       once: parameter groups
    for epoch in epochs:
        model.train()       epoch_start     requires_grad, modes
        for batch in train:
                            batch           replace state.batch: augmentation, mixing
            loss =          compute_loss    phase: forward and loss
                            backward        phase: gradients
            step +=         update          phase: one optimizer update; False when none was made
        metrics +=          validate        phase: the metrics of the validation data
                            epoch_end       metrics known; state.stop(reason)
        history row
    finally:                fit_end         always, also after an error or Ctrl-C

*Moments* (init, fit_start, epoch_start, batch, epoch_end, fit_end) tell every trick in turn. *Phases* (compute_loss,
backward, update, validate) do the work: the first implementation that answers wins, and the core's own is the last
one asked. A trick wraps a phase with a generator (``hookimpl(wrapper=True)``), replaces it by answering, or declines
with ``None``.

The functions below are specifications only. They take the whole `State`, so that a new field never breaks a trick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pluggy

if TYPE_CHECKING:
    from torch import Tensor

    from trickbox.state import State

hookspec = pluggy.HookspecMarker("trickbox")
hookimpl = pluggy.HookimplMarker("trickbox")


class Hooks:
    """The specifications of the ten hooks."""

    @hookspec
    def init(self, state: State) -> None:
        """Moment, once: the model is on its device, the tape is recorded, there is no optimizer yet.

        May write: the model (through `state.surgery`), `state.loss`, `state.scale`, `state.options`.
        """

    @hookspec
    def fit_start(self, state: State) -> None:
        """Moment, once: the optimizer is built and no batch has been seen.

        May write: parameter groups of `state.optimizer`.
        """

    @hookspec
    def epoch_start(self, state: State) -> None:
        """Moment, each epoch, after ``model.train()``.

        May write: `requires_grad` and the modes of modules.
        """

    @hookspec
    def batch(self, state: State) -> None:
        """Moment, each training batch, on the device.

        May write: `state.batch`, to a new `Batch`; the tensors of the old one belong to the caller.
        """

    @hookspec(firstresult=True)
    def compute_loss(self, state: State) -> Tensor | None:
        """Phase: run the model on `state.batch`, set `state.outputs` and return the loss, a scalar.

        May write: `state.batch` around the call, and the result.
        """

    @hookspec(firstresult=True)
    def backward(self, state: State) -> bool | None:
        """Phase: add the gradients of `state.batch_loss` to `.grad`; answer True.

        May write: `.grad` of any parameter.
        """

    @hookspec(firstresult=True)
    def update(self, state: State) -> bool | None:
        """Phase: one update of the optimizer; True when it was made, False where it was not.

        May write: gradients before the step, parameters after it; may ask for `state.replay()`.
        """

    @hookspec(firstresult=True)
    def validate(self, state: State) -> dict[str, float] | None:
        """Phase, after each epoch: the metrics of the validation data, named ``val_...``; empty without such data.

        May write: weights for the duration of the call, and the metrics.
        """

    @hookspec
    def epoch_end(self, state: State) -> None:
        """Moment, each epoch: `state.metrics` holds the metrics of the epoch, the history row is not yet written.

        May write: `state.metrics`; may call ``state.stop(reason)``.
        """

    @hookspec
    def fit_end(self, state: State) -> None:
        """Moment, once and always, also after an error or Ctrl-C.

        May write: the final weights, and `state.metrics` with the metrics that belong to them.
        """


PHASES: Final = ("compute_loss", "backward", "update", "validate")
MOMENTS: Final = ("init", "fit_start", "epoch_start", "batch", "epoch_end", "fit_end")
HOOKS: Final = (
    "init",
    "fit_start",
    "epoch_start",
    "batch",
    "compute_loss",
    "backward",
    "update",
    "validate",
    "epoch_end",
    "fit_end",
)
