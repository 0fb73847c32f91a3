"""A study is checked before it trains, trains once, and knows how often it was looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trickbox.errors import ConfigError
from trickbox.study import LOSS, Arm, Study, answers, tables
from trickbox.study.store import dumps
from trickbox.tasks.waveforms import Waveforms

SMALL = Waveforms(samples=60, max_epochs=2, fresh_samples=30)


def test_a_study_trains_once_and_says_what_it_found(here: Any, tmp_path: Path) -> None:
    study = Study(SMALL, ["dropout"], seeds=2, margin=2.0)

    first, again = (study.run(executor=here, store=tmp_path) for _ in range(2))

    assert here.count == 6 + 6, "once to the end, and once timed"
    assert (first.looks.count, again.looks.count) == (1, 1), "the same again shows nothing new"
    assert dumps(dict(first.runs("dropout")[0])) == dumps(dict(again.runs("dropout")[0]))
    assert [comparison.name for comparison in first.comparisons] == ["placebo", "dropout"]
    assert first.comparisons[0].is_identical
    assert [run["metrics"]["accuracy"] for run in first.runs("dropout")] != [0.0, 0.0]
    assert first.save(tmp_path / "report.html").is_file()


def test_more_seeds_and_more_tricks_reuse_what_is_there(here: Any, tmp_path: Path) -> None:
    Study(SMALL, seeds=2, costs=False).run(executor=here, store=tmp_path)
    Study(SMALL, ["dropout"], seeds=3, costs=False).run(executor=here, store=tmp_path)

    assert here.count == 4 + 5


def test_without_a_store_the_study_itself_remembers(here: Any) -> None:
    study = Study(SMALL, seeds=2, costs=False)

    study.run(executor=here)
    study.run(executor=here)

    assert here.count == 4


def test_a_failing_trick_is_an_outcome(here: Any) -> None:
    too_deep = Arm("short", overrides={"length": 31, "samples": 60, "lr": 1e18, "max_epochs": 3})

    outcome = Study(SMALL, [too_deep], seeds=2).run(executor=here)

    assert [run["status"] for run in outcome.runs("short")] == ["diverged"] * 2
    assert outcome.comparisons[-1].failures[0] == 2
    assert all("not finite" in run["warnings"][0] or "diverged" in run["warnings"][0] for run in outcome.runs("short"))


def test_what_runs_warned_of_is_said_once_and_with_its_arm(here: Any, capfd: Any) -> None:
    ragged = Waveforms(samples=70, max_epochs=1, fresh_samples=30)

    outcome = Study(ragged, ["batch_norm", "dropout"], seeds=2).run(executor=here)

    (note,) = [line for line in tables.legend(outcome) if "warned" in line]
    assert note.startswith("batch_norm warned: batch_norm: the last batch of an epoch has ")
    assert "UserWarning" not in capfd.readouterr().err


def test_the_winner_is_confirmed_on_fresh_seeds_and_only_then_the_test_set_is_read(here: Any, tmp_path: Path) -> None:
    easy = Waveforms(samples=150, max_epochs=4, fresh_samples=300, noise=0.0)
    slow = {"lr": 1e-3}
    arms = [Arm("slow", overrides=slow, control=None), Arm("fast", control="slow")]
    study = Study(easy, arms, seeds=6)

    found = study.run(executor=here, store=tmp_path)
    confirmed = study.confirm(found, executor=here, store=tmp_path)

    assert confirmed is not None
    assert not any("test_accuracy" in run["metrics"] for run in found.results.values())
    assert [arm.name for arm in confirmed.arms] == ["slow", "fast"]
    assert set(confirmed.seeds).isdisjoint(found.seeds)
    assert (confirmed.looks.count, found.looks.count) == (1, 1)
    assert answers.confirmation(confirmed)[0].startswith("On fresh seeds and the test set, read once: fast +")
    other = study.confirm_pair(confirmed.arms, [100, 101], executor=here, store=tmp_path)
    assert "read 2 times" in answers.confirmation(other)[0]


def test_where_there_is_no_terminal_progress_is_a_line(here: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Study(SMALL, seeds=2).run(executor=here)
    Study(SMALL, seeds=2).run(executor=here, progress=False)

    lines = capsys.readouterr().err.replace("\r", "").splitlines()
    assert [line.rpartition(", ")[0] for line in lines if line] == [
        "waveforms: 0 of 4 runs",
        "waveforms: 4 of 4 runs",
        "waveforms, costs: 0 of 4 runs",
        "waveforms, costs: 4 of 4 runs",
    ]


def test_where_nothing_helps_the_test_set_stays_unread(here: Any) -> None:
    study = Study(SMALL, ["placebo"], seeds=2)
    found = study.run(executor=here)

    trained = here.count
    assert study.confirm(found, executor=here) is None
    assert here.count == trained


def test_margin_and_metric_are_what_was_asked() -> None:
    default, chosen = Study(SMALL), Study(SMALL, metric="loss", margin=0.1)

    assert (default.margin, default.margin_is_default) == (1.0, True)
    assert (chosen.margin, chosen.margin_is_default, chosen.metric.higher_is_better) == (0.1, False, False)
    assert Study(SMALL, metric=LOSS).margin == LOSS.margin
    assert Study("waveforms", seeds=[3, 5]).seeds == (3, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "waveform"}, "task 'waveform' is unknown.*Did you mean"),
        ({"tricks": ["dropuot"]}, "no trick 'dropuot'.*Did you mean 'dropout'"),
        ({"tricks": [{"trick": "dropout", "p": 3}]}, "dropout: p must be"),
        ({"design": "add-one"}, "no design 'add-one'.*Did you mean 'add_one'"),
        ({"seeds": 1}, "study: seeds must be at least 2, got 1"),
        ({"seeds": [1, 1]}, "seeds must differ"),
        ({"margin": 0}, "margin must be > 0, got 0"),
        ({"metric": "acuracy"}, "no metric 'acuracy'.*Did you mean 'accuracy'"),
    ],
)
def test_what_cannot_work_is_refused_before_training(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Study(**options)
