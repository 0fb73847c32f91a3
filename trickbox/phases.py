"""The run's own answers to the four phases: the last plugin asked."""

from __future__ import annotations

from torch import Tensor

from trickbox.data import Source
from trickbox.hooks import hookimpl
from trickbox.metrics import Forward, Meter, measure
from trickbox.optimization import write_scales
from trickbox.state import State


class Core:
    """The run's own answers to the four phases: the last plugin asked."""

    def __init__(self, forward: Forward) -> None:
        self.forward = forward
        self.valid: Source | None = None
        self.meter = Meter({})

    @hookimpl
    def compute_loss(self, state: State) -> Tensor:
        state.outputs = self.forward(state.model, state.batch.inputs)
        return state.loss(state.outputs, state.batch.targets)

    @hookimpl
    def backward(self, state: State) -> bool:
        state.batch_loss.backward()
        return True

    @hookimpl
    def update(self, state: State) -> bool:
        if state.scales:
            write_scales(state)
        state.optimizer.step()  # type: ignore[union-attr]
        state.optimizer.zero_grad()  # type: ignore[union-attr]
        return True

    @hookimpl
    def validate(self, state: State) -> dict[str, float]:
        if self.valid is None:
            return {}
        # What a loader draws here is harmless: every epoch starts from seeds of its own.
        found = measure(state.model, self.valid, state.loss, self.meter, self.forward)
        return {f"val_{name}": value for name, value in found.items()}
