"""Train on mixtures of two samples and of their targets."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from attrs import field
from torch import Tensor

from trickbox.authoring import (
    Batch,
    NoEffectError,
    State,
    check_classes,
    hookimpl,
    interval,
    labels_inside,
    map_tensors,
    probabilities,
    tensors,
    trick,
)


def draw_lambda(alpha: float, generator: torch.Generator) -> Tensor:
    """Draw one number from Beta(alpha, alpha), alpha > 0, on the generator's device; a float32 tensor of shape ().

    >>> bool(0 <= draw_lambda(0.2, torch.Generator().manual_seed(0)) <= 1)
    True
    """
    ones = torch.ones(2, device=generator.device)
    # Gamma(a) is Gamma(a + 1) * U ** (1 / a), and Beta is the share of two: in logarithms nothing underflows.
    gamma = torch._standard_gamma(ones * (alpha + 1), generator=generator).log()
    log_gamma = gamma - ones.exponential_(generator=generator) / alpha
    return torch.sigmoid(log_gamma[0] - log_gamma[1])


def draw_partners(size: int, generator: torch.Generator) -> Tensor:
    """Draw a random cycle through all samples: the index of everyone's partner, never its own, shape (size,).

    >>> draw_partners(2, torch.Generator().manual_seed(0))
    tensor([1, 0])
    """
    order = torch.randperm(size, generator=generator, device=generator.device)
    return torch.empty_like(order).scatter_(0, order, order.roll(1))


def mix(nest: Any, partners: Tensor, lam: Tensor) -> Any:
    """Return ``lam * x + (1 - lam) * x[partners]`` for every floating tensor x (N, ...) of *nest*; the rest stays.

    >>> mix(torch.tensor([0.0, 8.0]), torch.tensor([1, 0]), torch.tensor(0.75))
    tensor([2., 6.])
    """

    def of_one(tensor: Tensor) -> Tensor:
        return torch.lerp(tensor[partners], tensor, lam.to(tensor.dtype)) if tensor.is_floating_point() else tensor

    return map_tensors(of_one, nest)


@trick
class Mixup:
    """Train on mixtures of pairs of samples, in the share lambda ~ Beta(alpha, alpha), drawn once a batch.

    All floating tensors of the inputs are mixed, each sample with another one of its batch. Class numbers (N, ...)
    become probabilities (N, C, ...), where C comes from the model's outputs (N, C, ...); floating targets are mixed as
    they are. Class weights in the loss then weigh the single terms but no longer their mean. Training metrics see the
    mixed targets. 0 is off. Cost: one pass over a batch. Raises `ConfigError` before training, in a loop that tells its
    targets only batch by batch at the first one: for a loss that does not take probabilities or ignores some, or for
    targets of another kind. Raises `NoEffectError` where no input is floating. Source: Zhang et al. 2018.

    >>> Mixup(alpha=0.4)
    Mixup(alpha=0.4)
    """

    family: ClassVar = "mixing"
    off: ClassVar = {"alpha": 0.0}
    after: ClassVar = ("augmentation",)
    conflicts: ClassVar = ("mixing",)
    tunes: ClassVar = ("alpha",)

    alpha: float = field(default=0.2, validator=interval("[0, inf)"))

    generator: torch.Generator | None = field(init=False, repr=False, default=None)
    checked: bool = field(init=False, repr=False, default=False)

    @hookimpl
    def init(self, state: State) -> None:
        """Check that inputs, targets and loss can be mixed."""
        if self.alpha == 0:
            return
        if not any(tensor.is_floating_point() for tensor in tensors(state.batch.inputs)):
            found = ", ".join(f"{t.dtype} {tuple(t.shape)}" for t in tensors(state.batch.inputs))
            raise NoEffectError(f"mixup acted nowhere: it looked for floating inputs, found {found}")
        if state.batch.targets is not None or labels_inside(state):
            self._check_targets(state)
        self.generator = state.stream()

    @hookimpl
    def batch(self, state: State) -> None:
        """Mix the batch."""
        if self.generator is None:
            return
        if not self.checked:
            self._check_targets(state)
        inputs, targets = state.batch
        if isinstance(targets, Tensor) and not targets.is_floating_point():
            outputs = state.surgery.tape.output
            targets = probabilities(targets, outputs.shape[1], outputs.dtype)
        lam = draw_lambda(self.alpha, self.generator)
        partners = draw_partners(state.batch.size, self.generator)
        state.batch = Batch(mix(inputs, partners, lam), mix(targets, partners, lam), state.batch.size)

    def _check_targets(self, state: State) -> None:
        targets = list(tensors(state.batch.targets))
        if not targets or not all(tensor.is_floating_point() for tensor in targets):
            check_classes("mixup", state)
        self.checked = True
