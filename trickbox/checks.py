"""What is checked before any training, with an error that names the fix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trickbox.data import check_finite
from trickbox.errors import ConfigError, DataError
from trickbox.metrics import Forward, check_metrics
from trickbox.nest import shapes
from trickbox.state import Batch, Loss
from trickbox.streams import forked
from trickbox.surgery import Surgery, evaluating, is_tricked


def check_settings(
    model: Any, loss: Any, max_epochs: Any, batch_size: Any, seed: Any, metrics: Mapping[str, Any] | None
) -> None:
    """Raise `ConfigError` for an argument of a run that cannot work."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be an nn.Module object, got {model!r}")
    if isinstance(model, nn.parallel.DistributedDataParallel) or hasattr(model, "_orig_mod"):
        raise ConfigError(
            f"model is wrapped in {type(model).__name__}; pass the module inside and wrap it after surgery"
        )
    if is_tricked(model):
        raise ConfigError("model already has tricks on; call trickbox.undo(model) first, or train it without tricks")
    if not callable(loss) or isinstance(loss, type):
        raise ConfigError(f"loss must be a function of (outputs, targets), such as nn.CrossEntropyLoss(), got {loss!r}")
    for name, value, least in (("max_epochs", max_epochs, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")
    check_metrics({} if metrics is None else metrics)


def plan_surgery(model: nn.Module, sample: Batch, forward: Forward) -> Surgery:
    """Record the tape, and raise `DataError` where the model cannot take the inputs."""
    try:
        return Surgery.on(model, sample.inputs, forward)
    except Exception as error:
        raise DataError(
            f"train: the model cannot take inputs of shape {shapes(sample.inputs)}: {type(error).__name__}: {error}"
        ) from error


def check_valid(model: nn.Module, loss: Loss, sample: Batch, forward: Forward) -> None:
    """Raise `DataError` where model or loss cannot take the validation data."""
    check_finite("valid", *sample)
    try:
        with forked(), torch.no_grad(), evaluating(model):
            outputs = forward(model, sample.inputs)
    except Exception as error:
        raise DataError(
            f"valid: the model cannot take inputs of shape {shapes(sample.inputs)}: {type(error).__name__}: {error}"
        ) from error
    check_loss("valid", loss, outputs, sample)


def check_loss(name: str, loss: Loss, outputs: Any, sample: Batch) -> None:
    """Raise `DataError` where the loss cannot take outputs and targets, or gives no single number."""
    what = f"{name}: the loss cannot take outputs {shapes(outputs)} with targets {shapes(sample.targets)}"
    try:
        with forked(), torch.no_grad():
            value = loss(outputs, sample.targets)
    except Exception as error:
        raise DataError(f"{what}: {type(error).__name__}: {error}") from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise DataError(f"{what}: it must give one number, got {shapes(value)}; average over the samples")
