from .catalog import available, get, optional
from .engine import fit
from .errors import ConfigError, DataError, NoEffectError, SurgeryError, TrickboxError
from .history import History
from .loops import apply, attach, explain, sites
from .metrics import evaluate
from .session import Result, Session
from .study import Arm, Study
from .surgery import undo

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
    "evaluate",
    "explain",
    "fit",
    "get",
    "optional",
    "sites",
    "undo",
]
