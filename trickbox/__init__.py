"""Training tricks as plugins: switch one on in one line, on the model you already have, in the loop you already have.

Every public name is here, and none is imported before it is used: ``import trickbox`` loads neither torch nor
matplotlib. Begin reading at `trickbox.hooks`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Not lazy: importing the module `trickbox.trick` later would otherwise put itself in the place of the decorator.
from trickbox.trick import trick as trick

if TYPE_CHECKING:
    from trickbox.catalog import available as available
    from trickbox.catalog import get as get
    from trickbox.catalog import refresh as refresh
    from trickbox.engine import fit as fit
    from trickbox.errors import ConfigError as ConfigError
    from trickbox.errors import DataError as DataError
    from trickbox.errors import NoEffectError as NoEffectError
    from trickbox.errors import SurgeryError as SurgeryError
    from trickbox.errors import TrickboxError as TrickboxError
    from trickbox.errors import near as near
    from trickbox.history import History as History
    from trickbox.hooks import hookimpl as hookimpl
    from trickbox.loopless import apply as apply
    from trickbox.loopless import explain as explain
    from trickbox.metrics import evaluate as evaluate
    from trickbox.monitor import is_better as is_better
    from trickbox.monitor import resolve_monitor as resolve_monitor
    from trickbox.monitor import worst as worst
    from trickbox.nest import map_tensors as map_tensors
    from trickbox.nest import tensors as tensors
    from trickbox.session import Result as Result
    from trickbox.session import Session as Session
    from trickbox.state import Batch as Batch
    from trickbox.state import Options as Options
    from trickbox.state import State as State
    from trickbox.streams import derive as derive
    from trickbox.streams import forked as forked
    from trickbox.study import Arm as Arm
    from trickbox.study import Study as Study
    from trickbox.surgery import CONVOLUTIONS as CONVOLUTIONS
    from trickbox.surgery import DROPOUTS as DROPOUTS
    from trickbox.surgery import NORMS as NORMS
    from trickbox.surgery import POOLS as POOLS
    from trickbox.surgery import WEIGHT_LAYERS as WEIGHT_LAYERS
    from trickbox.surgery import Event as Event
    from trickbox.surgery import Rank as Rank
    from trickbox.surgery import Site as Site
    from trickbox.surgery import Surgery as Surgery
    from trickbox.surgery import activation_after as activation_after
    from trickbox.surgery import evaluating as evaluating
    from trickbox.surgery import norm_after as norm_after
    from trickbox.surgery import undo as undo
    from trickbox.trick import choice as choice
    from trickbox.trick import flag as flag
    from trickbox.trick import integer as integer
    from trickbox.trick import interval as interval
    from trickbox.trick import text as text

_HOMES = {
    "catalog": ("available", "get", "refresh"),
    "engine": ("fit",),
    "errors": ("ConfigError", "DataError", "NoEffectError", "SurgeryError", "TrickboxError", "near"),
    "history": ("History",),
    "hooks": ("hookimpl",),
    "metrics": ("evaluate",),
    "monitor": ("is_better", "resolve_monitor", "worst"),
    "nest": ("map_tensors", "tensors"),
    "loopless": ("apply", "explain"),
    "session": ("Result", "Session"),
    "state": ("Batch", "Options", "State"),
    "streams": ("derive", "forked"),
    "study": ("Arm", "Study"),
    "surgery": (
        "CONVOLUTIONS", "DROPOUTS", "Event", "NORMS", "POOLS", "Rank", "Site", "Surgery", "WEIGHT_LAYERS",
        "activation_after", "evaluating", "norm_after", "undo",
    ),
    "trick": ("choice", "flag", "integer", "interval", "text"),
}  # fmt: skip
_HOME = {name: module for module, members in _HOMES.items() for name in members}

__all__ = [*sorted([*_HOME, "trick"])]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'trickbox' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"trickbox.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
