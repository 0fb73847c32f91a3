"""One question over several tasks: what a trick does on average over all of them, and on how many it helps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.stats
from attrs import frozen

from trickbox.errors import ConfigError
from trickbox.study.comparison import Comparison
from trickbox.study.design import PLACEBO
from trickbox.study.outcome import Outcome
from trickbox.study.stats import Array
from trickbox.study.tables import ruled
from trickbox.study.verdicts import Inference, infer
from trickbox.study.words import number, p_value


@frozen(eq=False)
class Average:
    """What one trick does over all tasks, in margins of each task, positive being better.

    `inference` is of the mean over the tasks, with the seeds as the sample: it speaks of these tasks, not of others.
    `middle` is the mean of the middle half of all differences of all tasks, which no single task can pull, `better` the
    share of pairs in which the trick was better, averaged over tasks. `tasks` are its comparisons, one for each task.
    """

    name: str
    inference: Inference
    middle: float
    better: float
    tasks: tuple[Comparison, ...]

    def count(self, verdict: str) -> int:
        """On how many tasks it reached a verdict."""
        return sum(comparison.verdict == verdict for comparison in self.tasks)


def aggregate(outcomes: Sequence[Outcome]) -> list[Average]:
    """What each trick does over the tasks of several outcomes; effects of each task are measured in its margin.

    Verdicts are safe for all tricks together (see `infer`). Raises `ConfigError` where the outcomes are of fewer than
    two tasks, or differ in their questions or in the number of their seeds.
    """
    _check(outcomes)
    rows = [[each for each in outcome.comparisons if each.name != PLACEBO] for outcome in outcomes]
    by_trick = list(zip(*rows, strict=True))
    tables = [np.stack([_in_margins(comparison) for comparison in tasks]) for tasks in by_trick]
    judged = infer(np.stack([table.mean(0) for table in tables], axis=1), margin=1.0)
    return [
        Average(tasks[0].name, inference, _middle(table), _better(table), tasks)
        for tasks, table, inference in zip(by_trick, tables, judged, strict=True)
    ]


def _check(outcomes: Sequence[Outcome]) -> None:
    if len(outcomes) < 2:
        raise ConfigError(f"aggregate: there must be at least two tasks, got {len(outcomes)}")
    first = outcomes[0]
    for other in outcomes[1:]:
        asked, expected = ([question.name for question in each.questions] for each in (other, first))
        if asked != expected or len(other.seeds) != len(first.seeds):
            raise ConfigError(
                f"aggregate: {other.task.name} asks {', '.join(asked)} over {len(other.seeds)} seeds, and "
                f"{first.task.name} {', '.join(expected)} over {len(first.seeds)}; ask the same of all tasks"
            )


def _in_margins(comparison: Comparison) -> Array:
    turned = comparison.differences if comparison.metric.higher_is_better else -comparison.differences
    return turned / comparison.margin


def _middle(table: Array) -> float:
    return float(scipy.stats.trim_mean(table[~np.isnan(table)], 0.25))


def _better(table: Array) -> float:
    """The chance that the trick is better, a tie counting half, averaged over the tasks where it ran."""
    known = [row[~np.isnan(row)] for row in table]
    shares = [float(np.mean((row > 0) + 0.5 * (row == 0))) for row in known if len(row)]
    return sum(shares) / len(shares)


_HEADS = ("trick", "mean, in margins [95 % interval]", "middle half", "better", "p", "verdict", "helps/hurts on")


def table(averages: Sequence[Average]) -> str:
    """Lay the averages out for a terminal, the best first."""
    rows = [_row(average) for average in sorted(averages, key=lambda each: -each.inference.mean)]
    return "\n".join(
        [
            *ruled([_HEADS, *rows]),
            "",
            "margins: an effect of 1 is the margin of its task; middle half: without the extremes of all tasks;",
            "  better: the chance of a pair, averaged over tasks; the verdict speaks of the mean over these tasks",
        ]
    )


def _row(average: Average) -> tuple[str, ...]:
    found = average.inference
    effect = f"{number(found.mean, True)} [{number(found.low, True)}, {number(found.high, True)}]"
    tasks = f"{average.count('helps')}/{average.count('hurts')} of {len(average.tasks)}"
    chance = f"{100 * average.better:.0f} %"
    return average.name, effect, number(average.middle, True), chance, p_value(found.p), found.verdict, tasks
