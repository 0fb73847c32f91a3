"""Designs: which arms a study trains, and what it asks of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import evolve, field, frozen

from trickbox import catalog
from trickbox.box import Box
from trickbox.errors import ConfigError, near
from trickbox.trick import name_of

BASELINE = "baseline"
PLACEBO = "placebo"

EFFECT, INTERACTION, ALONE, TREND = "effect", "interaction", "alone", "trend"
"""Families: the questions of one are judged together."""


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


@frozen(eq=False)
class Question:
    """One thing that a study asks: for each seed, a sum of the arms' values with *weights* that cancel out.

    Whatever can be asked of arms is such a sum: one arm against another, the mean effect of a trick over all
    combinations, what two do together beyond what each does. Positive is better. The questions of one *family* are
    judged together. *trick* is the ``(name, trick)`` of an effect that is averaged over arms.

    >>> Question("norm", {"norm": 1.0, "baseline": -1.0}).control
    'baseline'
    """

    name: str
    weights: Mapping[str, float]
    family: str = EFFECT
    trick: tuple[str, Any] | None = None

    @property
    def is_pair(self) -> bool:
        """Whether it compares one arm with one other."""
        return sorted(self.weights.values()) == [-1.0, 1.0]

    @property
    def arm(self) -> str | None:
        """The arm that is compared, where it is one."""
        return self.arms[0] if self.is_pair else None

    @property
    def control(self) -> str | None:
        """The arm that it is compared with, where it is one."""
        return self.controls[0] if self.is_pair else None

    @property
    def arms(self) -> list[str]:
        """The arms that count for it."""
        return [arm for arm, weight in self.weights.items() if weight > 0]

    @property
    def controls(self) -> list[str]:
        """The arms that count against it."""
        return [arm for arm, weight in self.weights.items() if weight < 0]


@frozen(eq=False)
class Design:
    """What a study trains and asks. *notes* are what must be known to read the answers, such as an alias table."""

    arms: tuple[Arm, ...]
    questions: tuple[Question, ...]
    notes: tuple[str, ...] = ()


def add_one(tricks: Iterable[Any]) -> Design:
    """Ask of each trick what it does alone: a baseline, a placebo, and one arm for each of *tricks*.

    An entry is a trick in any spelling, an ``(alias, trick)`` pair, or a whole `Arm`, which passes through.
    """
    entries = list(tricks)
    return paired([*standing(), *(Arm(name, [trick]) for name, trick in named(entries)), *own(entries)])


def leave_one_out(tricks: Iterable[Any]) -> Design:
    """Ask of each trick whether it is missed: all tricks together, and all but one, each compared with all.

    A trick that earns its place makes its arm ``without <trick>`` hurt. Entries as for `add_one`.
    """
    entries = list(tricks)
    all_of_them = named(entries)
    everything = Arm("all", [trick for _, trick in all_of_them])
    rest = [
        Arm(f"without {name}", [trick for other, trick in all_of_them if other != name], control="all")
        for name, _ in all_of_them
    ]
    return paired([*standing(), everything, *rest, *own(entries)])


def paired(arms: Iterable[Arm]) -> Design:
    """Ask of every arm that has a control how it compares with it. Raises `ConfigError` where that cannot be asked."""
    arms = tuple(arms)
    check(arms)
    questions = [Question(arm.name, {arm.name: 1.0, arm.control: -1.0}) for arm in arms if arm.control is not None]
    return Design(arms, tuple(questions))


def winner(arms: Iterable[Arm], helping: Sequence[Question]) -> tuple[Arm, Arm] | None:
    """The arm to confirm, behind its control; *helping* are the questions that were answered so, the best first.

    The best arm that helps; where effects are averaged, all tricks that help together, as far as they can be together.
    None where nothing helps.
    """
    averaged = [question.trick for question in helping if question.trick is not None]
    if averaged:
        together: list[tuple[str, Any]] = []
        for trick in averaged:
            together += [] if conflict([*together, trick]) else [trick]
        return Arm(BASELINE, control=None), Arm(" + ".join(name for name, _ in together), together)
    by_name = {arm.name: arm for arm in arms}
    pairs = [(question.control, question.arm) for question in helping if question.is_pair]
    if not pairs:
        return None
    control, arm = (by_name[str(name)] for name in pairs[0])
    return evolve(control, control=None), arm


def standing() -> tuple[Arm, Arm]:
    """The two arms of every study: nothing, and a trick that does nothing."""
    return Arm(BASELINE, control=None), Arm(PLACEBO, [PLACEBO])


def own(entries: Iterable[Any]) -> list[Arm]:
    """The whole arms among *entries*."""
    return [entry for entry in entries if isinstance(entry, Arm)]


def named(entries: Sequence[Any]) -> list[tuple[str, Any]]:
    """Give every trick among *entries* a name: its alias or its own, with ``#2`` for the second of a name."""
    taken = [BASELINE, PLACEBO, *(arm.name for arm in own(entries))]
    found = []
    for entry in entries:
        if isinstance(entry, Arm):
            continue
        alias, spelling = entry if _is_pair(entry) else (None, entry)
        trick = catalog.resolve(spelling)
        name = alias or name_of(trick)
        count = taken.count(name) + 1
        taken.append(name)
        found.append((name if count == 1 else f"{name}#{count}", trick))
    return found


def conflict(tricks: Iterable[Any]) -> str | None:
    """Say why some tricks cannot be in one run, by what they declare themselves; None where they can.

    >>> conflict(["batch_norm", "layer_norm"])
    'batch_norm and layer_norm cannot be in the same run; drop one of them'
    """
    try:
        Box(tricks)
    except ConfigError as error:
        return str(error)
    return None


def check(arms: Sequence[Arm]) -> None:
    """Raise `ConfigError` where arms share a name, a control is no arm, tricks conflict, or nothing is compared."""
    names = [arm.name for arm in arms]
    for arm in arms:
        if names.count(arm.name) > 1:
            raise ConfigError(f"study: two arms are named {arm.name!r}; give one of them another name")
        if arm.control is not None and arm.control not in names:
            hint = f"the arms are {', '.join(names)}.{near(arm.control, names)}"
            raise ConfigError(f"study: arm {arm.name!r} has control {arm.control!r}, which is no arm; {hint}")
        if arm.control == arm.name:
            raise ConfigError(f"study: arm {arm.name!r} is its own control; compare it with another or with None")
        if reason := conflict(arm.tricks):
            raise ConfigError(f"study: arm {arm.name!r}: {reason}")
    if all(arm.control is None for arm in arms):
        raise ConfigError("study: no arm has a control, so nothing would be compared; give one arm a control")
