from .catalog import available, get, optional
from .engine import fit
from .errors import ConfigError, DataError, NoEffectError, SurgeryError, TrickboxError
from .history import History
from .loops import apply, attach, explain, sites
from .metrics import evaluate
from .saving import load, save
from .session import Result, Session
from .study import Arm, Study
from .surgery import undo
from .surgery.bake import bake, strip

__all__ = [
    "Arm",
    "ConfigError",
    "DataError",
    "History",
    "NoEffectError",
    "Result",
    "Session",
    "Study",
    "SurgeryError",
    "TrickboxError",
    "apply",
    "attach",
    "available",
    "bake",
    "evaluate",
    "explain",
    "fit",
    "get",
    "load",
    "optional",
    "save",
    "sites",
    "strip",
    "undo",
]
