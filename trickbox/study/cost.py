"""What a step of training costs: time and memory, measured alone and not beside other runs."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from trickbox.session import Session

STEPS = 40
_WARM_UP = 5
"""Steps that are not timed."""


def measure(session: Session, steps: int = STEPS) -> dict[str, float]:
    """Train some *steps* and return the median ``step_seconds``, ``memory`` in bytes, and ``parameters``.

    The time is that of a step with its batch, without validation. The memory is what a step must hold at once: weights,
    gradients, the optimizer's state, and what the forward keeps for the backward, the same on every device. What an
    allocator adds is not in it, nor what a trick keeps for itself. Fewer steps where the training is shorter.
    """
    with session, ExitStack() as first_step:
        kept = first_step.enter_context(_kept(session.model))  # looking at what is kept takes time, so at one step only
        moments = list(_moments(session, steps, first_step))
        parameters = list(session.model.parameters())
        gradients = [each for each in parameters if each.requires_grad]  # of the same sizes
        assert session.state.optimizer is not None
        held = [*parameters, *session.model.buffers(), *gradients, *_state(session.state.optimizer)]
    gaps = [after - before for epoch in moments for before, after in itertools.pairwise(epoch)][_WARM_UP:]
    return {
        "step_seconds": float(np.median(gaps)) if gaps else math.nan,
        "memory": sum(tensor.nbytes for tensor in held) + max(kept, default=0),
        "parameters": sum(parameter.numel() for parameter in parameters),
    }


def _moments(session: Session, steps: int, first_step: ExitStack) -> Iterator[list[float]]:
    """When each step of an epoch began, by epoch, up to so many *steps*."""
    for _ in session.epochs():
        began = []
        for batch in itertools.islice(session.batches(), steps):
            began.append(time.perf_counter())
            session.step(batch)
            first_step.close()
        yield began
        steps -= len(began)
        if not steps:
            return


@contextmanager
def _kept(model: nn.Module) -> Iterator[list[int]]:
    """The bytes that each forward keeps besides weights, in the list that it yields; a storage counts once."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: list[int] = []
    graph: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.layout is torch.strided:  # a sparse tensor has no storage of its own
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                graph[storage.data_ptr()] = storage.nbytes()
        return tensor

    def use(tensor: Tensor) -> Tensor:
        if graph:  # the backward has begun, so that what is kept next belongs to another forward
            sizes.append(sum(graph.values()))
            graph.clear()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, use):
        yield sizes


def _state(optimizer: torch.optim.Optimizer) -> Iterable[Tensor]:
    return (value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor))
