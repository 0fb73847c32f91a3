"""How often results were looked at, and by which plans: what may be called sure depends on all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from trickbox.study.design import PLACEBO

Plan = Mapping[str, Any]


@frozen(eq=False)
class Looks:
    """The looks at one task that a store knows, by their plans; the last is this one.

    >>> first = {"task": "t", "final": False, "metric": "accuracy", "margin": 1.0, "seeds": [0, 1], "arms": {"b": 1}}
    >>> second = first | {"arms": {"b": 1, "c": 2}, "controls": {"c": "b"}, "seeds": [0, 1, 2], "margin": 5.0}
    >>> looks = Looks([first | {"controls": {}}, second])
    >>> looks.count, looks.asked, looks.are_sequential, looks.earlier_margins
    (2, 1, False, [1.0])
    """

    plans: Sequence[Plan]

    @property
    def _same(self) -> list[Plan]:
        """The looks at the same set of the same task."""
        this = self.plans[-1]
        return [plan for plan in self.plans if all(plan[fact] == this[fact] for fact in ("task", "final"))]

    @property
    def count(self) -> int:
        """How many looks there were at the same set, this one included."""
        return len(self._same)

    @property
    def asked(self) -> int:
        """How many different comparisons were looked at in all of them."""
        return len(set().union(*map(comparisons, self._same)))

    @property
    def are_sequential(self) -> bool:
        """Whether one of these comparisons was looked at before on other seeds: then seeds were added after a look."""
        this = self.plans[-1]
        mine = comparisons(this)
        return any(plan["seeds"] != this["seeds"] and mine & comparisons(plan) for plan in self._same)

    @property
    def earlier_margins(self) -> list[float]:
        """Other margins that were declared for the same metric before, in order."""
        this = self.plans[-1]
        found = [plan["margin"] for plan in self._same if plan["metric"] == this["metric"]]
        return [margin for margin in dict.fromkeys(found) if margin != this["margin"]]


def comparisons(plan: Plan) -> set[str]:
    """The comparisons of a plan, each as text: metric, arm and control, whatever their names; not the placebo."""
    arms, controls = plan["arms"], plan["controls"]
    return {
        json.dumps([plan["metric"], arms[name], arms[control]], sort_keys=True)
        for name, control in controls.items()
        if control is not None and name != PLACEBO
    }
