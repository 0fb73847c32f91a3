"""What a study answers as a whole is what its parts support."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
import pytest
import scipy.stats

from trickbox.study import answers
from trickbox.study.findings import Findings

Make = Callable[..., Findings]
NOISE = np.random.default_rng(0).normal(0, 0.003, (9, 8))


def values(**effects: float) -> dict[str, Any]:
    made = {name: 0.7 + effect + NOISE[row] for row, (name, effect) in enumerate(effects.items())}
    return {"baseline": 0.7 + NOISE[-1], **made}


@pytest.mark.parametrize(
    ("effects", "headline"),
    [
        ({"a": 0.05, "b": 0.02, "c": -0.05}, "a helps: {} points ({} to {}), and one more helps; c hurts."),
        ({"a": -0.05, "b": -0.04}, "nothing was found to help; two hurt."),
        ({"a": 0.0, "b": 0.0}, "nothing was found to help; two make no difference that matters."),
    ],
)
def test_one_sentence_counts_everybody(effects: dict[str, float], headline: str, make_outcome: Make) -> None:
    made = values(**effects)
    test = scipy.stats.ttest_rel(100 * made["a"], 100 * made["baseline"])
    interval = test.confidence_interval()
    size = [f"{value:+.2f}" for value in (100 * (made["a"] - made["baseline"]).mean(), interval.low, interval.high)]

    assert answers.headline(make_outcome(made)) == headline.format(*size)


def test_seeds_that_are_too_few_are_named(make_outcome: Make) -> None:
    few = {name: of[:4] for name, of in values(a=0.05).items()}

    assert answers.headline(make_outcome(few)).endswith("a cannot be told apart from nothing with four seeds.")


def test_advice_follows_the_fresh_seeds(make_outcome: Make) -> None:
    chosen, other = make_outcome(values(a=0.05)), make_outcome(values(a=0.0))
    fresh, gone = (attrs.evolve(outcome, final=True, costs={}) for outcome in (chosen, other))

    assert answers.advice(other, None).startswith("Nothing to recommend")
    assert answers.advice(chosen, None) == (
        "Worth a try: a. It costs nothing that could be measured. Nothing is confirmed on fresh seeds yet."
    )
    assert answers.advice(chosen, fresh) == "Use a. It costs nothing that could be measured."
    assert answers.advice(chosen, gone).startswith("Do not count on a: it looked best")
    assert answers.advice(attrs.evolve(chosen, costs={}), fresh) == "Use a."


def test_a_trick_that_saves_runs_is_confirmed_though_no_pair_came_through(make_outcome: Make) -> None:
    """Runs that fail count as guessing there: they are what somebody gets who takes the advice."""
    made = {"baseline": np.full(8, np.nan), "a": 0.7 + NOISE[0], "b": 0.5 + NOISE[1]}
    saved = attrs.evolve(make_outcome(made, controls={"baseline": None, "b": None}), final=True)

    (line,) = answers.confirmation(saved)

    assert "failed runs counted as guessing, confirmed." in line
    assert saved.comparisons[0].with_failures.mean == pytest.approx(100 * (made["a"].mean() - 1 / 3))
