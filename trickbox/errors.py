"""What can go wrong, as types. Every message says what was asked, what was got, and the fix.

TrickboxError
├── ConfigError      a setting that cannot work; always raised before any training
├── DataError        the training or validation data cannot be used
├── NoEffectError    a trick that found nowhere to act
└── SurgeryError     an edit of the model that would not be what it claims to be
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TrickboxError(Exception):
    """Base of all errors that trickbox raises on purpose."""


class ConfigError(TrickboxError, ValueError):
    """A setting that cannot work."""


class DataError(TrickboxError, ValueError):
    """Data that cannot be trained on."""


class NoEffectError(TrickboxError):
    """A trick that acted nowhere: it says what it looked for and what it found."""


class SurgeryError(TrickboxError):
    """An edit of the model that cannot be made exactly."""


def near(name: str, options: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest of *options*, or an empty string.

    >>> near("dropuot", ["dropout", "mixup"])
    " Did you mean 'dropout'?"
    >>> near("zzz", ["dropout"])
    ''
    """
    matches = difflib.get_close_matches(name, list(options), n=1, cutoff=0.6)
    return f" Did you mean {matches[0]!r}?" if matches else ""
