"""The two studies of the lesson are what the lesson says."""

from __future__ import annotations

import pytest

from trickbox.box import Box
from trickbox.loops import explain
from trickbox.study import Study
from trickbox.study.design import add_one
from trickbox.tasks.lesson import FEW_LABELS, LARGE_RATE, TASK, chapters, course
from trickbox.tasks.waveforms import PlainNet, Waveforms

CHAPTERS = (
    "schedule",
    "dropout",
    "residual",
    "normalization",
    "initialization",
    "stopping",
    "transfer",
    "augmentation",
)


@pytest.fixture
def arms(tmp_path):
    source = tmp_path / "source.pt"
    import torch

    torch.save(PlainNet().state_dict(), source)
    return chapters(source)


def test_all_eight_chapters_come_in_the_order_of_the_lesson(arms):
    families = [arm.tricks[0].family for arm in arms if arm.control == "baseline"]
    assert [family for family in dict.fromkeys(families) if family != "mixing"] == list(CHAPTERS)


def test_every_chapter_has_the_same_rate_epochs_and_data(arms):
    assert all(not arm.overrides for arm in arms if arm.control == "baseline")


def test_the_questions_that_the_notebook_only_talks_about_have_their_own_controls(arms):
    by_name = {arm.name: arm for arm in arms}
    for arm in arms:
        if arm.overrides and arm.control is not None:
            assert arm.overrides == by_name[arm.control].overrides in (LARGE_RATE, FEW_LABELS)
            assert by_name[arm.control].tricks == ()


def test_every_arm_acts_on_the_plain_network(arms):
    inputs = TASK.data(0).train[0][:32]
    for arm in (*arms, *course()):
        assert explain(TASK.model(), inputs, arm.tricks).count("\n") > 10
        Box(arm.tricks)


@pytest.mark.parametrize(
    ("name", "control", "lr", "max_epochs"),
    [
        ("baseline", None, 0.01, 15),
        ("schedule", "baseline", 0.01, 15),
        ("dropout", "no dropout", 0.01, 100),
        ("batch norm", "plain", 0.0008, 50),
        ("residual", "batch norm", 0.0008, 50),
    ],
)
def test_the_course_runs_at_its_own_rates_and_epochs(name, control, lr, max_epochs):
    arm = next(arm for arm in add_one(course()).arms if arm.name == name)
    task = Waveforms(**arm.overrides)
    assert (arm.control, task.lr, task.max_epochs, task.noise) == (control, lr, max_epochs, 0.05)


def test_both_studies_are_sound_plans(arms):
    assert len(Study(TASK, arms, seeds=10).specs) == 10 * (len(arms) + 2)
    assert len(Study(Waveforms(), course(), seeds=10).specs) == 10 * (len(course()) + 2)
