"""Planning: how many seeds fit into a budget of time, and how small an effect they would show."""

from __future__ import annotations

import math
import re

from attrs import frozen

from trickbox.errors import ConfigError
from trickbox.study import stats, words
from trickbox.study.task import Metric
from trickbox.study.verdicts import LEAST

PILOT = 3
"""Runs of the baseline that a plan is made from."""
_UNITS = {"s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0, "hour": 3600.0}


@frozen
class Plan:
    """What a study costs and can show. Printed, it is a table with a row for each number of seeds.

    `seconds` is the time of one run, the least of a few runs of the baseline, `deviation` the standard deviation of
    their metric over seeds, in its unit. `runs` are those of each seed, `comparisons` those that are judged together.
    """

    metric: Metric
    seconds: float
    deviation: float
    runs: int
    comparisons: int
    workers: int
    budget: float
    trials: int = 0
    """Runs by which arms choose their settings first, however many seeds follow."""

    def time(self, seeds: int) -> float:
        """Seconds that a study on so many seeds takes."""
        return (self.trials + seeds * self.runs) * self.seconds / self.workers

    @property
    def seeds(self) -> int:
        """The most seeds that fit into the budget."""
        return max(0, math.floor((self.budget * self.workers / self.seconds - self.trials) / self.runs))

    def detectable(self, seeds: int) -> float:
        """The smallest effect that four of five such studies would call, in the metric's unit.

        As if pairing gained nothing: then the difference of two arms spreads root two times as far as one.
        """
        if seeds < LEAST:
            return math.inf
        return stats.detectable(math.sqrt(2) * self.deviation, seeds, stats.ALPHA / max(self.comparisons, 1))

    def __str__(self) -> str:
        counts = sorted({LEAST, 10, 20, self.seeds} | ({30} if self.seeds > 30 else set()))
        rows = [(str(n), duration(self.time(n)), self._sees(n), "<- fits" * (n == self.seeds)) for n in counts if n]
        head = ("seeds", "time", f"sees, in {self.metric.unit or self.metric.label}", "")
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)]
        trials = f" and {self.trials} trials" if self.trials else ""
        spread = f"{words.number(self.deviation)} {self.metric.unit}".rstrip()
        return "\n".join(
            [
                f"{self.runs} runs a seed{trials}, {duration(self.seconds)} each on {self.workers} workers; "
                f"the baseline spreads by about {spread}",
                f"budget {duration(self.budget)}: "
                + (f"{self.seeds} seeds" if self.seeds >= LEAST else f"too little, {LEAST} seeds are the fewest"),
                "",
                *lines,
                "",
                "sees: the least effect that four of five such studies would call, as if pairing gained nothing",
            ]
        )

    def _sees(self, seeds: int) -> str:
        found = self.detectable(seeds)
        return words.number(found) if math.isfinite(found) else "nothing"


def seconds_of(budget: str | float) -> float:
    """A time in seconds, from a number of them or from a text with its unit.

    Raises `ConfigError` for what is no time.

    >>> seconds_of("10 min"), seconds_of("1.5h"), seconds_of(90)
    (600.0, 5400.0, 90.0)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|sec|min|h|hour)?s?\s*", str(budget))
    if match is None or float(match[1]) == 0:
        raise ConfigError(f"a time is written as '10 min', '90 s' or '2 h', got {budget!r}")
    return float(match[1]) * _UNITS[match[2] or "s"]


def duration(seconds: float) -> str:
    """A time as people say it.

    >>> duration(0.4), duration(75), duration(5400)
    ('0.4 s', '1.2 min', '1.5 h')
    """
    if seconds < 60:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.2g} min" if seconds < 3600 else f"{seconds / 3600:.2g} h"
