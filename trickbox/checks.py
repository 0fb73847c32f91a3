"""What is checked before any training, with an error that names the fix."""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from trickbox import ranks
from trickbox.data import LAST_BATCH, check_finite
from trickbox.errors import ConfigError, DataError
from trickbox.metrics import Forward, check_metrics
from trickbox.nest import shapes
from trickbox.state import Batch, Loss
from trickbox.streams import forked
from trickbox.surgery import Surgery, dry, evaluating, is_tricked


def check_model(model: Any) -> None:
    """Raise `ConfigError` for what surgery cannot edit: no module, or a wrapped, sharded or compiled one.

    Cost: a walk over the objects that refer to the model.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be an nn.Module object, got {model!r}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ConfigError("model is a ScriptModule, whose forward cannot be edited; pass the module it was made from")
    if isinstance(model, (DistributedDataParallel, DataParallel)) or hasattr(model, "_orig_mod"):
        wrap = "torch.compile" if hasattr(model, "_orig_mod") else type(model).__name__
        raise ConfigError(f"model is wrapped in {type(model).__name__}; pass the module inside, and wrap={wrap}")
    if ranks.joined() and any(type(o) is DistributedDataParallel and o.module is model for o in gc.get_objects()):
        raise ConfigError(
            "model is inside a DistributedDataParallel already, which would not join what tricks add; pass "
            "wrap=DistributedDataParallel instead"
        )
    if is_sharded(model):
        raise ConfigError(
            "model is sharded already; pass the whole one, and wrap=fully_shard to shard it after surgery"
        )
    if _is_compiled(model):
        raise ConfigError(
            "model is compiled already, and a compiled graph would not see what tricks add; pass wrap=torch.compile "
            "instead, which compiles it after surgery"
        )


def is_sharded(model: Any) -> bool:
    """Whether the parameters of *model* are spread over several processes."""
    if not isinstance(model, nn.Module):
        return False
    # By name, because the classes live in a package that takes long to import and is there already if one is in use.
    kinds = {kind.__name__ for module in model.modules() for kind in type(module).__mro__}
    return bool(kinds & {"FSDPModule", "FullyShardedDataParallel"}) or any(
        type(p.data).__name__ == "DTensor" for p in model.parameters()
    )


def _is_compiled(model: nn.Module) -> bool:
    """Whether *model* or a part of it is compiled, or has been called inside a compiled module."""
    if any(module._compiled_call_impl is not None or "_orig_mod" in module._modules for module in model.modules()):
        return True
    compiler = sys.modules.get("torch._dynamo.utils")
    if compiler is None or not compiler.counters["frames"]:  # nothing has been compiled in this process
        return False
    return any(isinstance(members, dict) and members.get("_orig_mod") is model for members in gc.get_referrers(model))


def check_untouched(model: nn.Module) -> None:
    """Raise `ConfigError` for a model that has tricks on: a run brings its own."""
    if is_tricked(model):
        raise ConfigError("model already has tricks on; call trickbox.undo(model) first, or train it without tricks")


def check_wrapped(wrapped: Any) -> None:
    """Raise `ConfigError` for a wrap that leaves many processes to train apart."""
    inner = getattr(wrapped, "_orig_mod", wrapped)
    together = isinstance(inner, DistributedDataParallel) or is_sharded(inner)
    if ranks.world() > 1 and not together:
        raise ConfigError(
            f"{ranks.world()} processes would each train a model of their own; pass wrap=DistributedDataParallel, or "
            "wrap=fully_shard"
        )


def check_settings(
    loss: Any,
    max_epochs: Any,
    max_steps: Any,
    batch_size: Any,
    last_batch: Any,
    seed: Any,
    metrics: Mapping[str, Any] | None,
) -> None:
    """Raise `ConfigError` for an argument of a run that cannot work."""
    if loss is not None and (not callable(loss) or isinstance(loss, type)):
        raise ConfigError(f"loss must be a function of (outputs, targets), such as nn.CrossEntropyLoss(), got {loss!r}")
    if max_epochs is None and max_steps is None:
        raise ConfigError("the run needs a length: give max_epochs, or max_steps")
    numbers = (
        ("max_epochs", max_epochs, 1),
        ("max_steps", max_steps, 1),
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
    )
    for name, value, least in numbers:
        optional = value is None and name.startswith("max_")
        if not optional and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if last_batch not in LAST_BATCH:
        raise ConfigError(f"last_batch must be one of {', '.join(LAST_BATCH)}, got {last_batch!r}")
    check_metrics({} if metrics is None else metrics)


def plan_surgery(model: nn.Module, sample: Batch, forward: Forward, name: str = "inputs") -> Surgery:
    """Record the tape, and raise `DataError`, naming *name*, where the model cannot take the inputs."""
    try:
        return Surgery.on(model, sample.inputs, forward)
    except Exception as error:
        raise DataError(
            f"{name}: the model cannot take inputs of shape {shapes(sample.inputs)}: {type(error).__name__}: {error}"
        ) from error


def check_smallest(model: nn.Module, batch: Batch | None, forward: Forward) -> None:
    """Raise `DataError` where the model, with its tricks, cannot train on the smallest *batch* of an epoch.

    Batch norm, for one, needs more than one value a channel. Cost: a forward on it, where it is smaller than others.
    """
    if batch is None:
        return
    try:
        with dry(model, training=True):
            forward(model, batch.inputs)
    except Exception as error:
        raise DataError(
            f"train: the last batch has {batch.size} samples, on which the model cannot train: {error}; give another "
            "batch_size, or last_batch='balance' or 'drop'"
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
    except ConfigError:
        raise
    except Exception as error:
        raise DataError(f"{what}: {type(error).__name__}: {error}") from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise DataError(f"{what}: it must give one number, got {shapes(value)}; average over the samples")
