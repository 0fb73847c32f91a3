"""What an outcome says is what was measured, in the right direction, with what went wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
import pytest
import scipy.stats

from trickbox.errors import ConfigError
from trickbox.study import stats, words
from trickbox.study.outcome import Comparison, Outcome
from trickbox.study.task import LOSS

Make = Callable[..., Outcome]


def of(outcome: Outcome, arm: str) -> Comparison:
    return next(comparison for comparison in outcome.comparisons if comparison.arm == arm)


def test_values_are_in_the_unit_of_the_metric(make_outcome: Make) -> None:
    outcome = make_outcome({"baseline": [0.5, 0.75], "a": [0.5, math.nan]})

    assert outcome.value("baseline").tolist() == [50.0, 75.0]
    assert outcome.value("a").tolist() == [50.0, pytest.approx(math.nan, nan_ok=True)]
    with pytest.raises(ConfigError, match=r"no arm 'bseline'.*Did you mean 'baseline'"):
        outcome.value("bseline")


def test_a_comparison_is_a_paired_t_test_of_points(outcome: Outcome) -> None:
    found = of(outcome, "helper")
    test = scipy.stats.ttest_rel(outcome.value("helper"), outcome.value("baseline"))

    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval()))
    assert found.mean == pytest.approx(found.differences.mean())
    assert (found.n, found.runs, found.parameters) == (10, 10, 96)
    assert found.time_ratio == pytest.approx(1.5)


def test_every_verdict_is_reached(outcome: Outcome) -> None:
    assert {comparison.arm: comparison.verdict for comparison in outcome.comparisons} == {
        "placebo": "equivalent",
        "helper": "helps",
        "<b>hurter</b> & co": "hurts",
        "equal": "equivalent",
        "a_trick_with_a_very_long_name": "inconclusive",
        "failing": "helps",
    }


def test_p_values_are_adjusted_for_all_arms_but_the_placebo(outcome: Outcome) -> None:
    arms = [comparison.arm for comparison in outcome.comparisons if comparison.arm != "placebo"]
    differences = np.stack([outcome.value(arm) - outcome.value("baseline") for arm in arms], axis=1)

    assert [of(outcome, arm).p for arm in arms] == pytest.approx(list(stats.max_t(differences)))
    assert {comparison.family for comparison in outcome.comparisons} == {1, 5}
    assert of(outcome, "placebo").p == 1


def test_a_loss_that_falls_helps(make_outcome: Make) -> None:
    found = of(make_outcome({"baseline": [1.0, 1.1, 0.9], "a": [0.5, 0.61, 0.39]}, metric=LOSS), "a")

    assert found.verdict == "helps"
    assert found.mean == pytest.approx(-0.5)
    assert found.low < found.mean < found.high < 0
    assert found.sentence.startswith(
        "a: -0.50 nats of test loss (95 % interval -0.52 to -0.48, 3 paired seeds, p = 0.25)"
    )


def test_a_failed_run_leaves_three_numbers(outcome: Outcome) -> None:
    found = of(outcome, "failing")
    values = np.where(np.isnan(outcome.value("failing")), 100 / 3, outcome.value("failing"))

    assert (found.failures, found.n) == ((1, 0), 9)
    assert math.isnan(found.differences[3])
    assert found.all_runs is not None
    assert found.all_runs.mean == pytest.approx((values - outcome.value("baseline")).mean())
    assert "1 of 10 runs failed (95 % interval 2 to 40 %), 0 of 10 of its control" in found.sentence


def test_an_arm_that_always_fails_is_no_mean_of_nothing(make_outcome: Make) -> None:
    outcome = make_outcome({"baseline": [0.5, 0.6, 0.7], "a": [math.nan] * 3})

    assert of(outcome, "a").verdict == "inconclusive"
    assert of(outcome, "a").sentence.startswith("a: no pair of runs came through: inconclusive, for want of pairs")
    assert "3 of 3 runs failed" in outcome.table()


def test_sentences_say_effect_verdict_and_cost(outcome: Outcome) -> None:
    sentence = of(outcome, "helper").sentence

    assert sentence.startswith("helper: +4.55 points of test accuracy (95 % interval +3.89 to +5.20, ")
    assert "10 paired seeds, adjusted p = 0.002): helps, by more than the margin of 1 point" in sentence
    assert sentence.endswith("50 % slower; +96 parameters.")


def test_inconclusive_says_what_would_have_been_seen_and_never_no_difference(outcome: Outcome) -> None:
    found = of(outcome, "a_trick_with_a_very_long_name")

    assert f"an effect of {found.detectable:.2f} points would have been seen in four of five" in found.sentence
    assert "no difference" not in " ".join([*outcome.sentences(), outcome.table()])


def test_a_control_other_than_the_baseline_is_named(make_outcome: Make) -> None:
    values = {"baseline": [0.5, 0.6], "a": [0.5, 0.7], "a with b": [0.6, 0.7]}
    outcome = make_outcome(values, controls={"baseline": None, "a with b": "a"})

    assert of(outcome, "a with b").sentence.startswith("a with b (next to a): +5.00 points")


def test_notes_say_what_to_mind(make_outcome: Make, outcome: Outcome) -> None:
    few = make_outcome({"baseline": [0.5, 0.6, 0.7], "same": [0.5, 0.6, 0.7], "up": [0.6, 0.7, 0.8]})
    unpaired = make_outcome({"baseline": [0.5] * 6, "placebo": [0.5] * 5 + [0.6]})

    assert of(outcome, "helper").notes == []
    assert ["same bits" in note for note in of(few, "same").notes] == [True]
    assert [note[:10] for note in of(few, "up").notes] == ["up: rests ", "up: every "]
    assert "trust no other row" in of(unpaired, "placebo").notes[0]


def test_a_verdict_that_chance_can_explain_among_many_says_so_wherever_it_stands(make_outcome: Make) -> None:
    noise = np.random.default_rng(1).normal(0, 0.05, (12, 8))
    values = {"baseline": np.full(8, 0.5), "lucky": 0.54 + noise[0], **{f"n{i}": 0.5 + noise[i] for i in range(1, 12)}}

    outcome = make_outcome(values)
    found = of(outcome, "lucky")

    assert found.verdict == "helps"
    assert found.p > 0.05
    assert "taken alone; among 12 comparisons chance can do it" in found.sentence
    assert "helps *" in outcome.table()
    assert "\n*: taken alone" in outcome.table()


def test_times_are_paired_medians(make_outcome: Make) -> None:
    facts: dict[str, dict[str, Any]] = {"a": {"seconds": [9.0, 0.2, 0.2]}, "b": {"epochs": 4}}
    outcome = make_outcome({"baseline": [0.5, 0.6], "a": [0.5, 0.6], "b": [0.5, 0.7]}, facts=facts)

    assert of(outcome, "a").time_ratio == pytest.approx(2.0)
    assert "2.0 times as long" in of(outcome, "a").sentence
    assert "4 epochs instead of 10" in of(outcome, "b").sentence


def test_the_table_is_aligned_and_fits(outcome: Outcome) -> None:
    lines = outcome.table().splitlines()
    head = lines[2]

    assert max(map(len, lines)) <= 100
    for comparison in outcome.comparisons:
        row = next(line for line in lines[4:] if line.startswith(comparison.arm[:16]))
        assert row[head.index("verdict") :].startswith(comparison.verdict)


def test_the_title_says_that_a_margin_is_a_default(outcome: Outcome) -> None:
    assert words.title(outcome) == "waveforms: 10 paired seeds, margin 1 point"
    assert words.title(attrs.evolve(outcome, margin_is_default=True)).endswith("(default)")
