from .accumulation import Accumulate
from .attention import QKNorm
from .augmentation import Augment
from .averaging import EMA
from .branches import LayerScale, ReZero, StochasticDepth
from .clipping import ClipGradients
from .dropout import Dropout
from .early_stopping import EarlyStopping
from .initialization import Initialize
from .lora import LoRA
from .mixup import Mixup
from .normalization import BatchNorm, ConvertNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from .parameter_groups import GradualUnfreeze, LayerwiseDecay, NoDecayOnNorms
from .placebo import Placebo
from .precision import MixedPrecision
from .residual import Residual
from .schedules import CosineAnnealing, ExponentialDecay, OneCycle, ReduceOnPlateau, StepDecay, WarmUp
from .sharpness import SAM
from .smoothing import LabelSmoothing
from .squeeze import SqueezeExcite
from .standardization import WeightStandardization
from .transfer import Freeze, Transfer

__all__ = [
    "EMA",
    "SAM",
    "Accumulate",
    "Augment",
    "BatchNorm",
    "ClipGradients",
    "ConvertNorm",
    "CosineAnnealing",
    "Dropout",
    "EarlyStopping",
    "ExponentialDecay",
    "Freeze",
    "GradualUnfreeze",
    "GroupNorm",
    "Initialize",
    "InstanceNorm",
    "LabelSmoothing",
    "LayerNorm",
    "LayerScale",
    "LayerwiseDecay",
    "LoRA",
    "MixedPrecision",
    "Mixup",
    "NoDecayOnNorms",
    "OneCycle",
    "Placebo",
    "QKNorm",
    "RMSNorm",
    "ReZero",
    "ReduceOnPlateau",
    "Residual",
    "SqueezeExcite",
    "StepDecay",
    "StochasticDepth",
    "Transfer",
    "WarmUp",
    "WeightStandardization",
]
