"""Soften class targets towards the uniform distribution."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from attrs import field
from torch import Tensor, nn

from trickbox.authoring import (
    Batch,
    ConfigError,
    State,
    check_classes,
    hookimpl,
    interval,
    labels_inside,
    probabilities,
    trick,
)


def smooth(targets: Tensor, eps: float) -> Tensor:
    """Return ``(1 - eps) * targets + eps / K`` for class probabilities (N, K, ...).

    >>> smooth(torch.tensor([[1.0, 0.0]]), 0.5)
    tensor([[0.7500, 0.2500]])
    """
    return targets * (1 - eps) + eps / targets.shape[1]


def smooths_alike(loss: nn.CrossEntropyLoss, outputs: Tensor, targets: Tensor, eps: float) -> bool:
    """Whether *loss* gives for smoothed targets what its own ``label_smoothing`` would give for the plain ones.

    Shapes: outputs (N, C, ...), targets (N, ...) of class numbers or (N, C, ...) of probabilities. With class weights
    the two divide by different sums. Cost: two calls of the loss.

    >>> outputs, targets = torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 1])
    >>> losses = nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0]))
    >>> [smooths_alike(loss, outputs, targets, eps=0.1) for loss in losses]
    [True, False]
    """
    own = copy.copy(loss)
    own.label_smoothing = eps
    soft = targets if targets.is_floating_point() else probabilities(targets, outputs.shape[1], outputs.dtype)
    with torch.no_grad():
        return bool(torch.allclose(loss(outputs, smooth(soft, eps)), own(outputs, targets), rtol=1e-4, atol=1e-6))


@trick
class LabelSmoothing:
    """Soften the training targets: give the share `eps` of every target to all classes alike.

    The same as ``nn.CrossEntropyLoss(label_smoothing=eps)``, in any loss that takes probabilities, and in training
    only: validation has the hard targets. Class numbers (N, ...) become probabilities (N, C, ...), where C comes from
    the model's outputs (N, C, ...); probabilities, such as a mixture's, are softened as they are. Training accuracy
    counts the hard class. 0 is off. Cost: one pass over the targets of a batch.

    Raises `ConfigError` before training, in a loop that tells its targets only batch by batch at the first one: for
    targets that are no classes, and for a loss that takes no probabilities, smooths already, weighs classes or ignores
    some. Source: Szegedy et al. 2016.

    >>> LabelSmoothing(eps=0.2)
    LabelSmoothing(eps=0.2)
    """

    family: ClassVar = "smoothing"
    off: ClassVar = {"eps": 0.0}
    after: ClassVar = ("augmentation", "mixing")
    conflicts: ClassVar = ("smoothing",)
    tunes: ClassVar = ("eps",)

    eps: float = field(default=0.1, validator=interval("[0, 1)"))

    checked: bool = field(init=False, repr=False, default=False)

    @hookimpl
    def init(self, state: State) -> None:
        """Check that targets and loss are for classes."""
        if self.eps == 0:
            state.decline("batch")
        elif state.batch.targets is not None or labels_inside(state):
            self._check(state)

    @hookimpl
    def batch(self, state: State) -> None:
        """Soften the targets."""
        if not self.checked:
            self._check(state)
        inputs, targets = state.batch
        if not targets.is_floating_point():
            outputs = state.surgery.tape.output
            targets = probabilities(targets, outputs.shape[1], outputs.dtype)
        state.batch = Batch(inputs, smooth(targets, self.eps), state.batch.size)

    def _check(self, state: State) -> None:
        targets, outputs, loss = state.batch.targets, state.surgery.tape.output, state.loss
        if labels_inside(state) or not _are_probabilities(targets, outputs):
            check_classes("label_smoothing", state)
        if isinstance(loss, nn.CrossEntropyLoss):
            if loss.label_smoothing > 0:
                raise ConfigError(
                    f"label_smoothing: the loss must not smooth already, got label_smoothing={loss.label_smoothing}; "
                    "drop one of the two"
                )
            logits = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0)).to(outputs)
            if not smooths_alike(loss, logits, targets, self.eps):
                raise ConfigError(
                    "label_smoothing: with the weights of this loss, smoothed targets would not give what its own "
                    f"smoothing gives; write nn.CrossEntropyLoss(weight=..., label_smoothing={self.eps:g}) instead"
                )
        self.checked = True


def _are_probabilities(targets: Any, outputs: Any) -> bool:
    if not all(isinstance(t, Tensor) and t.is_floating_point() and t.ndim >= 2 for t in (targets, outputs)):
        return False
    sums = targets.sum(1)
    return targets.shape[1:] == outputs.shape[1:] and bool(
        (targets >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
    )
