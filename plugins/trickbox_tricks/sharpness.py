"""Look for weights around which the loss is low, not only at which."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import ClassVar

import torch
from attrs import field
from torch import Tensor
from torch.nn.utils import get_total_norm

from trickbox.authoring import State, check_gradients, flag, hookimpl, interval, trick


@torch.no_grad()
def climb(
    weights: Sequence[Tensor], gradients: Sequence[Tensor], rho: float, adaptive: bool = False
) -> tuple[Tensor, ...]:
    """Return the steps along *gradients*, together of length *rho*, that lead where the loss is highest near by.

    With *adaptive*, "near by" is measured in shares of each weight: the steps are ``rho * w**2 * g / norm(w * g)``.

    >>> climb([torch.zeros(2)], [torch.tensor([3.0, 4.0])], rho=0.5)
    (tensor([0.3000, 0.4000]),)
    """
    measured = torch._foreach_mul(list(weights), list(gradients)) if adaptive else tuple(gradients)
    steps = torch._foreach_mul(measured, rho / (get_total_norm(measured) + 1e-12))
    return tuple(torch._foreach_mul(steps, list(weights)) if adaptive else steps)


@trick
class SAM:
    """Update with the gradients of the worst point near by, `rho` uphill: sharpness-aware minimization.

    Each update makes a second pass over its batches, from weights that are `rho` up the gradient, with the same draws
    of all tricks; then the weights, every bit of them, and all buffers, such as running statistics, are as they were,
    and the optimizer steps. `adaptive` measures distance in shares of each weight (ASAM); it wants a `rho` about ten
    times larger. 0 is off.

    In a loop of your own, hand a closure to ``optimizer.step``; what torch itself draws there, as in ``nn.Dropout``, is
    drawn anew. Cost: the time of training doubles, and a copy of the weights. Raises `ConfigError` before training for
    an optimizer that computes its gradients itself, as LBFGS does, and in the first update of a loop that makes its
    passes itself without a closure. Source: Foret et al. 2021, Kwon et al. 2021.

    >>> SAM(rho=0.1)
    SAM(rho=0.1, adaptive=False)
    """

    family: ClassVar = "sharpness"
    off: ClassVar = {"rho": 0.0}
    conflicts: ClassVar = ("sharpness",)
    tunes: ClassVar = ("rho",)

    rho: float = field(default=0.05, validator=interval("[0, inf)"))
    adaptive: bool = field(default=False, validator=flag())

    @hookimpl
    def init(self, state: State) -> None:
        """Do nothing where there is nowhere to climb."""
        if self.rho == 0:
            state.decline("fit_start", "update")

    @hookimpl
    def fit_start(self, state: State) -> None:
        """Check that the optimizer leaves the gradients to the loop."""
        check_gradients("sam", state.optimizer, "replace")

    @hookimpl(wrapper=True)
    def update(self, state: State) -> Generator[None, bool, bool]:
        """Replace the gradients by those of a second pass from the worst point near by."""
        check_gradients("sam", state.optimizer, "replace")
        assert state.optimizer is not None
        trained = [p for group in state.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if trained:
            changed = [*trained, *state.model.buffers()]
            kept = [tensor.detach().clone() for tensor in changed]
            steps = climb(trained, [p.grad for p in trained], self.rho, self.adaptive)
            try:
                with torch.no_grad():
                    torch._foreach_add_(trained, steps)
                state.replay()
            finally:
                with torch.no_grad():
                    torch._foreach_copy_(changed, kept)
        return (yield)
