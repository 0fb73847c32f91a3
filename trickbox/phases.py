"""The run's own answers to the four phases: the last plugin asked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trickbox import ranks
from trickbox.data import Source
from trickbox.hooks import hookimpl
from trickbox.metrics import Forward, Meter, measure
from trickbox.state import State
from trickbox.steps import drop_gradients


class Core:
    """The run's own answers to the four phases: the last plugin asked."""

    def __init__(self, forward: Forward) -> None:
        self.forward = forward
        self.model: Any = None
        """The model inside what `wrap` has put around it."""
        self.sharded = False
        self.closure = False
        """Whether the optimizer computes its gradients by itself, through a closure."""
        self.valid: Source | None = None
        self.meter = Meter({})
        self.window = 0
        """How many samples an update is expected to have, where several batches share one."""

    @hookimpl
    def compute_loss(self, state: State) -> Tensor:
        state.outputs = self.forward(self.model, state.batch.passed())
        return state.loss(state.outputs, state.batch.targets)  # type: ignore[misc]

    @hookimpl
    def backward(self, state: State) -> bool:
        loss = state.batch_loss
        if state.batches_per_update > 1:
            loss = loss * (state.batch.size / self.window)
        loss.backward()
        return True

    @hookimpl
    def update(self, state: State) -> bool:
        optimizer, before = state.optimizer, state.step
        assert optimizer is not None
        if state.take_step is not None:
            state.take_step(optimizer)
        elif self.closure:
            optimizer.step(torch.enable_grad()(state.replay))  # type: ignore[arg-type]
        else:
            optimizer.step()
        drop_gradients(optimizer)
        return state.step > before

    @hookimpl
    def validate(self, state: State) -> dict[str, float]:
        if self.valid is None:
            return {}
        assert state.loss is not None
        # Ranks that hold shards must make the same forwards; others share them, past the wrap that would join them.
        model = self.model if self.sharded or ranks.world() == 1 else state.model
        # What a loader draws here is harmless: every epoch starts from seeds of its own.
        found = measure(model, self.valid, state.loss, self.meter, self.forward, shared=not self.sharded)
        return {f"val_{name}": value for name, value in found.items()}
