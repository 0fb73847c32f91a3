"""Stop when a metric has stopped improving, and keep the weights of the best epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from attrs import field
from attrs.validators import optional

from trickbox.authoring import (
    State,
    choice,
    flag,
    hookimpl,
    integer,
    interval,
    is_better,
    map_tensors,
    resolve_monitor,
    text,
    trick,
    worst,
)


def early_stop(
    values: Sequence[float],
    *,
    mode: str,
    patience: int,
    min_delta: float = 0.0,
    baseline: float | None = None,
    start_from_epoch: int = 0,
) -> tuple[int | None, bool]:
    """Return the best epoch so far and whether to stop: *values* are those of the metric so far, one an epoch.

    Keras' conventions: an improvement is better than the best by more than *min_delta*; *patience* epochs in a row
    without one stop the run, but never the first epoch; with a *baseline*, only an improvement that also beats it
    starts the count anew; epochs before *start_from_epoch* do not exist. NaN is no improvement. Cost: linear in the
    number of epochs.

    >>> early_stop([1.0, 0.5, 0.6, 0.7], mode="min", patience=2)
    (1, True)
    """
    best, best_epoch, wait = worst(mode), None, 0
    for epoch, value in enumerate(values[start_from_epoch:], start_from_epoch):
        wait += 1
        if is_better(value, best, mode, min_delta):
            best, best_epoch = value, epoch
            if baseline is None or is_better(value, baseline, mode, min_delta):
                wait = 0
        elif wait >= patience and epoch > 0:
            return best_epoch, True
    return best_epoch, False


@trick
class EarlyStopping:
    """Stop when `monitor` has not improved for `patience` epochs, and give back the weights of the best epoch.

    Settings and rule are those of Keras, see `early_stop`; without `mode` (``min`` or ``max``) the direction that the
    metric declares counts. The best weights, buffers included, and their metrics are restored at the end of every run,
    also of one that ended by itself or by an error. Epochs count from 0. Cost: a copy of the model on its device, made
    anew in epochs that improve. Raises `ConfigError` before training for a metric that the run does not record, or one
    of unknown direction. Source: Prechelt 1998.

    >>> EarlyStopping("val_accuracy", patience=10).restore_best_weights
    True
    """

    family: ClassVar = "stopping"
    after: ClassVar = ("averaging",)
    off: ClassVar = {"patience": 10**9, "restore_best_weights": False}
    tunes: ClassVar = ("patience",)

    monitor: str = field(default="val_loss", validator=text())
    patience: int = field(default=5, validator=integer(0))
    min_delta: float = field(default=0.0, validator=interval("[0, inf)"))
    mode: str | None = field(default=None, validator=optional(choice("min", "max")))
    baseline: float | None = field(default=None, validator=optional(interval("(-inf, inf)")))
    start_from_epoch: int = field(default=0, validator=integer(0))
    restore_best_weights: bool = field(default=True, validator=flag())

    values: list[float] = field(init=False, repr=False, factory=list)
    best_weights: dict[str, Any] | None = field(init=False, repr=False, default=None)
    best_metrics: dict[str, float] = field(init=False, repr=False, factory=dict)

    @hookimpl
    def init(self, state: State) -> None:
        """Check that the metric can be watched."""
        resolve_monitor("early_stopping", self.monitor, self.mode, state.metric_modes)
        if not self.restore_best_weights:
            state.decline("fit_end")

    @hookimpl
    def epoch_end(self, state: State) -> None:
        """Look at the metric: keep the weights when it is the best, stop when patience is over."""
        direction = resolve_monitor("early_stopping", self.monitor, self.mode, state.metric_modes)
        self.values.append(state.metrics[self.monitor])
        best_epoch, stop = early_stop(
            self.values,
            mode=direction,
            patience=self.patience,
            min_delta=self.min_delta,
            baseline=self.baseline,
            start_from_epoch=self.start_from_epoch,
        )
        if self.restore_best_weights and best_epoch == len(self.values) - 1:
            # A state dict holds references to the weights, which the next update changes.
            evaluated = state.evaluated or state.model.state_dict()
            self.best_weights = map_tensors(lambda tensor: tensor.clone(), evaluated)
            self.best_metrics = dict(state.metrics)
        if stop:
            best = "" if best_epoch is None else f" (best {self.values[best_epoch]:.4g} in epoch {best_epoch})"
            state.stop(f"early_stopping: {self.monitor} has not improved for {self.patience} epochs{best}")

    @hookimpl
    def fit_end(self, state: State) -> None:
        """Give the model the weights of the best epoch."""
        if self.best_weights is not None:
            state.model.load_state_dict(self.best_weights)
            state.metrics = dict(self.best_metrics)
