"""Studies: does a trick help here, by how much, at what cost? Answered over paired seeds, with pictures."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trickbox.study.design import Arm as Arm
    from trickbox.study.design import add_one as add_one
    from trickbox.study.design import leave_one_out as leave_one_out
    from trickbox.study.outcome import Comparison as Comparison
    from trickbox.study.outcome import Outcome as Outcome
    from trickbox.study.study import Study as Study
    from trickbox.study.task import ACCURACY as ACCURACY
    from trickbox.study.task import LOSS as LOSS
    from trickbox.study.task import Metric as Metric
    from trickbox.study.task import Splits as Splits
    from trickbox.study.task import Task as Task

_PLACES = {
    "ACCURACY": "task",
    "Arm": "design",
    "Comparison": "outcome",
    "LOSS": "task",
    "Metric": "task",
    "Outcome": "outcome",
    "Splits": "task",
    "Study": "study",
    "Task": "task",
    "add_one": "design",
    "leave_one_out": "design",
}

__all__ = [
    "ACCURACY",
    "LOSS",
    "Arm",
    "Comparison",
    "Metric",
    "Outcome",
    "Splits",
    "Study",
    "Task",
    "add_one",
    "leave_one_out",
]


def __getattr__(name: str) -> Any:
    # Lazy, because every worker process imports this package, and a task needs only one module of it.
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
