"""The class decorator `trick`, and the way from a trick to JSON and back.

A trick is an attrs class whose methods implement hooks. Fields that ``__init__`` takes are its configuration; fields
with ``init=False`` are its state in one run. An object that the user made is never run: each run works on a fresh copy.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, dataclass_transform

import attrs
from attrs import field

from trickbox.errors import ConfigError, near
from trickbox.hooks import HOOKS, PHASES

T = TypeVar("T")
FACTS: dict[str, Any] = {
    "family": None,
    "after": (),
    "conflicts": (),
    "requires": (),
    "off": None,
    "tunes": (),
}
"""What a trick may declare as class variables, with the defaults.

family     the kind it belongs to, such as "normalization"; others may name it in `after`
after      tricks or families whose hooks run before this one's
conflicts  tricks or families that cannot be in the same run
requires   tricks or families that must be in the same run
off        the settings at which it changes no bit of training, or None where there are none
tunes      the settings that deserve tuning
"""


@dataclass_transform(eq_default=False, field_specifiers=(field,))
def trick(cls: type[T]) -> type[T]:
    """Make *cls* a trick: an attrs class with identity equality, checked when it is defined.

    Raises `TypeError` for a hook's name without `hookimpl`, a misspelt hook, a hook with other arguments than
    ``(self, state)``, a setting without validator, or a class without docstring.

    >>> from trickbox.authoring import hookimpl, text
    >>> @trick
    ... class Greet:
    ...     '''Say hello once.'''
    ...     name: str = field(default="you", validator=text())
    ...     @hookimpl
    ...     def fit_start(self, state):
    ...         print(f"hello {self.name}")
    >>> to_config(Greet("me"))
    {'trick': 'greet', 'name': 'me'}
    """
    for fact, default in FACTS.items():
        if not hasattr(cls, fact):
            setattr(cls, fact, default)
    made = attrs.define(eq=False, slots=True)(cls)
    if not (cls.__doc__ or "").strip():
        raise TypeError(f"{cls.__name__}: a trick needs a docstring: one line of promise, then cost and source")
    _check_fields(made)
    _check_hooks(made)
    return made


def is_trick(value: object) -> bool:
    """Whether *value* is a trick or a class of tricks."""
    cls = value if isinstance(value, type) else type(value)
    return "__attrs_attrs__" in vars(cls) and all(hasattr(cls, fact) for fact in FACTS)


def name_of(trick: object) -> str:
    """The name of a trick or of its class: the class's name in snake case.

    Capitals around one small letter are one abbreviation, as in LoRA.

    >>> [name_of(type(cls, (), {})) for cls in ("ReduceOnPlateau", "LRFinder", "LoRA")]
    ['reduce_on_plateau', 'lr_finder', 'lora']
    """
    cls = trick if isinstance(trick, type) else type(trick)
    return re.sub(r"(?<=[a-z0-9])(?<!\b[A-Z][a-z])(?=[A-Z])|(?<=[A-Za-z0-9])(?=[A-Z][a-z])", "_", cls.__name__).lower()


def fields_of(trick: object) -> dict[str, attrs.Attribute[Any]]:
    """The settings of a trick or of its class, by name."""
    cls: Any = trick if isinstance(trick, type) else type(trick)
    return {attribute.name: attribute for attribute in attrs.fields(cls) if attribute.init}


def fresh(trick: T, **changes: Any) -> T:
    """A copy with the same settings, but for *changes*, and no state of any run."""
    return attrs.evolve(trick, **changes)  # type: ignore[misc]


def to_config(trick: object) -> dict[str, Any]:
    """The JSON form of a trick: its name and all its settings; classes and functions, alone or in a list, by name."""
    from trickbox.surgery.places import to_json  # torch, which listing tricks must not load

    return {"trick": name_of(trick), **{name: to_json(getattr(trick, name)) for name in fields_of(trick)}}


def make(cls: type[T], settings: dict[str, Any]) -> T:
    """Make a trick from JSON settings. Raises `ConfigError` for a setting that it does not have."""
    known = fields_of(cls)
    for name in settings:
        if name not in known:
            options = ", ".join(known) or "none"
            raise ConfigError(f"{name_of(cls)}: no setting {name!r}; it has {options}.{near(name, known)}")
    try:
        return cls(**settings)
    except TypeError as error:
        raise ConfigError(f"{name_of(cls)}: {error}") from error


def hooks_of(trick: object) -> list[str]:
    """The hooks that a trick or its class implements, in the order in which the loop fires them."""
    cls = trick if isinstance(trick, type) else type(trick)
    return [hook for hook in HOOKS if _marker(getattr(cls, hook, None)) is not None]


def is_off(trick: Any) -> bool:
    """Whether a trick stands at its declared off settings, at which it changes no bit of training."""
    return trick.off is not None and all(getattr(trick, name) == value for name, value in trick.off.items())


# -- checks when a class is defined ----------------------------------------------------------------------------------


def _check_fields(cls: type) -> None:
    for name, attribute in fields_of(cls).items():
        if attribute.alias != name:
            raise TypeError(f"{cls.__name__}: the setting {name!r} begins with an underscore; run state has init=False")
        if attribute.validator is None:
            raise TypeError(f"{cls.__name__}: the setting {name!r} needs a validator, such as interval('[0, 1)')")


def _check_hooks(cls: type) -> None:
    for name, member in inspect.getmembers_static(cls, _is_method):
        marker = _marker(member)
        if marker is None and name in HOOKS:
            where = f"{cls.__name__}.{name}"
            raise TypeError(f"{where} has the name of a hook: decorate it with trickbox.authoring.hookimpl")
        if marker is not None:
            _check_hook(cls, name, member, marker)


def _check_hook(cls: type, name: str, function: Callable[..., Any], marker: dict[str, Any]) -> None:
    where = f"{cls.__name__}.{name}"
    if name not in HOOKS:
        raise TypeError(f"{where}: there is no such hook; the hooks are {', '.join(HOOKS)}.{near(name, HOOKS)}")
    parameters = list(inspect.signature(function).parameters.values())
    plain = all(p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty for p in parameters)
    if [p.name for p in parameters] != ["self", "state"] or not plain:
        raise TypeError(f"{where}: a hook takes (self, state), got {inspect.signature(function)}")
    if marker["tryfirst"] or marker["trylast"]:
        raise TypeError(f"{where}: order is declared with `after`, not with tryfirst or trylast")
    if marker["wrapper"] and name not in PHASES:
        raise TypeError(f"{where}: only the phases {', '.join(PHASES)} can be wrapped; {name} is a moment")
    if bool(marker["wrapper"]) != inspect.isgeneratorfunction(function):
        raise TypeError(f"{where}: a wrapper is a generator with one yield, marked hookimpl(wrapper=True)")


def _is_method(member: object) -> bool:
    return inspect.isfunction(member) or isinstance(member, (staticmethod, classmethod))


def _marker(function: object) -> dict[str, Any] | None:
    marker = getattr(function, "trickbox_impl", None)
    return marker if isinstance(marker, dict) else None


def names(trick: object, fact: str) -> Iterable[str]:
    """The names in a fact of a trick, such as ``after``; one string counts as one name."""
    value = getattr(trick, fact)
    return (value,) if isinstance(value, str) else tuple(value)
