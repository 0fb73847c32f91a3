"""Tasks for documentation, tests and studies: small ones, made offline in a second, by name; your own by place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from trickbox.errors import ConfigError, near

if TYPE_CHECKING:
    from trickbox.study.task import Task

__all__ = ["available", "get"]

_PLACES = {
    "cbf": "trickbox.tasks.series:CBF",
    "diabetes": "trickbox.tasks.real:Diabetes",
    "digits": "trickbox.tasks.real:Digits",
    "synthetic_control": "trickbox.tasks.series:SyntheticControl",
    "two_patterns": "trickbox.tasks.series:TwoPatterns",
    "waveform21": "trickbox.tasks.waveform21:Waveform21",
    "waveforms": "trickbox.tasks.waveforms:Waveforms",
}


def available() -> list[str]:
    """Name every task that comes with trickbox, sorted, importing none of them.

    >>> available()
    ['cbf', 'diabetes', 'digits', 'synthetic_control', 'two_patterns', 'waveform21', 'waveforms']
    """
    return sorted(_PLACES)


def get(name: str, **options: Any) -> Task:
    """Make the task *name* with *options* set and every other field at its default.

    *name* is one of `available`, or the place of a task of your own, such as ``mytask.py:MyTask`` (see
    `trickbox.study.own`). Raises `ConfigError` for an unknown task, an unknown option or a value out of range.

    >>> get("waveforms", noise=0.2).noise
    0.2
    """
    from trickbox.study.own import task_class  # torch, which listing tasks must not load

    if name not in _PLACES and ":" not in name:
        hint = "; a task of your own is file.py:name or module:name" if name.endswith(".py") else ""
        raise ConfigError(f"task {name!r} is unknown; available: {', '.join(available())}{hint}.{near(name, _PLACES)}")
    cls: Any = task_class(_PLACES.get(name, name))
    fields = [field.alias for field in attrs.fields(cls) if field.init]
    for option in options:
        if option not in fields:
            raise ConfigError(f"{name}: no option {option!r}; options: {', '.join(fields)}.{near(option, fields)}")
    task: Task = cls(**options)
    return task
