"""Where results are kept: one immutable file for each run, whole or not there, so that an interruption costs little."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from trickbox.files import write_whole

Outcome = dict[str, Any]

_ODD = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class Store(Protocol):
    """Results by key, and the plan that they belong to."""

    def get(self, key: str) -> Outcome | None:
        """The result of *key*, if it is there and whole."""

    def put(self, key: str, outcome: Outcome) -> None:
        """Keep the result of *key*."""

    def freeze(self, plan: Mapping[str, Any]) -> int:
        """Write *plan* down and return how often a plan of this store has been evaluated, this time included."""


class MemoryStore:
    """Results that last as long as the object."""

    def __init__(self) -> None:
        self._outcomes: dict[str, Outcome] = {}
        self._looks = 0

    def get(self, key: str) -> Outcome | None:
        """The result of *key*, if it is there."""
        return self._outcomes.get(key)

    def put(self, key: str, outcome: Outcome) -> None:
        """Keep the result of *key*."""
        self._outcomes[key] = outcome

    def freeze(self, plan: Mapping[str, Any]) -> int:
        """Count the evaluation."""
        self._looks += 1
        return self._looks


class FolderStore:
    """Results in ``runs/<two letters>/<key>.json`` under a folder, plans in its ``study.json``.

    Files appear whole or not at all, and are never changed. Several machines may share the folder: equal keys hold
    equal results.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def get(self, key: str) -> Outcome | None:
        """The result of *key*, if it is there; a damaged file is skipped with a warning, and will be replaced."""
        path = self._path(key)
        try:
            outcome = loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            warnings.warn(f"study: {path} cannot be read ({error}); its run is made again", stacklevel=2)
            return None
        if not isinstance(outcome, dict) or "status" not in outcome:
            warnings.warn(f"study: {path} holds no result; its run is made again", stacklevel=2)
            return None
        return outcome

    def put(self, key: str, outcome: Outcome) -> None:
        """Keep the result of *key*: written aside, flushed to disk, renamed."""
        write_whole(self._path(key), dumps(outcome))

    def freeze(self, plan: Mapping[str, Any]) -> int:
        """Append *plan* to ``study.json`` unless it is there, and count the evaluation."""
        path = self.folder / "study.json"
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            known = {"looks": 0, "plans": []}
        known["looks"] += 1
        text = dumps(plan)
        entry = {"hash": hashlib.sha256(text.encode()).hexdigest(), "plan": json.loads(text)}
        if entry not in known["plans"]:
            known["plans"].append(entry)
        write_whole(path, dumps(known))
        looks: int = known["looks"]
        return looks

    def _path(self, key: str) -> Path:
        return self.folder / "runs" / key[:2] / f"{key}.json"


def open_store(place: Store | str | os.PathLike[str]) -> Store:
    """Make a store of a folder's path; a store is itself."""
    return FolderStore(place) if isinstance(place, (str, os.PathLike)) else place


def dumps(value: Any) -> str:
    """Write strict JSON in one canonical form; what is not finite becomes a string.

    >>> dumps({"b": float("nan"), "a": 1})
    '{"a": 1, "b": "nan"}'
    """
    return json.dumps(_strict(value), sort_keys=True, allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _strict(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(inner) for inner in value]
    return value


def loads(text: str) -> Any:
    """Read what `dumps` wrote."""
    return _restored(json.loads(text))


def _restored(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _restored(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_restored(inner) for inner in value]
    return _ODD.get(value, value) if isinstance(value, str) else value
