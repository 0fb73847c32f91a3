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
    NORMS,
    POOLS,
    Anatomy,
    Draws,
    Event,
    Join,
    Places,
    Rank,
    Site,
    Surgery,
    activation_after,
    evaluating,
    norm_after,
)
from trickbox.targets import check_classes, labels_inside, probabilities, takes_probabilities
from trickbox.trick import choice, flag, integer, interval, places, text, trick

__all__ = [
    "CONVOLUTIONS",
    "DROPOUTS",
    "NORMS",
    "POOLS",
    "Anatomy",
    "Batch",
    "ConfigError",
    "DataError",
    "Draws",
    "Event",
    "Join",
    "NoEffectError",
    "Options",
    "Places",
    "Rank",
    "Site",
    "State",
    "Surgery",
    "SurgeryError",
    "activation_after",
    "check_classes",
    "check_gradients",
    "choice",
    "derive",
    "evaluating",
    "flag",
    "forked",
    "hookimpl",
    "integer",
    "interval",
    "is_better",
    "labels_inside",
    "map_tensors",
    "near",
    "norm_after",
    "places",
    "probabilities",
    "refresh",
    "resolve_monitor",
    "takes_probabilities",
    "tensors",
    "text",
    "trick",
    "worst",
]
