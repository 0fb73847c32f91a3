"""What is installed: tricks by name, found through entry points and imported only when named.

Installed is not enabled: a trick runs only when it is in the list of a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from attrs import frozen

from trickbox.errors import ConfigError, near
from trickbox.trick import is_trick, make, name_of

GROUP = "trickbox.tricks"


@cache
def entries() -> tuple[EntryPoint, ...]:
    """The entry points of all installed tricks. Read once; `refresh` after an installation in the same process."""
    return tuple(sorted(entry_points(group=GROUP), key=lambda entry: entry.name))


def refresh() -> None:
    """Look again at what is installed."""
    entries.cache_clear()


def available() -> list[str]:
    """The names of all installed tricks; imports none of them.

    >>> "dropout" in available()
    True
    """
    return list(dict.fromkeys(entry.name for entry in entries()))


def distribution(entry: EntryPoint) -> str:
    """The name and version of what installed an entry point."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown"


def entry(name: str) -> EntryPoint:
    """The entry point called *name*, or ``dist:name`` where two distributions have it."""
    wanted, _, short = name.rpartition(":")
    found = [e for e in entries() if e.name == short and (not wanted or (e.dist and e.dist.name == wanted))]
    if not found:
        raise ConfigError(f"no trick {name!r} is installed.{near(short, available())} See: trickbox list")
    if len(found) > 1:
        spellings = ", ".join(f"'{e.dist.name if e.dist else '?'}:{e.name}'" for e in found)
        raise ConfigError(f"several distributions have a trick {name!r}; name one of {spellings}")
    return found[0]


def get(name: str) -> type:
    """The class of the trick called *name*; imports it.

    >>> get("dropout").__name__
    'Dropout'
    """
    found = entry(name)
    try:
        cls = found.load()
    except Exception as error:
        where = f"{found.value} of {distribution(found)}"
        raise ConfigError(f"trick {name!r} ({where}) cannot be imported: {type(error).__name__}: {error}") from error
    if not isinstance(cls, type) or not is_trick(cls):
        raise ConfigError(
            f"trick {name!r}: {found.value} is not a trick; decorate its class with trickbox.authoring.trick"
        )
    return cls


@frozen
class Optional:
    """A trick that is left out where it finds no place."""

    trick: Any


def optional(trick: Any) -> Optional:
    """*trick*, an object, a name or a JSON form, left out with a note where a model has no place for it.

    So one list fits many models. In JSON it is ``{"trick": "residual", "optional": true}``.

    >>> optional("residual")
    Optional(trick='residual')
    """
    return Optional(trick)


def unwrap(spec: Any) -> tuple[Any, bool]:
    """What *spec* says of a trick, and whether it is optional."""
    if isinstance(spec, Optional):
        return spec.trick, True
    if isinstance(spec, Mapping) and "optional" in spec:
        if not isinstance(spec["optional"], bool):
            raise ConfigError(f"optional must be true or false, got {spec['optional']!r} in {dict(spec)!r}")
        return {name: value for name, value in spec.items() if name != "optional"}, spec["optional"]
    return spec, False


def resolve(spec: Any) -> Any:
    """The trick that *spec* means: itself, the name of one, or its JSON form.

    >>> resolve({"trick": "dropout", "p": 0.2}).p
    0.2
    """
    if isinstance(spec, str):
        return make(get(spec), {})
    if isinstance(spec, Mapping):
        settings = dict(spec)
        name = settings.pop("trick", None)
        if not isinstance(name, str):
            raise ConfigError(f"a trick in JSON form needs its name, {{'trick': 'dropout', ...}}, got {dict(spec)!r}")
        return make(get(name), settings)
    if isinstance(spec, type) and is_trick(spec):
        raise ConfigError(f"{spec.__name__} is a class; make an object of it: {spec.__name__}()")
    if not is_trick(spec):
        raise ConfigError(
            f"a trick is a name, a mapping or an object of a class under @trickbox.authoring.trick, got {spec!r}"
        )
    return spec


def origin(trick: object) -> dict[str, str]:
    """Where a trick comes from: class path, and the distribution that registers it, if one does."""
    cls = type(trick)
    path = f"{cls.__module__}:{cls.__qualname__}"
    found = next((e for e in entries() if e.name == name_of(trick) and e.value == path), None)
    return {"class": path, "distribution": distribution(found) if found else "not registered"}
