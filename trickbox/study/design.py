"""Designs: which arms a study trains, and which of them each is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from attrs import field, frozen

from trickbox import catalog
from trickbox.errors import ConfigError, near
from trickbox.trick import name_of

BASELINE = "baseline"
PLACEBO = "placebo"


def _resolved(entries: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(
        (entry[0], catalog.resolve(entry[1])) if _is_pair(entry) else catalog.resolve(entry) for entry in entries
    )


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, (tuple, list)) and len(entry) == 2 and isinstance(entry[0], str)


@frozen(eq=False)
class Arm:
    """One way to train: some tricks, compared with the arm named *control* over the same seeds.

    *tricks* takes each of the three spellings, or ``(alias, trick)`` pairs. *overrides* are task fields that the arm
    changes, such as ``{"lr": 0.03}``; give its control the same ones unless they are the question. ``control=None``:
    compared with nothing.

    >>> Arm("faster", overrides={"lr": 0.03}).control
    'baseline'
    """

    name: str
    tricks: tuple[Any, ...] = field(default=(), converter=_resolved)
    control: str | None = BASELINE
    overrides: Mapping[str, Any] = field(factory=dict)


def add_one(tricks: Iterable[Any]) -> list[Arm]:
    """Ask of each trick what it does alone: a baseline, a placebo, and one arm for each of *tricks*.

    An entry is a trick in any spelling, an ``(alias, trick)`` pair, or a whole `Arm`, which passes through.
    """
    entries = list(tricks)
    return [
        Arm(BASELINE, control=None),
        Arm(PLACEBO, [PLACEBO]),
        *(Arm(name, [trick]) for name, trick in _named(entries)),
        *(entry for entry in entries if isinstance(entry, Arm)),
    ]


def leave_one_out(tricks: Iterable[Any]) -> list[Arm]:
    """Ask of each trick whether it is missed: all tricks together, and all but one, each compared with all.

    A trick that earns its place makes its arm ``without <trick>`` hurt. Entries as for `add_one`.
    """
    entries = list(tricks)
    named = _named(entries)
    everything = [trick for _, trick in named]
    rest = [(name, [trick for other, trick in named if other != name]) for name, _ in named]
    return [
        Arm(BASELINE, control=None),
        Arm(PLACEBO, [PLACEBO]),
        Arm("all", everything),
        *(Arm(f"without {name}", others, control="all") for name, others in rest),
        *(entry for entry in entries if isinstance(entry, Arm)),
    ]


DESIGNS: dict[str, Callable[[Iterable[Any]], list[Arm]]] = {"add_one": add_one, "leave_one_out": leave_one_out}


def _named(entries: Sequence[Any]) -> list[tuple[str, Any]]:
    """Give every trick among *entries* a name: its alias or its own, with ``#2`` for the second of a name."""
    taken = [BASELINE, PLACEBO, *(entry.name for entry in entries if isinstance(entry, Arm))]
    named = []
    for entry in entries:
        if isinstance(entry, Arm):
            continue
        alias, spelling = entry if _is_pair(entry) else (None, entry)
        trick = catalog.resolve(spelling)
        name = alias or name_of(trick)
        count = taken.count(name) + 1
        taken.append(name)
        named.append((name if count == 1 else f"{name}#{count}", trick))
    return named


def check(arms: Sequence[Arm]) -> None:
    """Raise `ConfigError` where arms share a name, a control is no arm, or nothing is compared."""
    names = [arm.name for arm in arms]
    for arm in arms:
        if names.count(arm.name) > 1:
            raise ConfigError(f"study: two arms are named {arm.name!r}; give one of them another name")
        if arm.control is not None and arm.control not in names:
            hint = f"the arms are {', '.join(names)}.{near(arm.control, names)}"
            raise ConfigError(f"study: arm {arm.name!r} has control {arm.control!r}, which is no arm; {hint}")
        if arm.control == arm.name:
            raise ConfigError(f"study: arm {arm.name!r} is its own control; compare it with another or with None")
    if all(arm.control is None for arm in arms):
        raise ConfigError("study: no arm has a control, so nothing would be compared; give one arm a control")
