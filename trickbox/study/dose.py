"""The design that asks how much of a trick is right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from trickbox import catalog
from trickbox.errors import ConfigError
from trickbox.study.design import BASELINE, TREND, Arm, Design, Question, own, paired, standing
from trickbox.trick import fresh, is_off, name_of


def dose(tricks: Iterable[Any]) -> Design:
    """Ask how much of a trick is right: an arm for each value of one setting, such as ``dropout(p=[0.1, 0.3, 0.5])``.

    Each arm is compared with the baseline, which is a level itself where the trick's off setting is a number. The
    *trend* is what a straight line through all levels gains from the least to the largest; the *bend*, of three levels
    or more, how far a curve rises above the line between its ends. Raises `ConfigError` for a trick without such a
    list.
    """
    entries = list(tricks)
    arms: list[Arm] = []
    trends: list[Question] = []
    for entry in entries:
        if isinstance(entry, Arm):
            continue
        levels, knob, kind = _levels(entry)
        arms += levels.values()
        trends += _trend(f"{kind} {knob}", _with_off(levels, knob))
    compared = paired([*standing(), *arms, *own(entries)])
    return Design(compared.arms, (*compared.questions, *trends))


def _levels(entry: Any) -> tuple[dict[float, Arm], str, str]:
    """The arms of a trick by level, its setting with a list of numbers, and its name."""
    settings = dict(entry) if isinstance(entry, dict) else {}
    lists = [name for name, value in settings.items() if isinstance(value, (list, tuple)) and _are_numbers(value)]
    if len(lists) != 1 or len(set(settings[lists[0]])) < 2:
        raise ConfigError(
            f"study: dose needs one setting with several numbers, such as dropout(p=[0.1, 0.3]), got {entry!r}"
        )
    (knob,) = lists
    made = {level: {**settings, knob: level} for level in sorted(set(settings[knob]))}
    kind = name_of(catalog.resolve(made[min(made)]))
    return {level: Arm(f"{kind} {knob}={level:g}", [spelling]) for level, spelling in made.items()}, knob, kind


def _are_numbers(values: Iterable[Any]) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def _with_off(levels: Mapping[float, Arm], knob: str) -> dict[str, float]:
    """The level of every arm, the baseline's included where the trick is off at a number."""
    found = {arm.name: float(level) for level, arm in levels.items()}
    (trick,) = next(iter(levels.values())).tricks
    zero: Any = (trick.off or {}).get(knob)
    if zero in levels or not _are_numbers([zero]) or not is_off(fresh(trick, **{knob: zero})):
        return found
    return {BASELINE: float(zero), **found}


def _trend(name: str, levels: Mapping[str, float]) -> list[Question]:
    """The least-squares line through the levels, from the first to the last, and the bend of a parabola."""
    values = np.array(list(levels.values()))
    place = (values - values.min()) / np.ptp(values)
    line = np.linalg.pinv(np.vander(place, 2, increasing=True))[1]
    asked = [Question(f"{name}, trend", dict(zip(levels, line.tolist(), strict=True)), TREND)]
    if len(levels) > 2:
        bend = -np.linalg.pinv(np.vander(place, 3, increasing=True))[2] / 4
        asked.append(Question(f"{name}, bend", dict(zip(levels, bend.tolist(), strict=True)), TREND))
    return asked
