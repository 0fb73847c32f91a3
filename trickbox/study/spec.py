"""The specification of one run: everything its result depends on, as plain JSON, and the hash that names it."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import inspect
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import attrs
import torch
from attrs import field, frozen
from torch import nn

from trickbox.errors import ConfigError, near
from trickbox.study.design import Arm
from trickbox.study.own import load, place_of, task_class
from trickbox.study.task import Task
from trickbox.surgery.places import to_json
from trickbox.trick import fields_of, make, name_of

SCHEMA = 3


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    try:
        own = importlib.metadata.version("trickbox")
    except importlib.metadata.PackageNotFoundError:
        own = "unknown"
    return {"trickbox": own, "source": _source(), "torch": torch.__version__}


@functools.cache
def _source() -> str:
    """A hash of the code of trickbox: while a version is being edited, it must not find its older results."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@frozen
class Part:
    """A task or a trick as JSON: its class as ``module:Class``, its settings, and a hash of the source around it."""

    place: str
    settings: dict[str, Any]
    code: str
    alias: str | None = None


@frozen
class Spec:
    """One run of a study: an arm on a seed. Two specs with one `key` have one result, to the last bit."""

    arm: str
    seed: int
    task: Part
    tricks: tuple[Part, ...] = ()
    device: str = "cpu"
    final: bool = False
    """Whether it is measured on the test set, and not where arms are compared."""
    is_timed: bool = False
    """Whether only what its steps cost is measured, alone on the machine."""
    threads: int = 1
    schema: int = SCHEMA
    versions: dict[str, str] = field(factory=versions)

    @property
    def key(self) -> str:
        """The SHA-256 of all that the result depends on: not of the arm's name, nor of where a weight file lies."""
        facts = attrs.asdict(self)
        del facts["arm"]
        return hashlib.sha256(json.dumps(_by_content(facts), sort_keys=True).encode()).hexdigest()

    def without_seed(self) -> str:
        """A hash of what makes the arm, whatever it is called and whoever trains it: with one hash it is one arm."""
        facts = attrs.asdict(self)
        del facts["arm"], facts["seed"], facts["versions"]
        return hashlib.sha256(json.dumps(_by_content(facts), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The spec as plain JSON, for a worker process."""
        facts: dict[str, Any] = json.loads(json.dumps(attrs.asdict(self)))
        return facts

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Spec:
        """Make the spec from what `to_json` gave."""
        parts = {"task": Part(**facts["task"]), "tricks": tuple(Part(**part) for part in facts["tricks"])}
        return cls(**{**facts, **parts})


def plan(
    task: Task,
    arms: Sequence[Arm],
    seeds: Iterable[int],
    device: str = "cpu",
    final: bool = False,
    is_timed: bool = False,
) -> list[Spec]:
    """List the runs of a study, all arms of a seed before the next seed, so that an interrupted study has whole pairs.

    Raises `ConfigError` for an override that the task does not have and for classes or settings that cannot be sent to
    workers.
    """
    tasks = {arm.name: part_of_task(overridden(task, arm)) for arm in arms}
    tricks = {arm.name: tuple(part_of_trick(entry) for entry in arm.tricks) for arm in arms}
    return [
        Spec(arm.name, seed, tasks[arm.name], tricks[arm.name], device, final, is_timed)
        for seed in seeds
        for arm in arms
    ]


def overridden(task: Task, arm: Arm) -> Task:
    """Return the task with the arm's overrides."""
    cls: Any = type(task)
    if not attrs.has(cls):
        raise ConfigError(f"study: the task must be an attrs class, got {cls.__name__}; decorate it with attrs.frozen")
    known = [attribute.alias for attribute in attrs.fields(cls)]
    for name in arm.overrides:
        if name not in known:
            hint = f"it has {', '.join(known)}.{near(name, known)}"
            raise ConfigError(f"study: arm {arm.name!r} overrides {name!r}, which {task.name} does not have; {hint}")
    changed: Task = attrs.evolve(cast(Any, task), **arm.overrides)
    return changed


def part_of_task(task: Task) -> Part:
    """Describe a task; raises `ConfigError` where workers could not make it again."""
    cls: Any = type(task)
    settings = {attribute.alias: getattr(task, attribute.name) for attribute in attrs.fields(cls) if attribute.init}
    return _part(cls, settings)


def part_of_trick(entry: Any) -> Part:
    """Describe a trick or an (alias, trick) pair; raises `ConfigError` where workers could not make it again."""
    alias, trick = entry if isinstance(entry, tuple) else (None, entry)
    settings = {name: _as_text(f"{name_of(trick)}: {name}", getattr(trick, name)) for name in fields_of(trick)}
    make(type(trick), settings)  # raises where a setting wants the class itself
    return attrs.evolve(_part(type(trick), settings), alias=alias)


def _as_text(where: str, value: Any) -> Any:
    """A setting, alone or in a list, with classes by their name; raises `ConfigError` for functions."""
    for one in value if isinstance(value, (list, tuple)) else [value]:
        if callable(one) and not isinstance(one, (type, nn.Module)):
            raise ConfigError(
                f"study: {where}: the function {to_json(one).removesuffix('()')} cannot be sent to workers; write "
                "places as text: a path such as '**.fc1', a class as ':Linear', or a list of these"
            )
    return to_json(value)


def _part(cls: type, settings: dict[str, Any]) -> Part:
    try:
        plain = json.loads(json.dumps(settings, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"study: the settings of {cls.__name__} must be plain JSON values, got {settings}: {error}"
        ) from error
    return Part(_place(cls), plain, _code(cls))


def _place(cls: type) -> str:
    """The place of a class, if a worker process can load it."""
    if "<locals>" in cls.__qualname__:
        raise ConfigError(
            f"study: {cls.__name__} is made inside a function, where workers cannot find it; move it to module level"
        )
    if cls.__module__ == "__main__" and not hasattr(importlib.import_module("__main__"), "__file__"):
        raise ConfigError(
            f"study: {cls.__name__} is made in an interactive session, where workers cannot find it; put it in a file"
        )
    return place_of(cls)


def _code(cls: type) -> str:
    # An edited class must not find the results of its former self, nor one whose functions beside it were edited. A
    # script is edited to ask for more seeds, too, and keeps its results.
    module = sys.modules.get(cls.__module__)
    try:
        source = inspect.getsource(cls if module is None or module.__name__ == "__main__" else module)
        return hashlib.sha256(source.encode()).hexdigest()[:16]
    except (OSError, TypeError):
        return "unknown"


def _by_content(value: Any, name: str = "") -> Any:
    """Replace the path of every file and folder by a hash of what is in it, and that of code by its bare name."""
    if isinstance(value, dict):
        return {name: _by_content(inner, name) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_by_content(inner) for inner in value]
    if name == "place":
        return Path(value).name  # beside it stands a hash of the code
    if isinstance(value, str) and ("/" in value or os.sep in value or Path(value).suffix) and Path(value).exists():
        return "sha256:" + _hash_of(Path(value))
    return value


def _hash_of(path: Path) -> str:
    """A hash of a file, or of all files in a folder with their names."""
    if path.is_file():
        facts = path.stat()
        return _hash_of_file(str(path), facts.st_mtime_ns, facts.st_size)
    inside = sorted(file for file in path.rglob("*") if file.is_file())
    named = "".join(f"{file.relative_to(path).as_posix()}:{_hash_of(file)};" for file in inside)
    return hashlib.sha256(named.encode()).hexdigest()


@functools.lru_cache(maxsize=4096)
def _hash_of_file(path: str, changed: int, size: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build_task(part: Part) -> Task:
    """Make the task that a part describes."""
    task: Task = cast(Any, task_class(part.place))(**part.settings)
    return task


def build_trick(part: Part) -> Any:
    """Make the trick that a part describes; an (alias, trick) pair where it has an alias."""
    trick = make(load(part.place), part.settings)
    return trick if part.alias is None else (part.alias, trick)
