"""Combinations of tricks: every effect is what textbooks compute from the same cells, and what is mixed up is said."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import scipy.stats

from trickbox.errors import ConfigError
from trickbox.study import Study, answers, words
from trickbox.study.design import INTERACTION, Arm, Design, Question, winner
from trickbox.study.dose import dose
from trickbox.study.factorial import factorial, screen, shapley
from trickbox.tasks.waveforms import Waveforms

EIGHT = ["dropout", "batch_norm", "mixup", "label_smoothing", "ema", "augment", "residual", "sam"]
NINE = [*EIGHT, "clip_gradients"]
Values = Mapping[str, float]


def drawn(design: Design, value: Callable[[dict[str, float]], float]) -> dict[str, float]:
    """The value of every arm, as a function of which tricks (by name) are on, as -1 and 1."""
    names = [arm.tricks[0][0] for arm in design.arms if len(arm.tricks) == 1 and arm.name != "placebo"]
    every = list(dict.fromkeys([*names, *(name for arm in design.arms for name, _ in pairs(arm))]))
    return {arm.name: value({name: 1.0 if name in dict(pairs(arm)) else -1.0 for name in every}) for arm in design.arms}


def pairs(arm: Arm) -> list[tuple[str, Any]]:
    return [entry for entry in arm.tricks if isinstance(entry, tuple)]


def answer(question: Question, values: Values) -> float:
    return sum(weight * values[arm] for arm, weight in question.weights.items())


def named(design: Design) -> dict[str, Question]:
    return {question.name: question for question in design.questions}


@pytest.mark.parametrize("count", [2, 3, 4])
def test_effects_of_all_combinations_are_those_of_least_squares(count: int) -> None:
    design, names = factorial(EIGHT[:count]), EIGHT[:count]
    noise = np.random.default_rng(count)
    values = drawn(design, lambda _: float(noise.normal()))
    signs = drawn_signs(design, names)
    terms = [*((name,) for name in names), *itertools.combinations(names, 2)]
    matrix = np.column_stack([np.ones(len(signs)), *(np.prod([signs[:, names.index(n)] for n in t], 0) for t in terms)])
    trained = [arm.name for arm in design.arms if arm.name != "placebo"]
    fitted, *_ = np.linalg.lstsq(matrix, np.array([values[arm] for arm in trained]), rcond=None)

    asked = named(design)

    assert len(trained) == 2**count
    for term, coefficient in zip(terms, fitted[1:], strict=True):
        if len(term) == 1:
            assert answer(asked[f"{term[0]} overall"], values) == pytest.approx(2 * coefficient)
        else:
            assert answer(asked[" x ".join(term)], values) == pytest.approx(4 * coefficient)


def drawn_signs(design: Design, names: list[str]) -> Any:
    arms = [arm for arm in design.arms if arm.name != "placebo"]
    return np.array([[1.0 if name in dict(pairs(arm)) else -1.0 for name in names] for arm in arms])


def test_each_trick_alone_is_asked_of_the_same_runs() -> None:
    asked = named(factorial(["dropout", "batch_norm"]))

    assert asked["dropout"].weights == {"dropout": 1.0, "baseline": -1.0}
    assert asked["dropout x batch_norm"].weights == {
        "dropout + batch_norm": 1.0,
        "dropout": -1.0,
        "batch_norm": -1.0,
        "baseline": 1.0,
    }


def test_tricks_that_conflict_are_never_together_and_still_have_effects() -> None:
    design = factorial(["batch_norm", "layer_norm", "dropout"])

    assert [arm.name for arm in design.arms[2:]] == [
        "batch_norm",
        "layer_norm",
        "dropout",
        "batch_norm + dropout",
        "layer_norm + dropout",
    ]
    asked = named(design)
    assert "batch_norm x layer_norm" not in asked
    values = {"baseline": 1.0, "batch_norm": 3.0, "layer_norm": 0.0, "dropout": 2.0, "batch_norm + dropout": 7.0}
    values["layer_norm + dropout"] = 2.0
    assert answer(asked["batch_norm overall"], values) == pytest.approx(((3 - 1) + (7 - 2)) / 2)
    assert answer(asked["dropout overall"], values) == pytest.approx(((2 - 1) + (7 - 3) + (2 - 0)) / 3)
    assert answer(asked["batch_norm x dropout"], values) == pytest.approx(7 - 3 - 2 + 1)


@pytest.mark.parametrize("count", [5, 6, 7, 8])
def test_in_sixteen_combinations_no_effect_is_mixed_up_with_a_pair(count: int) -> None:
    names = EIGHT[:count]
    design = factorial(names)
    generator = np.random.default_rng(count)
    effects = dict(zip(names, generator.normal(size=count), strict=True))
    both = {pair: generator.normal() for pair in itertools.combinations(names, 2)}

    def value(signs: dict[str, float]) -> float:
        single = sum(effect / 2 * signs[name] for name, effect in effects.items())
        return float(single + sum(effect / 4 * signs[a] * signs[b] for (a, b), effect in both.items()))

    values, asked = drawn(design, value), named(design)

    assert len(design.arms) == 17  # and the placebo
    for name, effect in effects.items():
        assert answer(asked[f"{name} overall"], values) == pytest.approx(effect)
    sums = {question.name: answer(question, values) for question in design.questions if question.family == INTERACTION}
    told = {note.split(":")[1].split(" cannot")[0].strip(): note for note in design.notes}
    for first, found in sums.items():
        mixed = [pair for pair in both if " x ".join(pair) in told.get(first, first)]
        assert found == pytest.approx(sum(both[pair] for pair in mixed))
    assert sum(len(note.split(" x ")) - 1 for note in design.notes) + len(sums) - len(told) == len(both)


def test_the_alias_table_of_six_is_that_of_the_textbook() -> None:
    """Box, Hunter & Hunter: I = ABCE = BCDF = ADEF."""
    letters = dict(zip("ABCDEF", EIGHT, strict=False))
    design = factorial(letters.values())

    found = {frozenset(note.replace("Alias: ", "").split(";")[0].replace(" cannot be told from ", ", ").split(", "))
             for note in design.notes}  # fmt: skip

    textbook = ["AB CE", "AC BE", "AD EF", "AE BC DF", "AF DE", "BD CF", "BF CD"]
    assert found == {frozenset(f"{letters[a]} x {letters[b]}" for a, b in line.split()) for line in textbook}


def test_five_tricks_have_no_aliases_at_all() -> None:
    assert factorial(EIGHT[:5]).notes == ()


@pytest.mark.parametrize("count", [5, 9])
def test_a_screen_finds_effects_whatever_the_pairs_do(count: int) -> None:
    names = NINE[:count]
    design = screen(names)
    generator = np.random.default_rng(count)
    effects = dict(zip(names, generator.normal(size=count), strict=True))
    both = {pair: generator.normal() for pair in itertools.combinations(names, 2)}

    def value(signs: dict[str, float]) -> float:
        single = sum(effect / 2 * signs[name] for name, effect in effects.items())
        return float(single + sum(effect * signs[a] * signs[b] for (a, b), effect in both.items()))

    values, asked = drawn(design, value), named(design)

    assert len(design.arms) <= 2 + 24
    for name, effect in effects.items():
        assert answer(asked[f"{name} overall"], values) == pytest.approx(effect)


def test_a_screen_of_twelve_takes_forty_combinations() -> None:
    tricks = [(f"dropout {number}", "dropout") for number in range(12)]

    design = screen(tricks)

    assert len({arm.name for arm in design.arms}) == 40 + 1  # one of them is the baseline; and the placebo


def test_shares_are_the_mean_over_all_orders_and_add_up() -> None:
    names = EIGHT[:4]
    design = shapley(names)
    generator = np.random.default_rng(0)
    values = drawn(design, lambda _: float(generator.normal()))
    gains: dict[str, list[float]] = {name: [] for name in names}
    for order in itertools.permutations(names):
        for place, name in enumerate(order):
            before, after = (joined(order[:upto], names) for upto in (place, place + 1))
            gains[name].append(values[after] - values[before])

    found = {name: answer(named(design)[f"{name}, its share"], values) for name in names}

    assert found == pytest.approx({name: float(np.mean(gain)) for name, gain in gains.items()})
    assert sum(found.values()) == pytest.approx(values[joined(names, names)] - values["baseline"])


def joined(chosen: Any, names: list[str]) -> str:
    return " + ".join(name for name in names if name in chosen) or "baseline"


def test_a_trend_is_the_line_through_all_levels() -> None:
    design = dose([{"trick": "dropout", "p": [0.5, 0.1, 0.3]}])
    levels = {"baseline": 0.0, "dropout p=0.1": 0.1, "dropout p=0.3": 0.3, "dropout p=0.5": 0.5}
    values = {"baseline": 1.0, "dropout p=0.1": 4.0, "dropout p=0.3": 3.0, "dropout p=0.5": -2.0}
    slope = scipy.stats.linregress(list(levels.values()), list(values.values())).slope

    asked = named(design)

    assert [arm.name for arm in design.arms[2:]] == ["dropout p=0.1", "dropout p=0.3", "dropout p=0.5"]
    assert answer(asked["dropout p, trend"], values) == pytest.approx(slope * 0.5)
    parabola = {arm: 2 - 3 * level + 8 * level**2 for arm, level in levels.items()}
    above = parabola_at(0.25) - (parabola_at(0.0) + parabola_at(0.5)) / 2
    assert answer(asked["dropout p, bend"], parabola) == pytest.approx(above)
    assert asked["dropout p=0.1"].weights == {"dropout p=0.1": 1.0, "baseline": -1.0}


def parabola_at(level: float) -> float:
    return 2 - 3 * level + 8 * level**2


def test_the_baseline_is_a_level_only_where_the_trick_is_off_at_a_number() -> None:
    trend = named(dose([{"trick": "early_stopping", "patience": [2, 4]}]))["early_stopping patience, trend"]

    assert set(trend.weights) == {"early_stopping patience=2", "early_stopping patience=4"}


@pytest.mark.parametrize(
    ("design", "tricks", "message"),
    [
        (factorial, ["dropout"], "factorial takes 2 to 8 tricks, got 1"),
        (factorial, NINE, "got 9; ask a screen of more"),
        (factorial, [*EIGHT[:4], "layer_norm"], "batch_norm and layer_norm cannot be in the same run"),
        (screen, EIGHT[:4], "screen takes 5 to 19 tricks, got 4"),
        (shapley, ["batch_norm", "layer_norm"], "shapley: batch_norm and layer_norm cannot"),
        (shapley, EIGHT, "shapley takes 2 to 6 tricks"),
        (factorial, ["dropout", Arm("own")], "takes no whole Arm; got 'own'"),
        (dose, ["dropout"], "needs one setting with several numbers"),
        (dose, [{"trick": "dropout", "p": [0.1, 0.1]}], "needs one setting with several numbers"),
    ],
)
def test_what_a_design_cannot_ask_is_refused_by_name(design: Any, tricks: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        design(tricks)


def test_all_tricks_that_help_on_average_are_confirmed_together_as_far_as_they_can_be() -> None:
    design = factorial(["batch_norm", "layer_norm", "dropout"])
    averaged = [question for question in design.questions if question.trick is not None]

    pair = winner(design.arms, averaged)

    assert pair is not None
    assert [arm.name for arm in pair] == ["baseline", "batch_norm + dropout"]
    assert winner(design.arms, []) is None


def test_a_study_of_combinations_answers_confirms_and_writes_its_table(here: Any) -> None:
    study = Study(
        Waveforms(samples=60, max_epochs=1, fresh_samples=60), ["dropout", "mixup"], design="factorial", seeds=2
    )

    found = study.run(executor=here)

    assert [each.name for each in found.comparisons] == [
        "placebo",
        "dropout overall",
        "mixup overall",
        "dropout x mixup",
        "dropout",
        "mixup",
    ]
    by_name = {each.name: each for each in found.comparisons}
    values = {arm.name: found.value(arm.name) for arm in found.arms}
    both = values["dropout + mixup"] - values["dropout"] - values["mixup"] + values["baseline"]
    assert by_name["dropout x mixup"].differences == pytest.approx(both)
    assert [by_name[name].family for name in ("dropout overall", "dropout x mixup", "dropout")] == [2, 1, 2]
    assert "dropout x mixup" in found.table()
    assert any(line.startswith("Whether they help or hinder") for line in answers.answer(found))


def test_an_interaction_of_the_scale_alone_is_said_to_be_one(make_outcome: Any) -> None:
    """Near the ceiling points cannot add up, though odds do more than that."""
    arms = ("baseline", "a", "b", "a + b")
    asked = (Question("a x b", {"a + b": 1.0, "baseline": 1.0, "a": -1.0, "b": -1.0}, INTERACTION),)
    near = {arm: [share] * 3 for arm, share in zip(arms, (0.80, 0.95, 0.95, 0.995), strict=True)}
    far = {arm: [share] * 3 for arm, share in zip(arms, (0.40, 0.45, 0.45, 0.60), strict=True)}

    (turning,), (plain,) = (
        make_outcome(
            values, controls=dict.fromkeys(arms), questions=asked, facts={arm: {"samples": 5000} for arm in arms}
        ).comparisons
        for values in (near, far)
    )

    assert turning.mean == pytest.approx(-10.5)
    assert any("in log odds it points the other way" in note for note in words.notes(turning))
    assert not plain.turns
