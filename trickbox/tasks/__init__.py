"""Small tasks that are made offline in a second, found by name: for documentation, tests and studies."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import attrs

from trickbox.errors import ConfigError, near

if TYPE_CHECKING:
    from trickbox.study.task import Task

__all__ = ["available", "get"]

_PLACES = {"waveforms": "trickbox.tasks.waveforms:Waveforms"}


def available() -> list[str]:
    """Name every task that comes with trickbox, sorted, importing none of them.

    >>> available()
    ['waveforms']
    """
    return sorted(_PLACES)


def get(name: str, **options: Any) -> Task:
    """Make the task *name* with *options* set and every other field at its default.

    Raises `ConfigError` for an unknown task, an unknown option or a value out of range.

    >>> get("waveforms", noise=0.2).noise
    0.2
    """
    if name not in _PLACES:
        raise ConfigError(f"task {name!r} is unknown; available: {', '.join(available())}.{near(name, _PLACES)}")
    module, _, class_name = _PLACES[name].partition(":")
    task_class = getattr(importlib.import_module(module), class_name)
    fields = [field.name for field in attrs.fields(task_class)]
    for option in options:
        if option not in fields:
            raise ConfigError(f"{name}: no option {option!r}; options: {', '.join(fields)}.{near(option, fields)}")
    task: Task = task_class(**options)
    return task
