"""How often results were looked at, and by which plans: what may be called sure depends on all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

Plan = Mapping[str, Any]


@frozen(eq=False)
class Looks:
    """The looks at one task that a store knows, by their plans; the last is this one.

    >>> ask = {"b": {"arm": 1.0, "base": -1.0}, "c": {"other": 1.0, "base": -1.0}}
    >>> first = {"task": "t", "final": False, "metric": "accuracy", "margin": 1.0, "seeds": [0, 1]}
    >>> first |= {"questions": {"effect": [ask["b"]]}}
    >>> second = first | {"questions": {"effect": list(ask.values())}, "seeds": [0, 1, 2], "margin": 5.0}
    >>> looks = Looks([first, second])
    >>> looks.count, looks.asked("effect"), looks.are_sequential, looks.earlier_margins
    (2, 2, True, [1.0])
    """

    plans: Sequence[Plan]

    @property
    def _same(self) -> list[Plan]:
        """The looks at the same set of the same task."""
        this = self.plans[-1]
        return [plan for plan in self.plans if all(plan[fact] == this[fact] for fact in ("task", "final"))]

    @property
    def count(self) -> int:
        """How many different looks there were at the same set, this one included; the same again shows nothing new."""
        return len({json.dumps(plan, sort_keys=True) for plan in self._same})

    def asked(self, family: str) -> int:
        """How many different questions of a family were asked in all of them."""
        return len(set().union(*(_asked(plan, family) for plan in self._same)))

    @property
    def are_sequential(self) -> bool:
        """Whether one of these questions was asked before of other seeds: then seeds were added after a look."""
        this = self.plans[-1]
        others = [plan for plan in self._same if plan["seeds"] != this["seeds"]]
        return any(_asked(this, family) & _asked(plan, family) for plan in others for family in this["questions"])

    @property
    def earlier_margins(self) -> list[float]:
        """Other margins that were declared for the same metric before, in order."""
        this = self.plans[-1]
        found = [plan["margin"] for plan in self._same if plan["metric"] == this["metric"]]
        return [margin for margin in dict.fromkeys(found) if margin != this["margin"]]


def _asked(plan: Plan, family: str) -> set[str]:
    """The questions of a family in a plan, each as text: the metric and the arms' weights, whatever their names."""
    return {json.dumps([plan["metric"], weights], sort_keys=True) for weights in plan["questions"].get(family, [])}
