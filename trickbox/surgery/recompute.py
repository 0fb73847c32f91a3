"""Activation checkpointing runs part of a forward again, in backward: a call that is repeated must be what it was.

A layer that is called several times, or that draws, gives each call a number. Inside a checkpointed region the number
is written down on the region, and the repeated call reads it there instead of taking a new one. Regions are told apart
by the object that torch keeps for each: the frame of a non-reentrant one, the context of a reentrant one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

import torch
from attrs import define, field
from torch.utils import checkpoint

from trickbox.errors import SurgeryError

T = TypeVar("T")
_LOG = "_trickbox_log"


@define(eq=False)
class _Log:
    """What the calls of all layers inside one region were numbered, and how far a repetition has come."""

    numbers: dict[object, list[Any]] = field(factory=dict)
    repeated: dict[object, tuple[int, int]] = field(factory=dict)

    def repeat(self, layer: object, task: int) -> Any:
        """The number of the next call of *layer* in this repetition, which backward number *task* asked for."""
        last, position = self.repeated.get(layer, (task, 0))
        if last != task or position >= len(self.numbers[layer]):
            position = 0
        self.repeated[layer] = task, position + 1
        return self.numbers[layer][position]


def numbered(layer: object, number: Callable[[], T]) -> T:
    """*number* of a new call of *layer*; of a call that activation checkpointing repeats, the one that it had.

    Cost: well under a microsecond outside checkpointed regions, a walk up the stack inside. Raises `SurgeryError` for a
    repetition by another tool than `torch.utils.checkpoint`.
    """
    task = torch._C._current_graph_task_id()
    if task == -1:
        value = number()
        if _may_be_inside():
            for region in _regions():
                _log(region).numbers.setdefault(layer, []).append(value)
        return value
    regions = _regions()
    for depth, region in enumerate(regions):
        if layer in _log(region).numbers:
            value = _log(region).repeat(layer, task)
            for inner in regions[:depth]:  # a region inside a region begins anew when the outer one is repeated
                _log(inner).numbers.setdefault(layer, []).append(value)
            return value
    raise SurgeryError(
        "a layer that draws, or that is called several times, ran again during backward, and trickbox does not know "
        "which call is repeated; use torch.utils.checkpoint.checkpoint for activation checkpointing"
    )


def _may_be_inside() -> bool:
    """Whether a checkpointed region may be running: hooks on saved tensors, or no gradients as in a reentrant one."""
    return not torch.is_grad_enabled() or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def _log(region: Any) -> _Log:
    found: _Log | None = getattr(region, _LOG, None)
    if found is None:
        found = _Log()
        setattr(region, _LOG, found)
    return found


def _regions() -> list[Any]:
    """The checkpointed regions that are running, the innermost first."""
    found: list[Any] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == checkpoint.__file__:
            region = _region(frame)
            if region is not None and all(region is not other for other in found):
                found.append(region)
        frame = frame.f_back
    return found


def _region(frame: FrameType) -> Any:
    """The object that stands for a region, if *frame*, a function of `torch.utils.checkpoint`, runs one."""
    names = frame.f_locals
    if frame.f_code.co_name in ("forward", "backward"):
        return names.get("ctx")
    if frame.f_code.co_name == "unpack_hook":
        return names.get("frame")
    running = getattr(names.get("gen"), "gi_frame", None)
    return running.f_locals.get("new_frame") if running is not None else None
