"""What a search for tricks found: a recipe with its confirmed effect, or that nothing beat the baseline."""

from __future__ import annotations

from typing import Any

import attrs
from attrs import frozen

from trickbox.study import answers
from trickbox.study.design import Arm
from trickbox.study.findings import Findings
from trickbox.study.planning import duration
from trickbox.study.task import Task
from trickbox.trick import fields_of, to_config


@frozen(eq=False)
class Recommendation:
    """What to use on a task, if anything. Printed, it is the answer in a few lines.

    `control` is the baseline and `arm` the best that was found, each at its own learning rate; `arm` is None where no
    trick even looked better. `confirmed` compares the two on fresh seeds and the test set, which had no part in the
    choice. `steps` say how it was found, in `seconds` of the `budget`.
    """

    task: Task
    control: Arm
    arm: Arm | None
    confirmed: Findings | None
    steps: tuple[str, ...]
    seconds: float
    budget: float

    @property
    def is_better(self) -> bool:
        """Whether the fresh seeds show that it helps; a run that fails counts as guessing."""
        return self.confirmed is not None and self.confirmed.comparisons[0].with_failures.verdict == "helps"

    @property
    def best(self) -> Arm:
        """What to use: the arm that was found, or the baseline where it does not help."""
        return self.arm if self.arm is not None and self.is_better else self.control

    def recipe(self) -> dict[str, Any]:
        """What to use as plain JSON: the tricks, the settings of the task, and what they are worth, if anything."""
        recipe: dict[str, Any] = {
            "task": self.task.name,
            "tricks": [to_config(_bare(entry)) for entry in self.best.tricks],
            "settings": dict(self.best.overrides),
        }
        if self.confirmed is not None:
            asked = self.confirmed.comparisons[0]
            found = asked.with_failures
            facts = {"verdict": found.verdict, "better_by": found.mean, "low": found.low, "high": found.high}
            recipe["confirmed"] = {"arm": asked.name, "metric": asked.metric.name, "seeds": found.n, **facts}
        return recipe

    def python(self) -> str:
        """What to use as a line of Python.

        >>> from trickbox_tricks import BatchNorm, Dropout
        >>> arm = Arm("both", [BatchNorm(), Dropout(0.2)])
        >>> as_python(arm)
        'tricks=[BatchNorm(), Dropout(p=0.2)]'
        """
        return as_python(self.best)

    def __str__(self) -> str:
        used = f"Took {duration(self.seconds)} of {duration(self.budget)}."
        return "\n".join([*self._answer(), "", *self.steps, used])

    def _answer(self) -> list[str]:
        name = self.task.name
        if self.arm is None:
            return [f"{name}: nothing beat the baseline; no trick even looked better."]
        confirmed = answers.confirmation(self.confirmed)
        if not self.is_better:
            return [
                f"{name}: nothing beat the baseline{_at(self.control)}.",
                f"The best was {self.arm.name}.",
                *confirmed,
            ]
        return [f"{name}: use {self.arm.name}{_at(self.arm)}.", *confirmed, f"In Python: {self.python()}"]


def as_python(arm: Arm) -> str:
    """The tricks of an arm as a line of Python, without the settings that are defaults."""
    return f"tricks=[{', '.join(_call(_bare(entry)) for entry in arm.tricks)}]"


def _call(trick: Any) -> str:
    given = {name: getattr(trick, name) for name, a in fields_of(trick).items() if not _is_default(trick, name, a)}
    return f"{type(trick).__name__}({', '.join(f'{name}={value!r}' for name, value in given.items())})"


def _is_default(trick: Any, name: str, attribute: attrs.Attribute[Any]) -> bool:
    return bool(getattr(trick, name) == attribute.default)


def _bare(entry: Any) -> Any:
    return entry[1] if isinstance(entry, tuple) else entry


def _at(arm: Arm) -> str:
    """The settings of the task that an arm is used with."""
    return "".join(f", with {name}={value:g}" for name, value in arm.overrides.items())
