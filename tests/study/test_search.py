"""A recommendation is what fresh seeds confirm, found in the time that was given; else it says that nothing was."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import nn
from trickbox_tricks import Initialize

from trickbox.catalog import resolve
from trickbox.errors import ConfigError
from trickbox.study import Arm, Splits, recommend
from trickbox.study.search import candidates
from trickbox.study.store import MemoryStore
from trickbox.study.task import ACCURACY
from trickbox.trick import to_config


@attrs.frozen
class Faint:
    """Two classes, and weights so small that nothing gets through: initialization makes all the difference."""

    name: ClassVar = "faint"
    metric: ClassVar = ACCURACY
    class_names: ClassVar = ("left", "right")
    loss: ClassVar = nn.CrossEntropyLoss()

    lr: float = 0.1
    max_epochs: int = 3
    batch_size: int = 32

    def model(self) -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1e-4)
        return model

    def data(self, seed: int) -> Splits:
        targets = torch.arange(400) % 2
        noise = torch.randn(400, 4, generator=torch.Generator().manual_seed(seed))
        inputs = 2.0 * targets[:, None] - 1.0 + noise
        return Splits(*((inputs[part], targets[part]) for part in (slice(128), slice(128, 200), slice(200, 400))))

    def optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=self.lr)


class Counted(MemoryStore):
    """Remembers which seeds were asked for at which look."""

    def __init__(self) -> None:
        super().__init__()
        self.plans: list[Any] = []

    def look(self, plan: Any) -> list[dict[str, Any]]:
        self.plans.append(dict(plan))
        return super().look(plan)


def test_what_helps_is_found_confirmed_on_fresh_seeds_and_given_as_code(here: Any) -> None:
    store = Counted()

    found = recommend(
        Faint(), ["initialize", {"trick": "dropout", "p": 0.5}, "qk_norm"], budget="6 s", executor=here, store=store
    )

    assert found.is_better
    assert found.confirmed is not None
    assert found.best.name == "initialize"
    *chosen, last = store.plans
    assert last["final"], "only the last look is at the test set"
    assert not any(plan["final"] for plan in chosen)
    assert not set(last["seeds"]) & {seed for plan in chosen for seed in plan["seeds"]}
    assert found.confirmed.looks.count == 1
    recipe = json.loads(json.dumps(found.recipe()))
    assert [type(resolve(trick)).__name__ for trick in recipe["tricks"]] == ["Initialize"]
    assert recipe["settings"] == dict(found.best.overrides)
    assert recipe["confirmed"]["verdict"] == "helps"
    assert recipe["confirmed"]["low"] > 0
    tricks = eval(found.python().removeprefix("tricks="), {"Initialize": Initialize})
    assert [to_config(trick) for trick in tricks] == recipe["tricks"]
    text = str(found)
    assert text.startswith("faint: use initialize, with lr=")
    assert "nothing for this task: qk_norm" in text
    assert "a single look at 2 would have chosen initialize" in text


def test_both_sides_choose_among_the_same_rates(here: Any) -> None:
    found = recommend(Faint(), ["initialize"], budget="6 s", executor=here)

    rates = [step for step in found.steps if "is the best of 5" in step]
    assert [step.split(":")[0] for step in rates] == ["baseline", "initialize"]
    assert found.arm is not None
    assert found.control.overrides.keys() == found.arm.overrides.keys() == {"lr"}


def test_where_nothing_looks_better_the_test_set_is_not_read(here: Any) -> None:
    store = Counted()

    found = recommend(Faint(), [{"trick": "clip_gradients", "limit": 1e9}], budget="6 s", executor=here, store=store)

    assert not found.is_better
    assert found.confirmed is None
    assert not any(plan["final"] for plan in store.plans)
    assert str(found).startswith("faint: nothing beat the baseline; no trick even looked better.")
    assert found.recipe() == {"task": "faint", "tricks": [], "settings": dict(found.control.overrides)}
    assert found.python() == "tricks=[]"


def test_a_budget_that_confirms_nothing_is_refused_before_the_search(here: Any) -> None:
    with pytest.raises(ConfigError, match=r"recommend: 20 tricks need at least .* here, got 0.01 s; give more time"):
        recommend(Faint(), [(f"dropout {number}", "dropout") for number in range(20)], budget=0.01, executor=here)
    assert here.count == 3


@pytest.mark.parametrize("tricks", [[], [Arm("own", ["dropout"])]])
def test_arms_are_its_own_to_make(tricks: list[Any], here: Any) -> None:
    with pytest.raises(ConfigError, match="tricks must be one trick or more"):
        recommend(Faint(), tricks, executor=here)
    assert here.count == 0


def test_candidates_are_all_of_ours_that_need_no_setting() -> None:
    names = candidates()

    assert {"dropout", "batch_norm", "sam", "one_cycle"} <= set(names)
    assert not {"placebo", "transfer"} & set(names)
    assert all(resolve(name) for name in names)
