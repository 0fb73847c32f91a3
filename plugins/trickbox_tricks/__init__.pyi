from .augmentation import Augment
from .dropout import Dropout
from .early_stopping import EarlyStopping
from .initialization import Initialize
from .mixup import Mixup
from .normalization import BatchNorm, GroupNorm, LayerNorm
from .placebo import Placebo
from .residual import Residual
from .schedules import CosineAnnealing, ExponentialDecay, OneCycle, ReduceOnPlateau, StepDecay, WarmUp
from .transfer import Freeze, Transfer

__all__ = [
    "Augment",
    "BatchNorm",
    "CosineAnnealing",
    "Dropout",
    "EarlyStopping",
    "ExponentialDecay",
    "Freeze",
    "GroupNorm",
    "Initialize",
    "LayerNorm",
    "Mixup",
    "OneCycle",
    "Placebo",
    "ReduceOnPlateau",
    "Residual",
    "StepDecay",
    "Transfer",
    "WarmUp",
]
