"""What an outcome says is what was measured, in the right direction, with what went wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
import pytest
import scipy.stats
from study.made import made_plan

from trickbox.errors import ConfigError
from trickbox.study import answers, stats, tables, words
from trickbox.study.comparison import Comparison
from trickbox.study.findings import Findings
from trickbox.study.looks import Looks
from trickbox.study.methods import methods
from trickbox.study.outcome import raw
from trickbox.study.task import LOSS

Make = Callable[..., Findings]


def of(outcome: Findings, arm: str) -> Comparison:
    return next(comparison for comparison in outcome.comparisons if comparison.name == arm)


def test_values_are_in_the_unit_of_the_metric(make_outcome: Make) -> None:
    outcome = make_outcome({"baseline": [0.5, 0.75], "a": [0.5, math.nan]})

    assert outcome.value("baseline").tolist() == [50.0, 75.0]
    assert outcome.value("a").tolist() == [50.0, pytest.approx(math.nan, nan_ok=True)]
    with pytest.raises(ConfigError, match=r"no arm 'bseline'.*Did you mean 'baseline'"):
        outcome.value("bseline")


def test_a_comparison_is_a_paired_t_test_of_points(outcome: Findings) -> None:
    found = of(outcome, "helper")
    test = scipy.stats.ttest_rel(outcome.value("helper"), outcome.value("baseline"))

    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval()))
    assert found.mean == pytest.approx(found.differences.mean())
    assert (found.n, found.runs, found.parameters) == (10, (10, 10), 96)
    assert found.time_ratio == pytest.approx(1.5)


def test_every_verdict_is_reached(outcome: Findings) -> None:
    assert {comparison.name: comparison.verdict for comparison in outcome.comparisons} == {
        "placebo": "equivalent",
        "helper": "helps",
        "<b>hurter</b> & co": "hurts",
        "equal": "equivalent",
        "a_trick_with_a_very_long_name": "inconclusive",
        "failing": "helps",
    }


def test_p_values_are_adjusted_for_all_arms_but_the_placebo(outcome: Findings) -> None:
    arms = [comparison.name for comparison in outcome.comparisons if comparison.name != "placebo"]
    differences = np.stack([outcome.value(arm) - outcome.value("baseline") for arm in arms], axis=1)

    assert [of(outcome, arm).p for arm in arms] == pytest.approx(list(stats.max_t(differences)))
    assert {comparison.family for comparison in outcome.comparisons} == {1, 5}
    assert of(outcome, "placebo").p == 1


def test_a_loss_that_falls_helps(make_outcome: Make) -> None:
    base = np.array([1.0, 1.1, 0.9, 1.05, 0.95, 1.0])
    found = of(make_outcome({"baseline": base, "a": base - [0.5, 0.49, 0.51, 0.5, 0.5, 0.5]}, metric=LOSS), "a")

    assert found.verdict == "helps"
    assert found.mean == pytest.approx(-0.5)
    assert found.low < found.mean < found.high < 0
    assert words.sentence(found).startswith(
        "a: -0.50 nats of loss (95 % interval -0.51 to -0.49, better on 6 of 6 paired seeds, p = 0.031): helps"
    )


def test_a_failed_run_leaves_three_numbers(outcome: Findings) -> None:
    found = of(outcome, "failing")
    values = np.where(np.isnan(outcome.value("failing")), 100 / 3, outcome.value("failing"))

    assert (found.failures, found.n) == ((1, 0), 9)
    assert math.isnan(found.differences[3])
    assert found.all_runs is not None
    assert found.all_runs.mean == pytest.approx((values - outcome.value("baseline")).mean())
    assert "1 of 10 runs failed (95 % interval 2 to 40 %), 0 of 10 of its control" in words.sentence(found)


def test_an_arm_that_always_fails_is_no_mean_of_nothing(make_outcome: Make) -> None:
    outcome = make_outcome({"baseline": [0.5, 0.6, 0.7], "a": [math.nan] * 3})

    assert of(outcome, "a").verdict == "inconclusive"
    assert words.sentence(of(outcome, "a")).startswith(
        "a: no pair of runs came through: inconclusive, for want of pairs"
    )
    assert "3 of 3 runs failed" in outcome.table()


def test_sentences_say_effect_verdict_and_cost(outcome: Findings) -> None:
    sentence = words.sentence(of(outcome, "helper"))

    assert sentence.startswith("helper: +4.55 points of accuracy (95 % interval +3.89 to +5.20, ")
    assert "better on 10 of 10 paired seeds, adjusted p = 0.002): helps, by more than the margin of 1 point" in sentence
    assert sentence.endswith("on validation; +96 parameters.")


def test_inconclusive_says_what_would_have_been_seen_and_never_no_difference(outcome: Findings) -> None:
    found = of(outcome, "a_trick_with_a_very_long_name")

    assert f"an effect of {found.detectable:.2f} points would have been seen in four of five" in words.sentence(found)
    assert "no difference" not in " ".join([*outcome.sentences(), outcome.table()])


def test_a_control_other_than_the_baseline_is_named(make_outcome: Make) -> None:
    values = {"baseline": [0.5, 0.6], "a": [0.5, 0.7], "a with b": [0.6, 0.7]}
    outcome = make_outcome(values, controls={"baseline": None, "a with b": "a"})

    assert words.sentence(of(outcome, "a with b")).startswith("a with b (next to a): +5.00 points")


def test_notes_say_what_to_mind(make_outcome: Make, outcome: Findings) -> None:
    base = np.array([0.5, 0.6, 0.7, 0.55, 0.65, 0.75])
    made = make_outcome({"baseline": base, "same": base, "up": base + 0.1})
    unpaired = make_outcome({"baseline": [0.5] * 6, "placebo": [0.5] * 5 + [0.6]})

    assert words.notes(of(outcome, "helper")) == []
    assert ["same bits" in note for note in words.notes(of(made, "same"))] == [True]
    assert [note[:10] for note in words.notes(of(made, "up"))] == ["up: every "]
    assert "trust no other row" in words.notes(of(unpaired, "placebo"))[0]


# -- sentences that must be true ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["word", "sentence", "table", "raw"])
def test_what_chance_can_do_among_many_is_called_inconclusive_wherever_it_stands(
    make_outcome: Make, where: str
) -> None:
    noise = np.random.default_rng(1).normal(0, 0.05, (12, 8))
    values = {"baseline": np.full(8, 0.5), "lucky": 0.54 + noise[0], **{f"n{i}": 0.5 + noise[i] for i in range(1, 12)}}
    outcome = make_outcome(values)
    found = of(outcome, "lucky")

    assert found.low > 0
    assert found.p > 0.05
    said = {
        "word": found.verdict,
        "sentence": words.sentence(found).partition("): ")[2],
        "table": next(line for line in outcome.table().splitlines() if line.startswith("lucky")),
        "raw": next(each["verdict"] for each in raw(outcome)["comparisons"] if each["name"] == "lucky"),
    }[where]
    assert "inconclusive" in said
    assert "helps" not in said
    if where == "sentence":
        assert "an effect taken alone, but among 12 comparisons chance can do it" in said


@pytest.mark.parametrize("n", [2, 3, 5])
def test_fewer_than_six_pairs_decide_nothing(make_outcome: Make, n: int) -> None:
    outcome = make_outcome({"baseline": [0.5] * n, "up": np.linspace(0.8, 0.81, n), "tied": [0.5] * n}, facts=APART)

    assert [each.verdict for each in outcome.comparisons] == ["inconclusive"] * 2
    assert all("fewer than 6 pairs decide nothing" in sentence for sentence in outcome.sentences())
    assert "*" not in outcome.table()


def test_an_interval_that_only_normality_supports_is_not_laid_to_other_comparisons(make_outcome: Make) -> None:
    base = np.full(6, 0.5)
    found = of(make_outcome({"baseline": base, "a": base + np.array([0.1, 0.11, 0.09, 0.1, 0.12, -0.01])}), "a")

    assert found.low > 0
    assert (found.family, found.verdict) == (1, "inconclusive")
    assert "inconclusive: the interval alone says so, and it rests on normality" in words.sentence(found)


APART = {"tied": {"weights": "others"}}
"""Two arms that tie in what is measured, with other weights."""


def test_a_tie_is_not_the_same_bits(make_outcome: Make) -> None:
    values = {"baseline": [1.0] * 8, "tied": [1.0] * 8, "same": [1.0] * 8}
    outcome = make_outcome(values, facts=APART)
    tied, same = of(outcome, "tied"), of(outcome, "same")

    assert (tied.same_bits, same.same_bits) == (0, 8)
    assert "to the last bit" in words.sentence(same)
    assert "bit" not in words.sentence(tied) + "".join(words.notes(tied))
    assert words.notes(tied) == ["tied: it ties on every seed: the metric cannot tell the arms apart"]
    assert math.isnan(tied.detectable)
    assert "0.00  x1" not in outcome.table()


def test_the_same_bits_in_some_seeds_are_counted(make_outcome: Make) -> None:
    base = np.linspace(0.5, 0.6, 8)
    found = of(make_outcome({"baseline": base, "a": np.where(np.arange(8) < 3, base, base + 0.1)}), "a")

    assert words.notes(found)[0] == "a: 3 of 8 runs ended in the same bits as their control's"
    assert "better on 5 of 8 (3 ties) paired seeds" in words.sentence(found)


def test_a_margin_that_changed_after_a_look_is_said_in_the_first_line(make_outcome: Make) -> None:
    base = np.linspace(0.5, 0.6, 8)
    values = {"baseline": base, "a": base + 0.01}
    plans = [made_plan(margin=0.5), made_plan(margin=1.0), made_plan(margin=7.0, final=True)]
    changed, unchanged = (make_outcome(values, margin=margin, plans=plans[:2]) for margin in (5.0, 1.0))

    assert changed.table().splitlines()[0].endswith("margin 5 points, CHANGED after a look with 0.5 points and 1 point")
    assert "changed after looks with 0.5, 1" in " ".join(methods(changed))
    assert "CHANGED after a look with 0.5 points" in unchanged.table()
    assert "CHANGED" not in make_outcome(values, plans=plans[1:]).table()
    assert "declared before the first look" in " ".join(methods(make_outcome(values, plans=plans[1:])))


def test_comparisons_of_earlier_looks_count(make_outcome: Make) -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, 7)
    values = {"baseline": np.full(7, 0.5), "a": 0.52 + noise}
    alone = of(make_outcome(values), "a")
    asked = make_outcome(values, plans=[made_plan(seeds=7, arms=[f"other {i}"]) for i in range(9)])

    assert (alone.verdict, alone.family) == ("helps", 1)
    assert (of(asked, "a").verdict, of(asked, "a").family) == ("inconclusive", 9)
    assert of(asked, "a").p == pytest.approx(9 * alone.p)
    assert "This set was looked at 10 times" in " ".join(methods(asked))


def test_seeds_that_were_added_after_a_look_make_a_sequence(make_outcome: Make) -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, 12)
    values = {"baseline": np.full(12, 0.5), "a": 0.5045 + noise}
    outcome = make_outcome(values)
    looks = Looks([made_plan(seeds=6, arms=["a"]), made_plan(seeds=12, arms=["a"])])
    extended = attrs.evolve(outcome, looks=looks)

    assert of(outcome, "a").verdict == "helps"
    assert of(extended, "a").verdict == "inconclusive"
    assert (of(extended, "a").high - of(extended, "a").low) > 1.5 * (of(outcome, "a").high - of(outcome, "a").low)
    assert "95 % confidence sequence" in words.sentence(of(extended, "a"))
    assert tables.title(extended).endswith("seeds added after a look")
    assert "valid however often one looks" in " ".join(methods(extended))


def test_a_run_that_learned_no_more_than_guessing_has_failed(make_outcome: Make) -> None:
    base = np.linspace(0.8, 0.85, 10)
    outcome = make_outcome({"baseline": base, "a": base + 0.02})
    for seed in (2, 5):
        outcome.results["baseline", seed].update(is_guessing=True, metrics={"accuracy": 0.33})
    found = of(outcome, "a")

    assert (found.failures, found.collapses, found.n) == ((0, 2), (0, 2), 8)
    assert "0 of them and 2 of its control's learned no more than guessing" in words.sentence(found)
    assert found.all_runs is not None
    assert found.all_runs.mean > found.mean
    assert "baseline: 2 of 10 runs failed" in outcome.table()


def test_a_task_that_no_run_learns_has_no_failures(make_outcome: Make) -> None:
    guessing = {"is_guessing": True}
    values = {"baseline": np.linspace(0.3, 0.36, 8), "a": np.linspace(0.31, 0.37, 8)}
    outcome = make_outcome(values, facts={"baseline": guessing, "a": guessing})

    assert of(outcome, "a").failures == (0, 0)
    assert "most runs do no better than guessing" in outcome.table()


def test_a_seed_that_stands_apart_is_named_with_what_the_others_show(make_outcome: Make) -> None:
    base = np.linspace(0.5, 0.6, 9)
    differences = np.array([0.011, 0.012, 0.009, 0.01, -0.4, 0.0105, 0.0115, 0.0095, 0.01])
    found = of(make_outcome({"baseline": base, "a": base + differences}), "a")

    assert found.outliers == (4,)
    assert words.notes(found) == ["a: seed 4 stands far apart; the middle half of the seeds gives +1.02 points"]


def test_the_answer_comes_first_and_leaves_nobody_out(outcome: Findings) -> None:
    lines = answers.answer(outcome)

    assert [line.partition(":")[0] for line in lines] == [*answers._ANSWERS.values(), "Failed runs"]
    assert lines[-1] == "Failed runs: failing 1 of 10, its control 0 of 10."
    assert lines[0].startswith("Helps: helper +4.55 points (+3.89 to +5.20), failing +")
    assert all(
        sum(each.name in line for line in lines[:-1]) == 1 for each in outcome.comparisons if each.name != "placebo"
    )


def test_times_are_those_of_single_steps(make_outcome: Make) -> None:
    facts: dict[str, dict[str, Any]] = {"a": {"step_seconds": 0.2}, "b": {"epochs": 4}}
    outcome = make_outcome({"baseline": [0.5, 0.6], "a": [0.5, 0.6], "b": [0.5, 0.7]}, facts=facts)

    assert of(outcome, "a").time_ratio == pytest.approx(2.0)
    assert "2.0 times as long" in words.sentence(of(outcome, "a"))
    assert "4 epochs instead of 10" in words.sentence(of(outcome, "b"))


def test_the_table_is_aligned_and_fits(outcome: Findings) -> None:
    lines = outcome.table().splitlines()
    head = lines[2]

    assert max(map(len, lines)) <= 100
    for comparison in outcome.comparisons:
        row = next(line for line in lines[4:] if line.startswith(comparison.name[:15]))
        assert row[head.index("verdict") :].startswith(comparison.verdict)


def test_the_title_says_that_a_margin_is_a_default(outcome: Findings) -> None:
    assert tables.title(outcome) == "waveforms: 10 paired seeds, margin 1 point"
    assert tables.title(attrs.evolve(outcome, margin_is_default=True)).endswith("(default)")
