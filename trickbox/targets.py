"""Class targets: numbers and probabilities, and what takes which. Shared by tricks that make targets soft."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trickbox.errors import ConfigError
from trickbox.nest import shapes, tensors
from trickbox.streams import forked

if TYPE_CHECKING:
    from trickbox.state import State


def probabilities(targets: Tensor, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Turn class numbers (N, ...) into probabilities (N, classes, ...).

    >>> probabilities(torch.tensor([1, 0]), 2)
    tensor([[0., 1.],
            [1., 0.]])
    """
    shape = (targets.shape[0], classes, *targets.shape[1:])
    return torch.zeros(shape, dtype=dtype, device=targets.device).scatter_(1, targets.unsqueeze(1), 1.0)


def takes_probabilities(loss: Any, outputs: Tensor, targets: Tensor) -> bool:
    """Whether *loss* takes class probabilities: a cross-entropy, or one that gives the same for them as for *targets*.

    Shapes: outputs (N, C, ...), targets (N, ...) of class numbers. Cost: two calls of a loss that is no cross-entropy
    of torch.

    >>> outputs, targets = torch.zeros(2, 3), torch.tensor([0, 2])
    >>> [takes_probabilities(loss, outputs, targets) for loss in (nn.CrossEntropyLoss(), nn.NLLLoss())]
    [True, False]
    """
    if isinstance(loss, nn.CrossEntropyLoss):
        return True
    try:
        with forked(), torch.no_grad():
            soft = loss(outputs, probabilities(targets, outputs.shape[1], outputs.dtype))
            return bool(torch.allclose(soft, loss(outputs, targets)))
    except Exception:  # a loss may refuse in any way
        return False


def labels_inside(state: State) -> bool:
    """Whether the model takes its labels by name, so that it computes the loss by itself."""
    return isinstance(state.batch.inputs, Mapping) and "labels" in state.batch.inputs


def check_classes(trick: str, state: State) -> None:
    """Raise `ConfigError`, naming *trick*, where the class numbers of the batch cannot become probabilities.

    To be called in `init` where the batch has targets, else in the first `batch`. The loss is looked at where the run
    knows it. Cost: two calls of the loss, and the host waits for the device.
    """
    targets, outputs = state.batch.targets, state.surgery.tape.output
    if labels_inside(state):
        raise ConfigError(
            f"{trick}: the model takes its labels by name and computes the loss by itself, where soft targets cannot "
            "reach it; give inputs and targets apart, and a loss such as nn.CrossEntropyLoss()"
        )
    if not isinstance(targets, Tensor) or targets.dtype != torch.int64 or targets.ndim < 1:
        found = ", ".join(f"{t.dtype} {tuple(t.shape)}" for t in tensors(targets)) or repr(targets)
        wanted = "class numbers (N, ...) of dtype int64, or class probabilities"
        raise ConfigError(f"{trick}: targets must be {wanted}, got {found}")
    if not isinstance(outputs, Tensor) or outputs.ndim != targets.ndim + 1 or not outputs.is_floating_point():
        wanted = "(N, C)" if targets.ndim == 1 else f"(N, C, ...), for targets {tuple(targets.shape)}"
        found = shapes(outputs) if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        raise ConfigError(f"{trick}: for class targets the model must give outputs of shape {wanted}, got {found}")
    _check_ignored(trick, state.loss, targets, outputs.shape[1])
    samples = min(len(outputs), len(targets))
    if state.loss is not None and not takes_probabilities(state.loss, outputs[:samples], targets[:samples]):
        raise ConfigError(
            f"{trick}: the loss must take class probabilities, got {state.loss!r}; use nn.CrossEntropyLoss() on "
            f"logits, or give floating targets"
        )


def _check_ignored(trick: str, loss: Any, targets: Tensor, classes: int) -> None:
    """Probabilities know no class that is left out: every number must be one of a class."""
    lowest, highest = (int(end) for end in torch.aminmax(targets))
    if lowest < 0 or highest >= classes:
        wrong = lowest if lowest < 0 else highest
        raise ConfigError(
            f"{trick}: targets must be class numbers from 0 to {classes - 1}, got {wrong}; a target that the loss "
            "ignores has no probabilities"
        )
    ignored = getattr(loss, "ignore_index", None)
    if isinstance(ignored, int) and 0 <= ignored < classes:
        raise ConfigError(
            f"{trick}: the loss must not ignore a class, got ignore_index={ignored}; soft targets would train it"
        )
