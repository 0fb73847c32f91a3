"""The tricks that come with trickbox, one module a family. They use nothing but public names of trickbox.

Each is imported when it is first used, as a third party's would be.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trickbox_tricks.augmentation import Augment as Augment
    from trickbox_tricks.dropout import Dropout as Dropout
    from trickbox_tricks.early_stopping import EarlyStopping as EarlyStopping
    from trickbox_tricks.initialization import Initialize as Initialize
    from trickbox_tricks.mixup import Mixup as Mixup
    from trickbox_tricks.normalization import BatchNorm as BatchNorm
    from trickbox_tricks.normalization import GroupNorm as GroupNorm
    from trickbox_tricks.normalization import LayerNorm as LayerNorm
    from trickbox_tricks.placebo import Placebo as Placebo
    from trickbox_tricks.residual import Residual as Residual
    from trickbox_tricks.schedules import CosineAnnealing as CosineAnnealing
    from trickbox_tricks.schedules import ExponentialDecay as ExponentialDecay
    from trickbox_tricks.schedules import OneCycle as OneCycle
    from trickbox_tricks.schedules import ReduceOnPlateau as ReduceOnPlateau
    from trickbox_tricks.schedules import StepDecay as StepDecay
    from trickbox_tricks.schedules import WarmUp as WarmUp
    from trickbox_tricks.transfer import Freeze as Freeze
    from trickbox_tricks.transfer import Transfer as Transfer

_HOMES = {
    "augmentation": ("Augment",),
    "dropout": ("Dropout",),
    "early_stopping": ("EarlyStopping",),
    "initialization": ("Initialize",),
    "mixup": ("Mixup",),
    "normalization": ("BatchNorm", "GroupNorm", "LayerNorm"),
    "placebo": ("Placebo",),
    "residual": ("Residual",),
    "schedules": ("CosineAnnealing", "ExponentialDecay", "OneCycle", "ReduceOnPlateau", "StepDecay", "WarmUp"),
    "transfer": ("Freeze", "Transfer"),
}
_HOME = {name: module for module, members in _HOMES.items() for name in members}

__all__ = [*sorted(_HOME)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'trickbox_tricks' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"trickbox_tricks.{_HOME[name]}"), name)
    globals()[name] = value
    return value
