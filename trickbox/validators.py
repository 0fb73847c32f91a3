"""Validators for the settings of tricks: each says what it wanted, what it got, and of which trick."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import attrs

from trickbox.errors import ConfigError, near
from trickbox.trick import fields_of, name_of

Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def interval(text: str) -> Validator:
    """A number in an interval, written the usual way: ``interval("[0, 1)")``, ``interval("(0, inf)")``."""
    match = re.fullmatch(r"([\[(])\s*(\S+)\s*,\s*(\S+)\s*([\])])", text)
    assert match, text
    low, high = float(match[2]), float(match[3])

    def inside(value: float) -> bool:
        return (value >= low if match[1] == "[" else value > low) and (
            value <= high if match[4] == "]" else value < high
        )

    return _validator(f"in {text}", lambda value: _is_number(value) and inside(value))


def integer(minimum: int) -> Validator:
    """A whole number of at least *minimum*."""
    return _validator(
        f"a whole number of at least {minimum}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= minimum,
    )


def choice(*options: str) -> Validator:
    """One of the given words."""

    def check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value not in options:
            hint = near(value, options) if isinstance(value, str) else ""
            raise ConfigError(_message(instance, attribute, f"one of {', '.join(options)}", value) + hint)

    return check


def flag() -> Validator:
    """True or False."""
    return _validator("True or False", lambda value: isinstance(value, bool))


def text() -> Validator:
    """A string that is not empty."""
    return _validator("a non-empty string", lambda value: isinstance(value, str) and bool(value))


def places() -> Validator:
    """Where to act, in the grammar of `trickbox.surgery.places`, or None. The value stays as it was written."""

    def check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        from trickbox.surgery.places import fault  # torch, which listing tricks must not load

        if value is not None and (wrong := fault(value)):
            raise ConfigError(_message(instance, attribute, *wrong))

    return check


def side() -> Validator:
    """``output``, or ``input`` where the setting `at` says of what: by itself a trick acts on outputs."""
    word = choice("output", "input")

    def check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        word(instance, attribute, value)
        if value == "input" and instance.at is None:
            raise ConfigError(f"{name_of(instance)}: {attribute.name}='input' needs at=, which says of what")

    return check


@attrs.frozen
class ByDepth:
    """A validator: what `number` takes, or a function of the depth, from 0.0 to 1.0, that gives this."""

    number: Validator

    def __call__(self, instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not callable(value):
            self.number(instance, attribute, value)


def by_depth(text: str) -> Validator:
    """A number in an interval, or a function that gives one for a depth, from 0.0 to 1.0; see `at_depth`."""
    return ByDepth(interval(text))


def at_depth(trick: Any, name: str, depth: float) -> float:
    """The setting of that name at a depth, where `by_depth` validates it. Raises `ConfigError` for a wrong value.

    >>> from attrs import field
    >>> from trickbox.trick import trick
    >>> @trick
    ... class Shade:
    ...     '''Multiply by a factor.'''
    ...     p: float = field(default=0.5, validator=by_depth("[0, 1)"))
    >>> at_depth(Shade(0.3), "p", 0.5), at_depth(Shade(lambda depth: depth / 2), "p", 0.5)
    (0.3, 0.25)
    """
    value, attribute = getattr(trick, name), fields_of(trick)[name]
    if not callable(value):
        return float(value)
    assert isinstance(attribute.validator, ByDepth)
    found = value(depth)
    try:
        attribute.validator.number(trick, attribute, found)
    except ConfigError as error:
        raise ConfigError(f"{error} at depth {depth:.2f}") from error
    return float(found)


def _validator(expectation: str, test: Callable[[Any], bool]) -> Validator:
    def check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not test(value):
            raise ConfigError(_message(instance, attribute, expectation, value))

    return check


def _message(instance: Any, attribute: attrs.Attribute[Any], expectation: str, value: Any) -> str:
    return f"{name_of(instance)}: {attribute.name} must be {expectation}, got {value!r}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
