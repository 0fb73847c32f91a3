"""One process or many: who am I, how many are we, and sums over all. Streams, data, metrics and decisions ask here.

Everything is a question to torch.distributed at the moment of asking; nothing is set up, and nothing is kept.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from trickbox.errors import ConfigError


def joined() -> bool:
    """Whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process, from 0; 0 outside a process group.

    >>> rank(), world()
    (0, 1)
    """
    return dist.get_rank() if joined() else 0


def world() -> int:
    """How many processes train together; 1 outside a process group."""
    return dist.get_world_size() if joined() else 1


def check_joined() -> None:
    """Raise `ConfigError` where a launcher started several processes that do not know of each other yet."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and not joined():
        raise ConfigError(
            f"{started} processes were launched, but none has joined a process group, so each would train a model of "
            "its own; call torch.distributed.init_process_group() first, and pass wrap=DistributedDataParallel"
        )


def local_index() -> int:
    """Which accelerator of its machine belongs to this process."""
    return int(os.environ.get("LOCAL_RANK", rank()))


def totals(values: list[float]) -> list[float]:
    """The sums of *values* over all processes, the same in every one. All processes must ask for equally many."""
    if world() == 1 or not values:
        return values
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return [float(value) for value in tensor.tolist()]


def means(values: Mapping[str, float]) -> dict[str, float]:
    """The means of *values* over all processes, so that all decide alike.

    Raises `ConfigError`, in every process, where they do not all have the same names.
    """
    together = world()
    if together == 1:
        return dict(values)
    names: list[Any] = [None] * together
    dist.all_gather_object(names, list(values))
    if any(set(other) != set(names[0]) for other in names):
        raise ConfigError(f"the ranks measured different metrics, of which there is no mean: {names}")
    values = {name: values[name] for name in names[0]}
    return dict(zip(values, (total / together for total in totals(list(values.values()))), strict=True))
