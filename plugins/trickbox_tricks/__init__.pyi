from .accumulation import Accumulate
from .augmentation import Augment
from .averaging import EMA
from .clipping import ClipGradients
from .dropout import Dropout
from .early_stopping import EarlyStopping
from .initialization import Initialize
from .mixup import Mixup
from .normalization import BatchNorm, GroupNorm, LayerNorm
from .placebo import Placebo
from .precision import MixedPrecision
from .residual import Residual
from .schedules import CosineAnnealing, ExponentialDecay, OneCycle, ReduceOnPlateau, StepDecay, WarmUp
from .sharpness import SAM
from .smoothing import LabelSmoothing
from .transfer import Freeze, Transfer

__all__ = [
    "EMA",
    "SAM",
    "Accumulate",
    "Augment",
    "BatchNorm",
    "ClipGradients",
    "CosineAnnealing",
    "Dropout",
    "EarlyStopping",
    "ExponentialDecay",
    "Freeze",
    "GroupNorm",
    "Initialize",
    "LabelSmoothing",
    "LayerNorm",
    "MixedPrecision",
    "Mixup",
    "OneCycle",
    "Placebo",
    "ReduceOnPlateau",
    "Residual",
    "StepDecay",
    "Transfer",
    "WarmUp",
]
