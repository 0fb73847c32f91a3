"""Learning-rate schedules, each a pure function of the progress of the run that gives a factor of the base rate.

Factors of several schedules multiply, whatever their order: ``[WarmUp(), CosineAnnealing()]`` warms up into a cosine.
Past the end of a run the factors of schedules that know its length keep their last value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar

from attrs import field
from attrs.validators import optional

from trickbox.authoring import (
    State,
    choice,
    hookimpl,
    integer,
    interval,
    is_better,
    resolve_monitor,
    text,
    trick,
    worst,
)


def step_decay(epoch: int, epochs: int, factor: float) -> float:
    """Return *factor* to the number of cuts, one after every *epochs* epochs.

    >>> [step_decay(epoch, epochs=2, factor=0.5) for epoch in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """
    return float(factor ** (epoch // epochs))


def exponential_decay(epoch: int, factor: float) -> float:
    """Return *factor* to the power of *epoch*.

    >>> exponential_decay(2, factor=0.5)
    0.25
    """
    return float(factor**epoch)


def cosine(start: float, end: float, progress: float) -> float:
    """Go from *start* to *end* along half a cosine while *progress* goes from 0 to 1; it stays there beyond.

    >>> cosine(1.0, 0.0, 0.0), cosine(1.0, 0.0, 0.5), cosine(1.0, 0.0, 2.0)
    (1.0, 0.5, 0.0)
    """
    return end + (start - end) / 2 * (1 + math.cos(math.pi * min(progress, 1.0)))


def one_cycle(step: int, total_steps: int, *, pct_start: float, start: float, peak: float, end: float) -> float:
    """Go from *start* to *peak* in the first *pct_start* of the run, then to *end*, both along half a cosine.

    The peak is reached in update ``pct_start * total_steps - 1``, the end in the last one.

    >>> [round(one_cycle(step, 10, pct_start=0.3, start=0.0, peak=1.0, end=0.0), 2) for step in (0, 1, 2, 9)]
    [0.0, 0.5, 1.0, 0.0]
    """
    turn = pct_start * total_steps - 1
    if step <= turn and turn > 0:
        return cosine(start, peak, step / turn)
    return cosine(peak, end, (step - turn) / (total_steps - 1 - turn))


def warm_up(step: int, steps: int, start_factor: float) -> float:
    """Rise in a straight line from *start_factor* to 1 over *steps* updates; it stays there.

    >>> [warm_up(step, steps=4, start_factor=0.5) for step in (0, 2, 4, 9)]
    [0.5, 0.75, 1.0, 1.0]
    """
    return 1.0 if step >= steps else start_factor + (1 - start_factor) * step / steps


def plateau(
    values: Iterable[float],
    *,
    mode: str,
    factor: float,
    patience: int,
    threshold: float = 0.0,
    cooldown: int = 0,
    min_factor: float = 0.0,
) -> float:
    """Return the product of the cuts that a metric has earned: *values* are its values so far, one an epoch.

    A value is bad unless it is better than the best by the share *threshold* of the best. As in torch, that rule is the
    wrong way around for negative values: there a value up to that share worse still counts as better. More than
    *patience* bad values in a row are a cut, and the *cooldown* values after a cut are never bad. NaN is bad. Cost:
    linear in the number of epochs.

    >>> plateau([1.0, 1.0, 1.0], mode="min", factor=0.5, patience=1)
    0.5
    """
    best, bad, cooling, result = worst(mode), 0, 0, 1.0
    share = 1 - threshold if mode == "min" else 1 + threshold
    for value in values:
        if is_better(value, best * share, mode):
            best, bad = value, 0
        else:
            bad += 1
        if cooling > 0:
            cooling, bad = cooling - 1, 0
        if bad > patience:
            result, cooling, bad = max(result * factor, min_factor), cooldown, 0
    return result


@trick
class StepDecay:
    """Multiply the learning rate by `factor` after every `epochs` epochs.

    The same as `torch.optim.lr_scheduler.StepLR` stepped once an epoch. Cost: none measurable.

    >>> StepDecay(epochs=30, factor=0.1)
    StepDecay(epochs=30, factor=0.1)
    """

    family: ClassVar = "schedule"
    off: ClassVar = {"factor": 1.0}
    tunes: ClassVar = ("epochs", "factor")

    epochs: int = field(default=5, validator=integer(1))
    factor: float = field(default=0.7, validator=interval("(0, 1]"))

    @hookimpl
    def init(self, state: State) -> None:
        """Scale the learning rate."""
        state.scale("lr", lambda now: step_decay(now.epoch, self.epochs, self.factor))


@trick
class ExponentialDecay:
    """Multiply the learning rate by `factor` after every epoch.

    The same as `torch.optim.lr_scheduler.ExponentialLR` stepped once an epoch. Cost: none measurable.

    >>> ExponentialDecay(0.9)
    ExponentialDecay(factor=0.9)
    """

    family: ClassVar = "schedule"
    off: ClassVar = {"factor": 1.0}
    tunes: ClassVar = ("factor",)

    factor: float = field(default=0.95, validator=interval("(0, 1]"))

    @hookimpl
    def init(self, state: State) -> None:
        """Scale the learning rate."""
        state.scale("lr", lambda now: exponential_decay(now.epoch, self.factor))


@trick
class CosineAnnealing:
    """Let the learning rate fall to the share `floor` of itself along half a cosine over the whole run.

    The same as `torch.optim.lr_scheduler.CosineAnnealingLR` stepped every update. Cost: none measurable.
    Raises `ConfigError` when the training data does not tell its length. Source: Loshchilov and Hutter 2017.

    >>> CosineAnnealing(floor=0.01)
    CosineAnnealing(floor=0.01)
    """

    family: ClassVar = "schedule"
    off: ClassVar = {"floor": 1.0}
    tunes: ClassVar = ("floor",)

    floor: float = field(default=0.0, validator=interval("[0, 1]"))

    @hookimpl
    def init(self, state: State) -> None:
        """Scale the learning rate."""
        state.scale("lr", lambda now: cosine(1.0, self.floor, now.step / now.total_steps))


@trick
class OneCycle:
    """Raise the learning rate to the optimizer's own and let it fall to nearly nothing; momentum the other way around.

    The run starts at ``1 / div_factor`` of the base rate, reaches it after the share `pct_start` of all updates and
    ends at ``1 / (div_factor * final_div_factor)``. Momentum (of Adam: the first beta) falls to the share `momentum` of
    itself at the peak and comes back; 1 leaves it alone. The same as `torch.optim.lr_scheduler.OneCycleLR` for an
    optimizer built with its max_lr and max_momentum. Cost: none measurable. Raises `ConfigError` when the training data
    does not tell its length. Source: Smith and Topin 2017.

    >>> OneCycle().pct_start
    0.3
    """

    family: ClassVar = "schedule"
    off: ClassVar = {"div_factor": 1.0, "final_div_factor": 1.0, "momentum": 1.0}
    tunes: ClassVar = ("pct_start", "div_factor")

    pct_start: float = field(default=0.3, validator=interval("[0, 1)"))
    div_factor: float = field(default=25.0, validator=interval("[1, inf)"))
    final_div_factor: float = field(default=1e4, validator=interval("[1, inf)"))
    momentum: float = field(default=0.85 / 0.95, validator=interval("(0, 1]"))

    @hookimpl
    def init(self, state: State) -> None:
        """Scale learning rate and momentum."""
        start, end = 1 / self.div_factor, 1 / (self.div_factor * self.final_div_factor)
        state.scale("lr", lambda now: self._between(now, start, 1.0, end))
        if self.momentum < 1:
            state.scale("momentum", lambda now: self._between(now, 1.0, self.momentum, 1.0))

    def _between(self, now: State, start: float, peak: float, end: float) -> float:
        return one_cycle(now.step, now.total_steps, pct_start=self.pct_start, start=start, peak=peak, end=end)


@trick
class WarmUp:
    """Begin with the share `start_factor` of the learning rate and rise in a straight line over `steps` updates.

    The same as `torch.optim.lr_scheduler.LinearLR` stepped every update, and it multiplies with any other schedule.
    Cost: none measurable. Source: Goyal et al. 2017.

    >>> WarmUp(steps=500)
    WarmUp(steps=500, start_factor=0.01)
    """

    family: ClassVar = "schedule"
    off: ClassVar = {"steps": 0}
    tunes: ClassVar = ("steps",)

    steps: int = field(default=50, validator=integer(0))
    start_factor: float = field(default=0.01, validator=interval("[0, 1]"))

    @hookimpl
    def init(self, state: State) -> None:
        """Scale the learning rate."""
        state.scale("lr", lambda now: warm_up(now.step, self.steps, self.start_factor))


@trick
class ReduceOnPlateau:
    """Multiply the learning rate by `factor` when a metric has not improved for more than `patience` epochs.

    The same as `torch.optim.lr_scheduler.ReduceLROnPlateau` with its relative threshold and eps=0, `min_factor` being a
    share of the base rate; see `plateau` for the rule. Without `mode` (``min`` or ``max``) the direction that the
    metric declares counts. Cost: none measurable. Raises `ConfigError` before training for a metric that the run does
    not record, or one of unknown direction.

    >>> ReduceOnPlateau("val_accuracy", patience=5).factor
    0.1
    """

    family: ClassVar = "schedule"
    off: ClassVar = {"factor": 1.0}
    tunes: ClassVar = ("factor", "patience")

    monitor: str = field(default="val_loss", validator=text())
    factor: float = field(default=0.1, validator=interval("(0, 1]"))
    patience: int = field(default=10, validator=integer(0))
    threshold: float = field(default=1e-4, validator=interval("[0, 1)"))
    cooldown: int = field(default=0, validator=integer(0))
    min_factor: float = field(default=0.0, validator=interval("[0, 1]"))
    mode: str | None = field(default=None, validator=optional(choice("min", "max")))

    values: list[float] = field(init=False, repr=False, factory=list)
    current: float = field(init=False, repr=False, default=1.0)

    @hookimpl
    def init(self, state: State) -> None:
        """Scale the learning rate by the product of the cuts so far."""
        resolve_monitor("reduce_on_plateau", self.monitor, self.mode, state.metric_modes)
        state.scale("lr", self._current)

    @hookimpl
    def epoch_end(self, state: State) -> None:
        """Look at the metric, and cut where it has earned it."""
        direction = resolve_monitor("reduce_on_plateau", self.monitor, self.mode, state.metric_modes)
        self.values.append(state.metrics[self.monitor])
        self.current = plateau(
            self.values,
            mode=direction,
            factor=self.factor,
            patience=self.patience,
            threshold=self.threshold,
            cooldown=self.cooldown,
            min_factor=self.min_factor,
        )

    def _current(self, state: State) -> float:
        return self.current
