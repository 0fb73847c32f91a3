"""What an author of tricks needs: ``from trickbox.authoring import trick, hookimpl, State``.

The built-in tricks use these names and no others. Unlike the package itself this module imports everything at once: a
trick needs torch anyway.
"""

from trickbox.catalog import refresh
from trickbox.errors import ConfigError, DataError, NoEffectError, SurgeryError, near
from trickbox.hooks import hookimpl
from trickbox.monitor import is_better, resolve_monitor, worst
from trickbox.nest import map_tensors, tensors
from trickbox.state import Batch, Options, State
from trickbox.steps import check_gradients
from trickbox.streams import derive, forked
from trickbox.surgery import (
    CONVOLUTIONS,
    DROPOUTS,
    NORM_KINDS,
    NORMS,
    POOLS,
    Anatomy,
    Branch,
    Depths,
    Draws,
    Event,
    Join,
    MakeNorm,
    Places,
    Rank,
    Site,
    Surgery,
    attend,
    attend_with_heads,
    attentions,
    behind_norm,
    evaluating,
    exchange_norm,
    gain_after,
    is_stochastic_depth,
    norm_after,
    norm_before,
    norm_for,
    parameter_users,
    product_of,
)
from trickbox.targets import check_classes, labels_inside, probabilities, takes_probabilities
from trickbox.trick import trick
from trickbox.validators import at_depth, by_depth, choice, flag, integer, interval, places, side, text

__all__ = [
    "CONVOLUTIONS",
    "DROPOUTS",
    "NORMS",
    "NORM_KINDS",
    "POOLS",
    "Anatomy",
    "Batch",
    "Branch",
    "ConfigError",
    "DataError",
    "Depths",
    "Draws",
    "Event",
    "Join",
    "MakeNorm",
    "NoEffectError",
    "Options",
    "Places",
    "Rank",
    "Site",
    "State",
    "Surgery",
    "SurgeryError",
    "at_depth",
    "attend",
    "attend_with_heads",
    "attentions",
    "behind_norm",
    "by_depth",
    "check_classes",
    "check_gradients",
    "choice",
    "derive",
    "evaluating",
    "exchange_norm",
    "flag",
    "forked",
    "gain_after",
    "hookimpl",
    "integer",
    "interval",
    "is_better",
    "is_stochastic_depth",
    "labels_inside",
    "map_tensors",
    "near",
    "norm_after",
    "norm_before",
    "norm_for",
    "parameter_users",
    "places",
    "probabilities",
    "product_of",
    "refresh",
    "resolve_monitor",
    "side",
    "takes_probabilities",
    "tensors",
    "text",
    "trick",
    "worst",
]
