"""Designs that train combinations of tricks: what each does on average, and which of them get on with each other.

An effect that is averaged over all combinations uses every run, so it is known as well as from (k + 1) / 2 times as
many runs that try k tricks one by one, and it holds next to the others.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from attrs import evolve

from trickbox.errors import ConfigError
from trickbox.study.design import (
    ALONE,
    BASELINE,
    EFFECT,
    INTERACTION,
    Arm,
    Design,
    Question,
    conflict,
    named,
    own,
    paired,
    standing,
)

Cell = frozenset[str]
"""The names of the tricks that are on."""

FULL_UP_TO = 4
SHAPLEY_UP_TO = 6
_GENERATORS = {5: ["ABCD"], 6: ["ABC", "BCD"], 7: ["ABC", "BCD", "ACD"], 8: ["BCD", "ACD", "ABC", "ABD"]}
"""Of 16 combinations: the last columns as products of the first four (Box, Hunter & Hunter 2005)."""
_PLACKETT_BURMAN = {11: "++-+++---+-", 19: "++--++++-+-+----++-"}
"""The first row for so many columns (Plackett & Burman 1946); the others are its rotations, and one of minus signs."""


def factorial(tricks: Iterable[Any]) -> Design:
    """Ask of each trick what it does on average over the others, and of each pair whether they get on.

    Up to four tricks: every combination that the tricks' own declarations allow. Five to eight: 16 combinations of
    which every effect stands clear of all pairs (resolution IV; of five tricks V), with an alias table of the pairs
    that cannot be told apart. Raises `ConfigError` for more tricks (see `screen`), for fewer than two, and for
    conflicts among more than four.
    """
    factors = _factors(tricks, "factorial", 2, 8)
    if len(factors) > FULL_UP_TO:
        return _fraction(factors)
    cells = [cell for cell in _subsets(factors) if _is_feasible(cell, factors)]
    asked = [*_toggles(factors, cells), *_pairs(factors, cells)]
    return _design(factors, cells, asked)


def screen(tricks: Iterable[Any]) -> Design:
    """Ask of many tricks at once what each does on average: 24 combinations for up to 11 tricks, 40 for up to 19.

    Plackett and Burman's design (1946) with its mirror image, so that no effect is mixed up with a pair of others; the
    pairs themselves are not told apart. Raises `ConfigError` for fewer than five tricks, more than 19, and conflicts.
    """
    factors = _factors(tricks, "screen", 5, max(_PLACKETT_BURMAN))
    _refuse_conflicts(factors, "screen")
    half = _plackett_burman(min(columns for columns in _PLACKETT_BURMAN if columns >= len(factors)))
    signs = np.vstack([half, -half])[:, : len(factors)]
    cells = [_cell(factors, row) for row in signs]
    asked = [_averaged(name, factors, cells, signs[:, column]) for column, name in enumerate(factors)]
    return _design(factors, cells, asked, ["Pairs: a screen does not tell which tricks get on; ask a factorial of few"])


def shapley(tricks: Iterable[Any]) -> Design:
    """Ask how much of what all tricks gain together each of them deserves (Shapley 1953): shares that add up.

    Trains all combinations of two to six tricks. Whether a trick can be left out is another question: see
    `leave_one_out`. Raises `ConfigError` for more tricks and for conflicts.
    """
    factors = _factors(tricks, "shapley", 2, SHAPLEY_UP_TO)
    _refuse_conflicts(factors, "shapley")
    cells = list(_subsets(factors))
    asked = [_credit(name, factors, cells) for name in factors]
    return _design(factors, cells, asked, ["Shares: the credits add up to what all tricks gain together"])


# -- arms and questions ----------------------------------------------------------------------------------------------


def _factors(tricks: Iterable[Any], design: str, least: int, most: int) -> dict[str, Any]:
    """The tricks by name. Raises `ConfigError` for too few, too many, and whole arms."""
    entries = list(tricks)
    if own(entries):
        raise ConfigError(f"study: {design} combines tricks, it takes no whole Arm; got {own(entries)[0].name!r}")
    factors = dict(named(entries))
    if not least <= len(factors) <= most:
        more = "; ask a screen of more" if design == "factorial" and len(factors) > most else ""
        raise ConfigError(f"study: {design} takes {least} to {most} tricks, got {len(factors)}{more}")
    return factors


def _design(
    factors: dict[str, Any], cells: Iterable[Cell], asked: Iterable[Question], notes: Iterable[str] = ()
) -> Design:
    """All cells as arms, small ones first; what is asked, and besides of every trick what it does alone, if known."""
    baseline, placebo = standing()
    names = list(factors)
    distinct = sorted(set(cells) - {frozenset()}, key=lambda cell: (len(cell), sorted(map(names.index, cell))))
    arms = [_arm(cell, factors) for cell in distinct]
    compared = paired([baseline, placebo, *arms]).questions
    alone = [evolve(question, family=ALONE) for question in compared[1:]]
    return Design((baseline, placebo, *arms), (compared[0], *asked, *alone), tuple(notes))


def _arm(cell: Cell, factors: dict[str, Any]) -> Arm:
    tricks = [(name, trick) for name, trick in factors.items() if name in cell]
    return Arm(_name(cell, factors), tricks, control=BASELINE if len(cell) == 1 else None)


def _name(cell: Cell, factors: Iterable[str]) -> str:
    return " + ".join(name for name in factors if name in cell) or BASELINE


def _averaged(name: str, factors: dict[str, Any], cells: Sequence[Cell], signs: Iterable[float]) -> Question:
    """The effect of a trick: the mean of the half of the cells that has it, less that of the other half."""
    weights = [2 * sign / len(cells) for sign in signs]
    return _question(f"{name} overall", zip(cells, weights, strict=True), factors, EFFECT, name)


def _question(
    name: str, weighted: Iterable[tuple[Cell, float]], factors: dict[str, Any], family: str, of: str | None = None
) -> Question:
    weights: dict[str, float] = defaultdict(float)
    for cell, weight in weighted:
        weights[_name(cell, factors)] += weight
    trick = None if of is None else (of, factors[of])
    return Question(name, {arm: weight for arm, weight in weights.items() if weight}, family, trick)


# -- all combinations ------------------------------------------------------------------------------------------------


def _subsets(names: Iterable[str]) -> Iterable[Cell]:
    names = list(names)
    return (frozenset(cell) for size in range(len(names) + 1) for cell in itertools.combinations(names, size))


def _is_feasible(cell: Cell, factors: Mapping[str, Any]) -> bool:
    return conflict([(name, trick) for name, trick in factors.items() if name in cell]) is None


def _toggles(factors: dict[str, Any], cells: list[Cell]) -> list[Question]:
    """For each trick the mean of what it adds, over all cells that it can be added to."""
    asked = []
    for name in factors:
        pairs = [(cell | {name}, cell) for cell in cells if name not in cell and cell | {name} in cells]
        if not pairs:
            raise ConfigError(f"study: factorial: {name} cannot be switched on and off next to any of the others")
        weighted = [pair for on, off in pairs for pair in ((on, 1 / len(pairs)), (off, -1 / len(pairs)))]
        asked.append(_question(f"{name} overall", weighted, factors, EFFECT, name))
    return asked


def _pairs(factors: dict[str, Any], cells: list[Cell]) -> list[Question]:
    """For each pair the mean of what both add beyond what each adds, over all cells where that can be told."""
    asked = []
    for first, second in itertools.combinations(factors, 2):
        both = frozenset((first, second))
        corners = [frozenset[str](), frozenset((first,)), frozenset((second,)), both]
        squares = [cell for cell in cells if not cell & both and {cell | corner for corner in corners} <= {*cells}]
        share = 1 / max(len(squares), 1)
        weighted = [
            (cell | corner, sign * share)
            for cell in squares
            for corner, sign in zip(corners, (1, -1, -1, 1), strict=True)
        ]
        asked += [_question(f"{first} x {second}", weighted, factors, INTERACTION)] if squares else []
    return asked


def _credit(name: str, factors: dict[str, Any], cells: list[Cell]) -> Question:
    """The mean of what a trick adds, over all orders in which tricks can be put on."""
    count = len(factors)
    weighted = []
    for cell in cells:
        if name not in cell:
            share = math.factorial(len(cell)) * math.factorial(count - len(cell) - 1) / math.factorial(count)
            weighted += [(cell | {name}, share), (cell, -share)]
    return _question(f"{name}, its share", weighted, factors, EFFECT, name)


# -- fractions -------------------------------------------------------------------------------------------------------


def _refuse_conflicts(factors: dict[str, Any], design: str) -> None:
    for pair in itertools.combinations(factors.items(), 2):
        if reason := conflict(pair):
            raise ConfigError(
                f"study: {design}: {reason}; a factorial of at most {FULL_UP_TO} tricks can leave pairs out"
            )


def _cell(names: Iterable[str], signs: Iterable[float]) -> Cell:
    return frozenset(name for name, sign in zip(names, signs, strict=True) if sign > 0)


def _fraction(factors: dict[str, Any]) -> Design:
    _refuse_conflicts(factors, "factorial of more than four")
    base = np.array(list(itertools.product((-1, 1), repeat=4)))
    # The product of an even number is turned around, so that the combination of nothing, the baseline, is among them.
    products = [
        base[:, ["ABCD".index(letter) for letter in word]].prod(1) * (-1) ** (len(word) + 1)
        for word in _GENERATORS[len(factors)]
    ]
    signs = np.column_stack([base, *products])
    cells = [_cell(factors, row) for row in signs]
    asked = [_averaged(name, factors, cells, signs[:, column]) for column, name in enumerate(factors)]
    notes = []
    for column, pairs in _aliases(signs, list(factors)).items():
        weights = [4 * sign / len(cells) for sign in column]
        asked.append(_question(pairs[0], zip(cells, weights, strict=True), factors, INTERACTION))
        if len(pairs) > 1:
            notes.append(f"Alias: {pairs[0]} cannot be told from {', '.join(pairs[1:])}; what is shown is their sum")
    return _design(factors, cells, asked, notes)


def _aliases(signs: Any, names: list[str]) -> dict[tuple[int, ...], list[str]]:
    """The pairs of columns by their product: those with one product cannot be told apart."""
    found: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for first, second in itertools.combinations(range(len(names)), 2):
        product = tuple((signs[:, first] * signs[:, second]).tolist())
        found[product].append(f"{names[first]} x {names[second]}")
    return found


def _plackett_burman(columns: int) -> Any:
    row = [1 if sign == "+" else -1 for sign in _PLACKETT_BURMAN[columns]]
    return np.array([row[-turn:] + row[:-turn] for turn in range(columns)] + [[-1] * columns])
