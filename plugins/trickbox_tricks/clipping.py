"""Bound the gradients of every update."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import ClassVar

from attrs import field
from attrs.validators import optional
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from trickbox.authoring import State, check_gradients, choice, hookimpl, interval, trick


def clip_gradients(parameters: Iterable[Tensor], limit: float, by: str) -> None:
    """Bound the gradients of *parameters* in place: their common norm, or the size of every single number.

    >>> import torch
    >>> weight = torch.zeros(2, requires_grad=True)
    >>> weight.grad = torch.tensor([3.0, -4.0])
    >>> clip_gradients([weight], 1.0, by="norm"), weight.grad
    (None, tensor([ 0.6000, -0.8000]))
    >>> clip_gradients([weight], 0.7, by="value"), weight.grad
    (None, tensor([ 0.6000, -0.7000]))
    """
    if by == "norm":
        clip_grad_norm_(parameters, limit)
    else:
        clip_grad_value_(parameters, limit)


@trick
class ClipGradients:
    """Shrink the gradients of every update to a norm of at most `limit`.

    by="norm"    all gradients are one vector, whose direction stays: ``torch.nn.utils.clip_grad_norm_``
    by="value"   every single number is cut off at plus and minus `limit`: ``torch.nn.utils.clip_grad_value_``

    What is clipped is what the optimizer gets: the complete gradient of an accumulated update, free of a loss scale; of
    sharpness-aware minimization the second one. None is off. Cost: a pass over the gradients; nothing waits for the
    device. Raises `ConfigError` before training for an optimizer that computes its gradients itself, as LBFGS does.
    Source: Pascanu et al. 2013.

    >>> ClipGradients(0.5)
    ClipGradients(limit=0.5, by='norm')
    """

    family: ClassVar = "clipping"
    off: ClassVar = {"limit": None}
    after: ClassVar = ("sharpness", "precision")
    conflicts: ClassVar = ("clipping",)
    tunes: ClassVar = ("limit",)

    limit: float | None = field(default=1.0, validator=optional(interval("(0, inf)")))  # type: ignore[arg-type]
    by: str = field(default="norm", validator=choice("norm", "value"))

    @hookimpl
    def init(self, state: State) -> None:
        """Do nothing where nothing is to be clipped."""
        if self.limit is None:
            state.decline("fit_start", "update")

    @hookimpl
    def fit_start(self, state: State) -> None:
        """Check that there will be gradients to clip."""
        check_gradients("clip_gradients", state.optimizer, "clip")

    @hookimpl(wrapper=True)
    def update(self, state: State) -> Generator[None, bool, bool]:
        """Clip what the optimizer is about to use."""
        check_gradients("clip_gradients", state.optimizer, "clip")
        assert state.optimizer is not None
        assert self.limit is not None
        parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
        clip_gradients(parameters, self.limit, self.by)
        return (yield)
