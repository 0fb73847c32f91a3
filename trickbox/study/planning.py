"""Planning: how many seeds fit into a budget of time, and how small an effect they would show."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from attrs import evolve, field, frozen

from trickbox.errors import ConfigError
from trickbox.study import stats, words
from trickbox.study.task import Metric
from trickbox.study.verdicts import LEAST

PILOT = 3
"""Runs of the baseline that a plan is made from."""
ASKS = {
    "add_one": "what it does alone",
    "leave_one_out": "whether all together miss it",
    "dose": "how much of it is right",
    "factorial": "what it does on average over the others, and which get on",
    "screen": "what it does on average over the others",
    "shapley": "its share of what all together gain",
}
"""What each design wants to know."""
_UNITS = {"s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0, "hour": 3600.0}


@frozen
class Size:
    """How much a design trains and asks.

    `runs` are those of each seed; `trials` those by which arms choose their settings first, however many seeds follow;
    `comparisons` are judged together, and the widest of them spreads `spread` times as far as one run does.
    """

    runs: int
    comparisons: int
    trials: int = 0
    spread: float = math.sqrt(2)


@frozen
class Plan:
    """What a study costs and can show. Printed, it is a table of numbers of seeds, and one of designs.

    `seconds` is the time of one run, the least of a few runs of the baseline, `deviation` the standard deviation of
    their metric over seeds, in its unit. `sizes` are those of all designs that the same tricks allow, by name.
    """

    metric: Metric
    seconds: float
    deviation: float
    workers: int
    budget: float
    design: str
    sizes: Mapping[str, Size] = field(repr=False)

    @property
    def size(self) -> Size:
        """The size of the design that is planned."""
        return self.sizes[self.design]

    def time(self, seeds: int) -> float:
        """Seconds that a study on so many seeds takes."""
        return (self.size.trials + seeds * self.size.runs) * self.seconds / self.workers

    @property
    def seeds(self) -> int:
        """The most seeds that fit into the budget."""
        return max(0, math.floor((self.budget * self.workers / self.seconds - self.size.trials) / self.size.runs))

    def detectable(self, seeds: int) -> float:
        """The smallest effect that four of five such studies would call, in the metric's unit.

        As if pairing gained nothing: then the difference of two runs spreads root two times as far as one.
        """
        if seeds < LEAST:
            return math.inf
        return stats.detectable(self.size.spread * self.deviation, seeds, stats.ALPHA / max(self.size.comparisons, 1))

    def __str__(self) -> str:
        trials = f" and {self.size.trials} trials" if self.size.trials else ""
        spread = f"{words.number(self.deviation)} {self.metric.unit}".rstrip()
        return "\n".join(
            [
                f"{self.design}: {self.size.runs} runs a seed{trials}, {duration(self.seconds)} each on {self.workers} "
                f"workers; the baseline spreads by about {spread}",
                f"budget {duration(self.budget)}: "
                + (f"{self.seeds} seeds" if self.seeds >= LEAST else f"too little, {LEAST} seeds are the fewest"),
                "",
                *self._by_seeds(),
                *(["", *self._by_design()] if len(self.sizes) > 1 else []),
                "",
                "sees: the least effect that four of five such studies would call, as if pairing gained nothing",
            ]
        )

    def _by_seeds(self) -> list[str]:
        counts = sorted({LEAST, 10, 20, self.seeds} | ({30} if self.seeds > 30 else set()))
        rows = [(str(n), duration(self.time(n)), self._sees(n), "<- fits" * (n == self.seeds)) for n in counts if n]
        return _aligned([("seeds", "time", self._head, ""), *rows])

    def _by_design(self) -> list[str]:
        """What else the budget could pay for: averages over combinations see more, of another question."""
        plans = [evolve(self, design=name) for name in self.sizes]
        rows = [
            (each.design, str(each.size.runs), str(each.seeds), each._sees(each.seeds), ASKS[each.design])
            for each in plans
        ]
        return _aligned([("design", "runs a seed", "seeds that fit", self._head, "asks of each trick"), *rows])

    @property
    def _head(self) -> str:
        return f"sees, in {self.metric.unit or self.metric.label}"

    def _sees(self, seeds: int) -> str:
        found = self.detectable(seeds)
        return words.number(found) if math.isfinite(found) else "nothing"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]


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
