"""The statistics keep what they promise: against scipy, by simulation, and as properties of any data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from trickbox.study import stats


@pytest.mark.parametrize("n", [2, 3, 6, 10, 25])
def test_the_interval_is_that_of_the_paired_t_test(n: int) -> None:
    control, treated = np.random.default_rng(n).normal(80, 5, (2, n))

    expected = scipy.stats.ttest_rel(treated, control).confidence_interval(0.95)

    assert stats.interval(treated - control) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("n", [4, 6, 9, 12])
def test_sign_flip_is_scipys_exact_permutation_test(n: int) -> None:
    d = np.random.default_rng(n).normal(0.5, 1, n)

    expected = scipy.stats.permutation_test((d,), np.mean, permutation_type="samples", vectorized=True).pvalue

    assert stats.sign_flip(d) == pytest.approx(expected)


def test_sign_flip_above_thirteen_pairs_draws_and_never_gives_zero() -> None:
    d = np.random.default_rng(0).normal(0.5, 1, 20)

    exact = scipy.stats.ttest_1samp(d, 0).pvalue

    assert stats.sign_flip(d) == pytest.approx(exact, abs=0.02)
    assert stats.sign_flip(d) == stats.sign_flip(d)
    assert stats.sign_flip(np.linspace(9, 10, 20)) >= 1e-4


def test_max_t_adjusts_by_definition() -> None:
    d = np.random.default_rng(3).normal((0.2, 0.8, 1.5), 1, (6, 3))

    t = np.abs([scipy.stats.ttest_1samp(signs[:, None] * d, 0).statistic for signs in stats.sign_patterns(6)])
    order = np.argsort(-t[0])
    steps = [(t[:, order[i:]].max(1) >= t[0, order[i]] - 1e-9).mean() for i in range(3)]

    assert stats.max_t(d)[order] == pytest.approx(np.maximum.accumulate(steps))


def test_max_t_of_ten_strong_effects_reaches_the_least_p_of_six_pairs() -> None:
    d = np.random.default_rng(0).normal(20, 1, (6, 10))

    assert stats.max_t(d) == pytest.approx(np.full(10, 2 / 2**6))


def test_a_missing_pair_is_left_out_of_its_column_only() -> None:
    d = np.random.default_rng(0).normal(1, 1, (8, 2))
    d[3, 0] = math.nan

    assert stats.max_t(d[:, :1])[0] == pytest.approx(stats.sign_flip(np.delete(d[:, 0], 3)))
    assert stats.max_t(d[:, 1:])[0] == pytest.approx(stats.sign_flip(d[:, 1]))


@pytest.mark.parametrize("margin", [0.3, 1.0])
def test_equivalence_is_two_one_sided_tests(margin: float) -> None:
    d = np.random.default_rng(1).normal(0.1, 0.5, 9)

    above = scipy.stats.ttest_1samp(d + margin, 0, alternative="greater").pvalue
    below = scipy.stats.ttest_1samp(d - margin, 0, alternative="less").pvalue

    assert stats.equivalence(d, margin) == pytest.approx(max(above, below))


def test_power_is_what_simulation_finds() -> None:
    draws = np.random.default_rng(0).normal(1.0, 1.0, (20_000, 10))

    seen = (scipy.stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean()

    assert stats.power(1.0, 10, stats.critical(10)) == pytest.approx(seen, abs=0.01)


@pytest.mark.parametrize(("n", "expected"), [(3, 3.26), (5, 1.68), (6, 1.43), (10, 1.00), (20, 0.66), (30, 0.53)])
def test_the_detectable_effect_of_a_table_computed_elsewhere(n: int, expected: float) -> None:
    assert stats.detectable(1.0, n) == pytest.approx(expected, abs=0.011)
    assert stats.detectable(7.0, n) == pytest.approx(7 * stats.detectable(1.0, n))


def test_wilson_is_the_closed_formula() -> None:
    z, k, n = 1.959964, 3, 20
    center, half = (k + z * z / 2) / (n + z * z), z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)

    assert stats.wilson(k, n) == pytest.approx((center - half, center + half), abs=1e-6)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_interval_covers_as_often_as_it_says(n: int) -> None:
    draws = np.random.default_rng(7).normal(1.0, 2.0, (1500, n))

    covered = [low < 1.0 < high for low, high in map(stats.interval, draws)]

    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def test_no_more_than_one_study_in_twenty_finds_something_among_four_tricks_that_do_nothing() -> None:
    generator = np.random.default_rng(11)
    baseline, arms = generator.normal(0, 1, (400, 8, 1)), generator.normal(0, 1, (400, 8, 4))

    false_alarms = [stats.max_t(study).min() <= 0.05 for study in arms - baseline]

    assert np.mean(false_alarms) < 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)


def test_an_effect_of_the_margin_is_rarely_called_equivalent() -> None:
    draws = np.random.default_rng(5).normal(0.5, 0.3, (1500, 8))

    called = [stats.equivalence(d, margin=0.5) < 0.05 for d in draws]

    assert np.mean(called) == pytest.approx(0.05, abs=0.015)


def test_correlation_of_an_arm_that_never_varies_is_unknown() -> None:
    assert math.isnan(stats.correlation([1, 1, 1], [1, 2, 3]))
    assert stats.correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1.0)
