"""Every arm gets the same trials and is compared at its own best, chosen on seeds of their own."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest

from trickbox.errors import ConfigError
from trickbox.study import Arm, Study
from trickbox.study.methods import methods
from trickbox.study.outcome import raw
from trickbox.study.tuning import Tuning, settings_of
from trickbox.tasks.waveforms import Waveforms

SMALL = Waveforms(samples=150, max_epochs=3, fresh_samples=120)
RATES = {"lr": [1e-5, 0.01, 0.02]}
LRS = settings_of(RATES)


def test_all_arms_get_the_same_trials_on_seeds_of_their_own(here: Any) -> None:
    found = Study(SMALL, ["dropout"], seeds=2, tune=RATES, costs=False).run(executor=here)

    assert found.tuning is not None
    assert found.tuning.scores.keys() == {"baseline", "dropout"}
    assert all(len(scores) == 3 for scores in found.tuning.scores.values())
    assert here.count == 2 * 3 * 3 + 2 * 3
    by_name = {arm.name: arm.overrides for arm in found.arms}
    assert by_name["baseline"]["lr"] in (0.01, 0.02)
    assert by_name["placebo"] == by_name["baseline"]
    assert found.comparisons[0].is_identical
    assert raw(found)["tuning"]["chosen"]["baseline"] == by_name["baseline"]
    assert "each arm at its best of 3 settings" in found.table()
    assert "Tuned: each arm" in " ".join(methods(found))


def test_the_best_is_chosen_and_a_failed_trial_is_none() -> None:
    scores = {"a": [50.0, 70.0, 60.0], "b": [math.nan, 1.0, 2.0], "c": [math.nan] * 3}
    accuracy, loss = (Tuning(LRS, scores, higher_is_better=higher) for higher in (True, False))

    assert [accuracy.chosen(arm)["lr"] for arm in scores] == [0.01, 0.02, 1e-5]
    assert [loss.chosen(arm)["lr"] for arm in scores] == [1e-5, 0.01, 1e-5]
    assert [accuracy.at_edge(arm) for arm in scores] == [False, True, True]


def test_an_arm_that_sets_a_knob_itself_keeps_it(here: Any) -> None:
    arms = [Arm("fixed", overrides={"lr": 0.005})]
    found = Study(SMALL, arms, seeds=2, tune={"lr": [0.01, 0.02]}).run(executor=here)

    assert found.tuning is not None
    assert found.tuning.scores.keys() == {"baseline"}
    assert next(arm for arm in found.arms if arm.name == "fixed").overrides == {"lr": 0.005}


def test_a_setting_of_a_trick_is_chosen_with_the_rate_and_means_nothing_to_others(here: Any) -> None:
    tune = {"lr": [1e-6, 0.01], "dropout.p": [0.0, 0.9]}
    found = Study(SMALL, ["dropout", "mixup"], seeds=2, tune=tune, costs=False).run(executor=here)

    assert found.tuning is not None
    assert found.tuning.chosen("baseline") == found.tuning.chosen("mixup") == {"lr": 0.01}
    assert found.tuning.chosen("dropout") == {"lr": 0.01, "dropout.p": 0.0}
    assert all(len(scores) == 4 for scores in found.tuning.scores.values())
    baseline = found.tuning.scores["baseline"]
    assert baseline[::2] == baseline[1::2], "trials that differ in nothing are one"
    trials = (2 + 4 + 2) * 3
    assert here.count == trials + 4 * 2
    arm = next(arm for arm in found.arms if arm.name == "dropout")
    assert (arm.tricks[0].p, arm.overrides) == (0.0, {"lr": 0.01})
    assert "baseline lr=0.01;" in found.table()
    assert "dropout lr=0.01, dropout.p=0.0" in found.table()


def test_where_nothing_was_tuned_the_table_says_so(here: Any) -> None:
    table = Study(SMALL, ["dropout"], seeds=2).run(executor=here).table()

    assert "untuned: one setting of the task for all arms" in table


def test_the_report_shows_all_settings(here: Any, tmp_path: Any) -> None:
    found = Study(SMALL, ["dropout"], seeds=2, tune=RATES).run(executor=here)

    html = found.save(tmp_path / "report.html").read_text()

    assert "At every setting" in html
    assert "What each arm reached at every setting" in html


def test_the_winner_is_confirmed_at_its_own_setting(here: Any) -> None:
    study = Study(SMALL, ["dropout"], seeds=2, tune=RATES)
    found = study.run(executor=here)
    asked = {"name": "dropout", "question": found.questions[-1]}
    helps = SimpleNamespace(verdict="helps", inference=SimpleNamespace(mean=1.0), **asked)

    confirmed = study.confirm(cast(Any, SimpleNamespace(comparisons=[helps], arms=found.arms)), executor=here)

    assert confirmed is not None
    chosen = {arm.name: dict(arm.overrides) for arm in found.arms if arm.name != "placebo"}
    assert {arm.name: dict(arm.overrides) for arm in confirmed.arms} == chosen


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({"lr": [0.1]}, "tune: lr needs several values"),
        ({"lr": "fast"}, "tune: lr needs several values, got 'fast'"),
        ({"rate": [1, 2]}, "overrides 'rate', which waveforms does not have"),
        ({"dropuot.p": [0.1, 0.2]}, r"'dropuot.p' is of a trick that no arm has; there are dropout. Did you mean"),
        ({"dropout.rate": [0.1, 0.2]}, "dropout has no setting 'rate'; it has p"),
        ({"dropout.p": [0.1, 1.5]}, r"p must be in \[0, 1\), got 1.5"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_training(tune: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Study(SMALL, ["dropout"], tune=tune)
