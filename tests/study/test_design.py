"""Designs name their arms, know their controls, and refuse what cannot be compared."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from trickbox.errors import ConfigError
from trickbox.study.design import Arm, add_one, check, leave_one_out


def names(arms: Sequence[Arm]) -> list[tuple[str, str | None]]:
    return [(arm.name, arm.control) for arm in arms]


def test_add_one_has_a_baseline_a_placebo_and_an_arm_for_each_trick() -> None:
    arms = add_one(["dropout", {"trick": "batch_norm", "momentum": 0.01}]).arms

    assert names(arms) == [
        ("baseline", None),
        ("placebo", "baseline"),
        ("dropout", "baseline"),
        ("batch_norm", "baseline"),
    ]
    assert arms[3].tricks[0].momentum == 0.01


def test_two_of_a_kind_and_aliases_get_names_of_their_own() -> None:
    arms = add_one(["dropout", "dropout", ("head", "dropout"), ("head", "dropout")]).arms

    assert [arm.name for arm in arms[2:]] == ["dropout", "dropout#2", "head", "head#2"]


def test_whole_arms_pass_through_with_their_own_controls() -> None:
    fast = Arm("fast", overrides={"lr": 0.03}, control=None)
    both = Arm("fast norm", ["batch_norm"], control="fast", overrides={"lr": 0.03})

    arms = add_one(["dropout", fast, both]).arms

    assert arms[-2:] == (fast, both)


def test_leave_one_out_compares_all_but_one_with_all() -> None:
    arms = leave_one_out(["dropout", "batch_norm"]).arms

    assert names(arms)[2:] == [("all", "baseline"), ("without dropout", "all"), ("without batch_norm", "all")]
    assert [len(arm.tricks) for arm in arms[2:]] == [2, 1, 1]


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ([Arm("a", control=None), Arm("a", control=None)], "two arms are named 'a'"),
        ([Arm("baseline", control=None), Arm("b", control="base")], "which is no arm.*Did you mean 'baseline'"),
        ([Arm("a", control="a")], "its own control"),
        ([Arm("a", control=None)], "nothing would be compared"),
    ],
)
def test_what_cannot_be_compared_is_refused(arms: list[Arm], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(arms)
