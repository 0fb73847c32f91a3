"""What a study answers as a whole: in one sentence, as advice, and by verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from trickbox.study.design import EFFECT, INTERACTION, PLACEBO, TREND
from trickbox.study.words import TOGETHER, costs, size

if TYPE_CHECKING:
    from trickbox.study.comparison import Comparison
from trickbox.study.outcome import Outcome

_COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def count(number: int) -> str:
    """A small number as a word.

    >>> count(3), count(30)
    ('three', '30')
    """
    return _COUNTS[number] if number < len(_COUNTS) else str(number)


def headline(outcome: Outcome) -> str:
    """Say in one sentence what came out of a study."""
    asked = _asked(outcome, EFFECT)
    groups = {verdict: [each for each in asked if each.verdict == verdict] for verdict in _ANSWERS}
    seeds = f"with {count(len(outcome.seeds))} seeds"
    said = _best(groups["helps"])
    for verdict, one, several in (
        ("hurts", "hurts", "hurt"),
        ("equivalent", "makes no difference that matters", "make no difference that matters"),
        ("inconclusive", f"cannot be told apart from nothing {seeds}", f"cannot be told apart from nothing {seeds}"),
    ):
        if group := groups[verdict]:
            said.append(f"{group[0].name} {one}" if len(group) == 1 else f"{count(len(group))} {several}")
    return f"{'; '.join(said)}."


def _best(helping: list[Comparison]) -> list[str]:
    if not helping:
        return ["nothing was found to help"]
    best = max(helping, key=lambda each: each.inference.mean)
    more = len(helping) - 1
    others = f", and {count(more)} more help{'s' if more == 1 else ''}" if more else ""
    return [f"{best.name} helps: {size(best, best.inference)}{others}"]


def _asked(outcome: Outcome, *families: str) -> list[Comparison]:
    return [each for each in outcome.comparisons if each.name != PLACEBO and each.question.family in families]


def advice(outcome: Outcome, confirmed: Outcome | None) -> str:
    """Say what to do, and what it costs."""
    helping = [each for each in _asked(outcome, EFFECT) if each.verdict == "helps"]
    if not helping:
        return "Nothing to recommend: leave the training as it is, or look with more seeds."
    best = max(helping, key=lambda each: each.inference.mean)
    if confirmed is None:
        return f"Worth a try: {best.name}. {_price(best)}Nothing is confirmed on fresh seeds yet."
    (asked,) = confirmed.comparisons
    if asked.with_failures.verdict == "helps":
        return f"Use {asked.name}. {_price(best) if asked.name == best.name else ''}".rstrip()
    return f"Do not count on {asked.name}: it looked best, and fresh seeds do not confirm it."


def _price(comparison: Comparison) -> str:
    """What an arm costs as a sentence; nothing where that was not measured."""
    if math.isnan(comparison.time_ratio):
        return ""
    price = "; ".join(costs(comparison)) or "it costs nothing that could be measured"
    return f"{price[0].upper()}{price[1:]}. "


def answer(outcome: Outcome) -> list[str]:
    """Say what came out, the clearest first: a line for each verdict that was reached, and whose runs failed."""
    uneven = [
        f"{each.name} {each.failures[0]} of {each.runs[0]}, its control {each.failures[1]} of {each.runs[1]}"
        for each in _asked(outcome, EFFECT)
        if each.failures[0] * each.runs[1] != each.failures[1] * each.runs[0]
    ]
    failed = [f"Failed runs: {'; '.join(uneven)}."] * bool(uneven)
    effects, together = _asked(outcome, EFFECT, TREND), _asked(outcome, INTERACTION)
    return [*_grouped(effects, _ANSWERS), *_grouped(together, TOGETHER), *failed]


def _grouped(comparisons: list[Comparison], answers: Mapping[str, str]) -> list[str]:
    groups = {verdict: [each for each in comparisons if each.verdict == verdict] for verdict in answers}
    return [
        f"{answers[verdict]}: {', '.join(_in_short(each) for each in sorted(group, key=_from_best))}."
        for verdict, group in groups.items()
        if group
    ]


def _from_best(comparison: Comparison) -> float:
    return -comparison.inference.mean


_ANSWERS = {
    "helps": "Helps",
    "hurts": "Hurts",
    "equivalent": "Makes no difference that matters",
    "inconclusive": "Not to be told apart from nothing with so many seeds",
}


def _in_short(comparison: Comparison) -> str:
    """The name, and the effect where there is one."""
    if comparison.verdict in ("equivalent", "inconclusive"):
        return comparison.name
    return f"{comparison.name} {size(comparison, comparison.inference)}".rstrip()


def confirmation(confirmed: Outcome | None) -> list[str]:
    """Say what the winner did on fresh seeds and the test set, where that was asked; runs that failed count there."""
    if confirmed is None:
        return []
    (asked,) = confirmed.comparisons
    found = asked.with_failures
    said = {"helps": "confirmed", "hurts": "turned around"}.get(found.verdict, f"not confirmed: {found.verdict}")
    times = "read once" if confirmed.looks.count == 1 else f"read {confirmed.looks.count} times"
    where = f" and the test set, {times}" if is_on_test_set(confirmed) else ""
    failed = ", failed runs counted as guessing" if any(asked.failures) else ""
    return [f"On fresh seeds{where}: {asked.name} {size(asked, found)}{failed}, {said}."]


def is_on_test_set(outcome: Outcome) -> bool:
    """Whether values are of the test set; of a task that has none they are of the comparison set, on fresh seeds."""
    return outcome.final and any(run.get("set") == "test" for run in outcome.results.values())
