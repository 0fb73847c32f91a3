"""How fast arms learn: what they reach in the same time, and when they reach a target."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from attrs import frozen

Curve = Sequence[float]
"""A metric on validation, after each epoch."""


@frozen
class ToTarget:
    """How an arm and its control came to a target, over paired seeds.

    `ratio` compares the median times; a run that never gets there takes for ever. `sooner` and `later` count seeds,
    `misses` the runs of the arm and of its control that never got there, of `runs` each.
    """

    target: float
    ratio: float
    sooner: int
    later: int
    misses: tuple[int, int]
    runs: int


def at_equal_time(curve: Curve, control: Curve, ratio: float) -> float:
    """What a curve is above its control's when both have trained for as long as the shorter of the two.

    *ratio* is the time of an epoch, in epochs of the control. Between epochs, curves are straight lines; before the end
    of the first, they are what they are then.

    >>> at_equal_time([0.5, 0.7, 0.9], [0.5, 0.6, 0.7], ratio=1.5)
    0.0
    """
    time = min(len(control), len(curve) * ratio)
    return _after(curve, time / ratio) - _after(control, time)


def _after(curve: Curve, epochs: float) -> float:
    return float(np.interp(epochs, np.arange(1, len(curve) + 1), curve))


def epochs_to(curve: Curve, target: float, higher_is_better: bool) -> float:
    """After how many epochs a curve has reached a target; infinity where it never does.

    >>> epochs_to([0.5, 0.7, 0.9], 0.7, True), epochs_to([0.9, 0.5], 0.4, False)
    (2.0, inf)
    """
    reached = np.asarray(curve, float) >= target if higher_is_better else np.asarray(curve, float) <= target
    return float(np.argmax(reached)) + 1 if reached.any() else math.inf


def to_target(times: Sequence[float], control: Sequence[float], target: float) -> ToTarget:
    """Compare the times to a target of an arm and its control, a pair for each seed, infinite for a miss.

    >>> to_target([2.0, 3.0, math.inf], [4.0, math.inf, 5.0], target=0.9)
    ToTarget(target=0.9, ratio=0.6, sooner=2, later=1, misses=(1, 1), runs=3)
    """
    mine, theirs = np.asarray(times, float), np.asarray(control, float)
    middle, other = float(np.median(mine)), float(np.median(theirs))
    return ToTarget(
        target=target,
        ratio=middle / other if math.isfinite(middle + other) else math.inf if math.isinf(middle) else 0.0,
        sooner=int((mine < theirs).sum()),
        later=int((mine > theirs).sum()),
        misses=(int(np.isinf(mine).sum()), int(np.isinf(theirs).sum())),
        runs=len(mine),
    )
