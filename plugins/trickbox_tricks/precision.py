"""Compute in half precision where that is safe."""

from __future__ import annotations

from collections.abc import Generator
from typing import ClassVar

import torch
from attrs import field
from torch import Tensor

from trickbox.authoring import (
    ConfigError,
    NoEffectError,
    State,
    check_gradients,
    choice,
    hookimpl,
    interval,
    trick,
)


def autocast(device: str, dtype: str) -> torch.autocast:
    """A context in which a device computes in ``bfloat16`` or ``float16`` where torch holds that to be safe.

    Raises `ConfigError` where the device cannot.

    >>> with autocast("cpu", "bfloat16"):
    ...     torch.nn.Linear(2, 1)(torch.zeros(1, 2)).dtype
    torch.bfloat16
    """
    if not torch.amp.is_autocast_available(device):
        raise ConfigError(f"mixed_precision: a device of type {device} has no autocast; drop the trick")
    try:
        return torch.autocast(device, getattr(torch, dtype))
    except RuntimeError as error:
        raise ConfigError(f"mixed_precision: this {device} cannot compute in {dtype}: {error}") from error


@trick
class MixedPrecision:
    """Compute forward and loss in half precision where that is safe, with weights and updates in float32.

    dtype        ``bfloat16`` has the range of float32 and needs nothing else. ``float16`` is more precise, but small
                 gradients vanish in it: the loss is multiplied by a scale, the gradients are divided by it before they
                 are clipped, and an update whose gradients are not finite is skipped: then schedules wait and averages
                 stay. ``float32`` is off
    init_scale   the first scale of the loss for ``float16``; it finds its level by itself

    The same as ``torch.autocast`` around the forward and the loss, and ``torch.amp.GradScaler``. Losses are recorded in
    float32 and without the scale. Validation computes in the same precision. Cost: usually a gain on accelerators; on
    a CPU without such units a loss.

    Raises `ConfigError` before training where the device cannot, for an optimizer that computes its gradients itself,
    and for float16 in a loop that makes its passes itself, which has its own scaler. Raises `NoEffectError` for a model
    without float32 weights. Source: Micikevicius et al. 2018.

    >>> MixedPrecision()
    MixedPrecision(dtype='bfloat16', init_scale=65536.0)
    """

    family: ClassVar = "precision"
    off: ClassVar = {"dtype": "float32"}
    after: ClassVar = ("sharpness",)
    conflicts: ClassVar = ("precision",)

    dtype: str = field(default="bfloat16", validator=choice("bfloat16", "float16", "float32"))
    init_scale: float = field(default=65536.0, validator=interval("(0, inf)"))

    scaler: torch.amp.GradScaler | None = field(init=False, repr=False, default=None)

    @hookimpl
    def init(self, state: State) -> None:
        """Check that there is something to compute in half precision, and that the device can."""
        if self.dtype == "float32":
            state.decline("fit_start", "compute_loss", "backward", "update", "validate")
            return
        if self.dtype == "bfloat16":
            state.decline("fit_start", "backward", "update")
        found = sorted({str(parameter.dtype) for parameter in state.model.parameters()})
        if "torch.float32" not in found:
            raise NoEffectError(
                f"mixed_precision acted nowhere: it looked for float32 weights, found {', '.join(found)}"
            )
        autocast(state.device.type, self.dtype)

    @hookimpl
    def fit_start(self, state: State) -> None:
        """Make the scaler of float16, and let it step the optimizer."""
        if state.again is None:
            raise ConfigError(
                "mixed_precision: float16 scales the loss, but this loop calls backward itself; use dtype='bfloat16', "
                "or a torch.amp.GradScaler of your own, or Session or fit"
            )
        check_gradients("mixed_precision", state.optimizer, "unscale")
        self.scaler = torch.amp.GradScaler(state.device.type, init_scale=self.init_scale)
        state.take_step = self.scaler.step

    @hookimpl(wrapper=True)
    def compute_loss(self, state: State) -> Generator[None, Tensor, Tensor]:
        """Run the model and the loss under autocast."""
        with autocast(state.device.type, self.dtype):
            loss = yield
        # A loop that opens the phase around its own lines keeps the loss to itself.
        return loss.to(torch.promote_types(loss.dtype, torch.float32)) if isinstance(loss, Tensor) else loss

    @hookimpl(wrapper=True)
    def backward(self, state: State) -> Generator[None, bool, bool]:
        """Scale the loss for as long as gradients are made."""
        assert self.scaler is not None
        loss = state.batch_loss
        state.batch_loss = self.scaler.scale(loss)
        try:
            return (yield)
        finally:
            state.batch_loss = loss

    @hookimpl(wrapper=True)
    def update(self, state: State) -> Generator[None, bool, bool]:
        """Give the gradients their true size, and adapt the scale afterwards."""
        assert self.scaler is not None
        assert state.optimizer is not None
        self.scaler.unscale_(state.optimizer)
        made = yield
        self.scaler.update()
        return made

    @hookimpl(wrapper=True)
    def validate(self, state: State) -> Generator[None, dict[str, float], dict[str, float]]:
        """Measure in the precision of training."""
        with autocast(state.device.type, self.dtype):
            return (yield)
