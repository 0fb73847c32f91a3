"""Evaluate and keep a running average of the weights."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from attrs import field
from torch import Tensor, nn

from trickbox.authoring import State, hookimpl, interval, trick


def kept_share(update: int, updates: int, half_life: float) -> float:
    """Return how much of itself an average keeps in an update, counted from 0, of a run of so many *updates*.

    With decay d = ``0.5 ** (1 / (half_life * updates))`` it is ``d * (1 - d**update) / (1 - d**(update + 1))``: the
    average is then ``sum(d**age * weight) / sum(d**age)`` over all updates so far, as Adam corrects its moments.

    >>> [round(kept_share(update, 1000, half_life=0.1), 3) for update in (0, 1, 100, 999)]
    [0.0, 0.498, 0.986, 0.993]
    """
    decay = math.pow(0.5, 1 / (half_life * updates))
    return decay * (1 - math.pow(decay, update)) / (1 - math.pow(decay, update + 1))


@torch.no_grad()
def average_(averages: Sequence[Tensor], weights: Sequence[Tensor], share: float) -> None:
    """Let *averages* keep the given share of themselves and take the rest from *weights*, in place.

    >>> average = torch.tensor([4.0])
    >>> average_([average], [torch.tensor([8.0])], share=0.75), average
    (None, tensor([5.]))
    """
    same_types = [weight.to(average.dtype) for average, weight in zip(averages, weights, strict=True)]
    torch._foreach_lerp_(list(averages), same_types, 1 - share)


@contextmanager
def swapped(weights: Sequence[Tensor], averages: Sequence[Tensor]) -> Iterator[None]:
    """For the time of a block, give *weights* the values of *averages*; then every bit is back.

    Cost: a copy of the weights, for the time of the block.

    >>> weight = torch.tensor([1.0])
    >>> with swapped([weight], [torch.tensor([2.0])]):
    ...     print(weight)
    tensor([2.])
    >>> weight
    tensor([1.])
    """
    kept = [weight.detach().clone() for weight in weights]
    _write(weights, averages)
    try:
        yield
    finally:
        _write(weights, kept)


@trick
class EMA:
    """Average the weights along the run, measure validation with the averages, and keep them in the end.

    An exponential moving average of all parameters and of the running statistics of norms; the other buffers stay the
    model's own. The weights after an update count half as much as those that come the share `half_life` of all updates
    later; the initial weights do not count, and neither does an update that is skipped. Training goes on with the
    weights themselves. 0 is off.

    Cost: one pass over the weights an update, and a copy of them, in validation two. Raises `ConfigError` where nobody
    tells the length of the run. Source: Polyak and Juditsky 1992.

    >>> EMA(half_life=0.05)
    EMA(half_life=0.05)
    """

    family: ClassVar = "averaging"
    off: ClassVar = {"half_life": 0.0}
    conflicts: ClassVar = ("averaging",)
    tunes: ClassVar = ("half_life",)

    half_life: float = field(default=0.1, validator=interval("[0, 1]"))

    averages: dict[str, Tensor] = field(init=False, repr=False, factory=dict)

    @hookimpl
    def init(self, state: State) -> None:
        """Check that the run has a length."""
        if self.half_life == 0:
            state.decline("update", "validate", "fit_end")
        elif state.has_loop:
            _ = state.total_steps

    @hookimpl(wrapper=True)
    def update(self, state: State) -> Generator[None, bool, bool]:
        """Take the new weights into the averages."""
        made = yield
        if made:
            weights = averaged(state.model)
            if self.averages:
                share = kept_share(state.step - 1, state.total_steps, self.half_life)
                average_(list(self.averages.values()), [weights[name] for name in self.averages], share)
            else:
                self.averages = {name: _precise(weight) for name, weight in weights.items()}
        return made

    @hookimpl(wrapper=True)
    def validate(self, state: State) -> Generator[None, dict[str, float], dict[str, float]]:
        """Give the model the averages for as long as it is measured."""
        if not self.averages:
            return (yield)
        weights = averaged(state.model)
        with swapped([weights[name] for name in self.averages], list(self.averages.values())):
            found = {id(weights[name]): average for name, average in self.averages.items()}
            everything = state.model.state_dict(keep_vars=True)
            state.evaluated = {name: found.get(id(value), value) for name, value in everything.items()}
            return (yield)

    @hookimpl
    def fit_end(self, state: State) -> None:
        """Give the model the averages for good."""
        weights = averaged(state.model)
        if self.averages:
            _write([weights[name] for name in self.averages], list(self.averages.values()))


def averaged(model: nn.Module) -> dict[str, Tensor]:
    """What is averaged of a model: its parameters, and the buffers that are running statistics.

    >>> list(averaged(nn.BatchNorm1d(2)))
    ['weight', 'bias', 'running_mean', 'running_var']
    """
    statistics = {n: b for n, b in model.named_buffers() if n.rpartition(".")[2].startswith("running_")}
    everything = {**dict(model.named_parameters()), **statistics}
    return {name: tensor for name, tensor in everything.items() if tensor.is_floating_point() or tensor.is_complex()}


def _precise(weight: Tensor) -> Tensor:
    """A copy to average in: in half precision the small steps of an average would be rounded away."""
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32), copy=True)


@torch.no_grad()
def _write(weights: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    torch._foreach_copy_(list(weights), list(values))
