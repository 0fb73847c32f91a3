"""Verdicts are safe: together, over looks, for few pairs, for differences of any shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from trickbox.study import stats
from trickbox.study.stats import Array
from trickbox.study.verdicts import Inference, infer

numbers = some.lists(some.floats(-100, 100).map(lambda x: round(x, 3)), min_size=2, max_size=10)


def alone(differences: Any, margin: float, **settings: Any) -> Inference:
    (found,) = infer(np.asarray(differences, float).reshape(-1, 1), margin, **settings)
    return found


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([1.0, 1.1, 0.9, 1.2, 1.0, 1.1], "helps"),
        ([-1.0, -1.1, -0.9, -1.2, -1.0, -1.1], "hurts"),
        ([0.01, -0.02, 0.015, 0.0, 0.01, -0.01], "equivalent"),
        ([3.0, -4.0, 5.0, -3.5, 2.0, -1.0], "inconclusive"),
        ([1.0, 1.1, 0.9, 1.2, 1.0], "inconclusive"),
        ([0.0] * 6, "equivalent"),
        ([0.0] * 5, "inconclusive"),
        ([0.2] * 6, "helps"),
        ([5.0], "inconclusive"),
        ([], "inconclusive"),
    ],
)
def test_verdicts(differences: list[float], expected: str) -> None:
    assert alone(differences, margin=0.5).verdict == expected


def test_differences_without_spread_give_finite_numbers() -> None:
    same, rounding = alone([0.0] * 6, margin=1), alone([0.1 + 0.2, 0.3] * 4, margin=1)

    assert (same.ties, same.wins) == (6, 0)
    assert same.p == 1.0
    assert (same.low, same.high) == (0.0, 0.0)
    assert (rounding.ties, rounding.wins) == (0, 8)
    assert rounding.sd == 0
    assert rounding.p == pytest.approx(2 / 2**8)
    assert rounding.low == pytest.approx(0.3)
    assert math.isnan(rounding.detectable)


def test_wins_and_the_middle_are_told_beside_the_mean() -> None:
    found = alone([1.0, 2.0, 3.0, 0.0, -50.0, 2.0, 1.0, 2.0], margin=1)

    assert (found.wins, found.ties) == (6, 1)
    assert found.middle == pytest.approx(np.mean([1.0, 1.0, 2.0, 2.0]))


# -- how often it is wrong ---------------------------------------------------------------------------------------------

Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]


def collapsing(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """One run in ten ends far below."""
    return generator.standard_normal(shape) - 30.0 * (generator.random(shape) < 0.1)


VALUES: dict[str, Draw] = {
    "normal": lambda generator, shape: generator.standard_normal(shape),
    "discrete": lambda generator, shape: generator.binomial(120, 0.9, shape) / 1.2,
    "skewed": lambda generator, shape: -generator.exponential(size=shape),
    "collapsing": collapsing,
}


def studies(values: str, count: int, seeds: int, arms: int) -> Array:
    """Differences of studies in which no arm does anything: all values of a seed come from one distribution."""
    generator = np.random.default_rng(seeds * 100 + arms)
    drawn = VALUES[values](generator, (count, seeds, arms + 1))
    return drawn[..., 1:] - drawn[..., :1]


def limit(rate: float, count: int) -> float:
    """Where a rate of so many studies is more than chance above *rate* (one time in 1000)."""
    return rate + 3.1 * math.sqrt(rate * (1 - rate) / count)


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize(("seeds", "arms"), [(5, 1), (6, 5), (8, 1), (10, 10)])
def test_where_nothing_helps_one_study_in_twenty_says_otherwise(values: str, seeds: int, arms: int) -> None:
    count = 100
    called = [
        any(found.verdict in ("helps", "hurts") for found in infer(study, margin=1e-9))
        for study in studies(values, count, seeds, arms)
    ]

    assert np.mean(called) <= limit(0.05, count)


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("arms", [1, 10])
def test_looking_after_every_seed_and_stopping_when_it_helps_is_no_way_to_win(values: str, arms: int) -> None:
    count = 40
    called = [
        any(
            found.verdict in ("helps", "hurts")
            for n in range(6, 25, 3)
            for found in infer(study[:n], margin=1e-9, sequential=True)
        )
        for study in studies(values, count, 24, arms)
    ]

    assert np.mean(called) <= limit(0.05, count)


def test_a_sequence_has_the_closed_form_of_its_p_value() -> None:
    d = np.random.default_rng(2).normal(1.2, 1.0, 14)
    p = stats.sequence_p(d)

    half = stats.critical(14, alpha=p, sequential=True) * d.std(ddof=1) / math.sqrt(14)
    assert half == pytest.approx(abs(d.mean()))
    assert p > stats.sign_flip(d)


def test_an_effect_of_the_margin_is_rarely_called_equivalent_whatever_is_beside_it() -> None:
    generator = np.random.default_rng(5)
    called = [
        any(found.verdict == "equivalent" for found in infer(generator.normal(0.5, 0.2, (8, 4)), margin=0.5))
        for _ in range(300)
    ]

    assert np.mean(called) <= limit(0.05, 300)


def test_an_effect_of_nothing_is_called_equivalent_where_there_are_seeds_enough() -> None:
    generator = np.random.default_rng(6)
    called = [infer(generator.normal(0, 0.3, (12, 1)), margin=0.5)[0].verdict == "equivalent" for _ in range(100)]

    assert np.mean(called) > 0.9


def test_comparisons_that_were_asked_before_make_every_p_larger() -> None:
    d = np.random.default_rng(0).normal(1.0, 1.0, (10, 2))

    few, many = infer(d, margin=1), infer(d, margin=1, asked=8)

    assert [found.p for found in many] == pytest.approx([min(1.0, 4 * found.p) for found in few])
    assert many[0].detectable > few[0].detectable


# -- properties --------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(numbers, some.randoms(use_true_random=False))
def test_order_of_the_seeds_does_not_matter(d: list[float], random: object) -> None:
    shuffled = sorted(d, key=lambda _: random.random())  # type: ignore[attr-defined]

    first, second = alone(d, margin=1), alone(shuffled, margin=1)

    assert first.verdict == second.verdict
    assert (first.mean, first.low, first.p) == pytest.approx((second.mean, second.low, second.p), nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(numbers)
def test_turning_all_signs_turns_the_result(d: list[float]) -> None:
    first, second = alone(d, margin=1), alone([-x for x in d], margin=1)

    mirror = {"helps": "hurts", "hurts": "helps"}
    assert second.verdict == mirror.get(first.verdict, first.verdict)
    assert (second.low, second.high, second.p) == pytest.approx((-first.high, -first.low, first.p))


@settings(max_examples=40, deadline=None)
@given(numbers, some.floats(0.01, 100))
def test_a_change_of_unit_changes_no_verdict(d: list[float], scale: float) -> None:
    scaled = alone([scale * x for x in d], margin=scale)

    assert scaled.verdict == alone(d, margin=1).verdict
