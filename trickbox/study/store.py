"""Where results are kept, and who has looked at them: files that appear whole and are never changed.

A result lies in a file of its own, with what proves what it is. So does every look: looks can be neither lost nor taken
back by whoever looks at the same time.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from trickbox.errors import ConfigError
from trickbox.files import write_new, write_whole

Outcome = dict[str, Any]

FORM = 1
"""The form of the file of a result."""

_ODD = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class Store(Protocol):
    """Results by key, and the looks at them."""

    def get(self, key: str) -> Outcome | None:
        """The result of *key*, if it is there and whole."""

    def put(self, key: str, outcome: Outcome) -> None:
        """Keep the result of *key*."""

    def look(self, plan: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Write down that results are looked at by *plan*; returns the plans of all looks so far, this one last."""


class MemoryStore:
    """Results and looks that last as long as the object."""

    def __init__(self) -> None:
        self._outcomes: dict[str, Outcome] = {}
        self._plans: list[dict[str, Any]] = []

    def get(self, key: str) -> Outcome | None:
        """The result of *key*, if it is there."""
        return self._outcomes.get(key)

    def put(self, key: str, outcome: Outcome) -> None:
        """Keep the result of *key*."""
        self._outcomes[key] = outcome

    def look(self, plan: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Remember the look."""
        self._plans.append(json.loads(dumps(plan)))
        return list(self._plans)


class FolderStore:
    """Results in ``runs/<two letters>/<key>.json`` under a folder, looks in ``looks/<number>.json``.

    Files appear whole or not at all, and are never changed. Several machines may share the folder: equal keys hold
    equal results. Where nothing can be written, such as on a read-only disk, a look is not counted, with a warning.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def get(self, key: str) -> Outcome | None:
        """The result of *key*, if it is there; a damaged file is skipped with a warning, and will be replaced.

        Raises `ConfigError` for a file of another run, or of another version's form, which says nothing here.
        """
        path = self._path(key)
        try:
            outcome: Outcome = _opened(loads(path.read_text(encoding="utf-8")), key, path)
        except FileNotFoundError:
            return None
        except ConfigError:
            raise
        except (ValueError, OSError) as error:
            warnings.warn(f"study: {path} cannot be read ({error}); its run is made again", stacklevel=2)
            return None
        return outcome

    def put(self, key: str, outcome: Outcome) -> None:
        """Keep the result of *key*: written aside, flushed to disk, renamed."""
        sealed = {"key": key, "form": FORM, "digest": _digest(outcome), "result": outcome}
        write_whole(self._path(key), dumps(sealed))

    def look(self, plan: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Add a file with the next number. Raises `ConfigError` for a look that cannot be read: none may be lost."""
        plans = [self._look(path) for path in sorted((self.folder / "looks").glob("*.json"))]
        try:
            while not write_new(self.folder / "looks" / f"{len(plans) + 1:06}.json", dumps(plan)):
                plans.append(self._look(self.folder / "looks" / f"{len(plans) + 1:06}.json"))
        except OSError as error:
            warnings.warn(f"study: this look cannot be counted: {error}", stacklevel=2)
        return [*plans, json.loads(dumps(plan))]

    def _look(self, path: Path) -> dict[str, Any]:
        try:
            plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise ConfigError(
                f"study: {path} cannot be read ({error}), and it says what was looked at before; bring the file back, "
                "or begin in a new folder"
            ) from error
        return plan

    def _path(self, key: str) -> Path:
        return self.folder / "runs" / key[:2] / f"{key}.json"


def _opened(sealed: Any, key: str, path: Path) -> Outcome:
    """The result in what a file holds. Raises `ValueError` where it is damaged, `ConfigError` where it is another's."""
    if not isinstance(sealed, dict) or not {"key", "form", "digest", "result"} <= sealed.keys():
        raise ValueError("it holds no result")
    if sealed["form"] != FORM:
        raise ConfigError(f"study: {path} has form {sealed['form']}, this version reads {FORM}; use another folder")
    if sealed["key"] != key:
        raise ConfigError(f"study: {path} holds the result of {sealed['key']}, another run; take the file away")
    if sealed["digest"] != _digest(sealed["result"]):
        raise ValueError("its digest does not fit")
    outcome: Outcome = sealed["result"]
    return outcome


def _digest(outcome: Outcome) -> str:
    return hashlib.sha256(dumps(outcome).encode()).hexdigest()


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
