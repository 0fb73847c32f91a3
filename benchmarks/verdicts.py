"""How often is a verdict wrong? Studies are simulated whose truth is known, through all that judges real ones.

Where no arm does anything, arms and baseline draw their values from one distribution: normal, an accuracy on 120
samples, skewed, or with one run in ten far below. "Called" is the share of studies in which any arm is said to help or
to hurt; it may be at most 5 %. "Alone" is what the 95 % interval of each arm, looked at alone, would call. With looks,
a study is looked at after every seed from six on, and stopped at the first call. "Shape" is a trick that changes the
shape of the differences and not their mean, against which flips of signs are not exact.

    python benchmarks/verdicts.py [STUDIES]
"""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from trickbox.study.verdicts import infer

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]


def collapsing(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """One run in ten ends far below."""
    return generator.standard_normal(shape) - 30.0 * (generator.random(shape) < 0.1)


VALUES: dict[str, Draw] = {
    "normal": lambda generator, shape: generator.standard_normal(shape),
    "discrete": lambda generator, shape: generator.binomial(120, 0.9, shape) / 1.2,
    "skewed": lambda generator, shape: -generator.exponential(size=shape),
    "collapsing": collapsing,
}
SEEDS, ARMS, LAST = (5, 6, 10, 20), (1, 5, 10, 20), 20


def studies(draw: Draw, count: int, seeds: int, arms: int) -> Iterator[Array]:
    """Differences of studies in which no arm does anything."""
    generator = np.random.default_rng((seeds, arms))
    for _ in range(count):
        values = draw(generator, (seeds, arms + 1))
        yield values[:, 1:] - values[:, :1]


def called(study: Array, sequential: bool = False) -> bool:
    """Whether any arm is said to help or to hurt."""
    return any(found.verdict in ("helps", "hurts") for found in infer(study, margin=1e-9, sequential=sequential))


def alone(study: Array) -> bool:
    """Whether any arm would be called by its own interval."""
    return any(found.low > 0 or found.high < 0 for found in infer(study, margin=1e-9))


def looked_at(study: Array) -> bool:
    """Whether any look calls an arm, after every seed from six on."""
    return any(called(study[:n], sequential=True) for n in range(6, len(study) + 1))


def share(flags: Iterator[bool]) -> str:
    """A rate in percent, with its standard error."""
    found = list(flags)
    rate = sum(found) / len(found)
    return f"{100 * rate:4.1f} +- {100 * math.sqrt(max(rate * (1 - rate), 1 / len(found)) / len(found)):.1f}"


def coverage(draw: Draw, count: int, seeds: int) -> str:
    """How often the interval of one arm holds the truth, which is nothing."""
    return share(found.low < 0 < found.high for s in studies(draw, count, seeds, 1) for found in infer(s, margin=1.0))


def main(count: int = 2000) -> None:
    """Print all tables."""
    print(f"{count} studies a cell; numpy {np.__version__}, {platform.machine()}; percent, with standard errors\n")
    print(f"{'values':<11} {'seeds':>5}  " + "  ".join(f"{f'{arms} arms':>12}" for arms in ARMS) + "   interval covers")
    for name, draw in VALUES.items():
        for seeds in SEEDS:
            cells = (share(called(study) for study in studies(draw, count, seeds, arms)) for arms in ARMS)
            print(f"{name:<11} {seeds:>5}  " + "  ".join(f"{cell:>12}" for cell in cells), end="")
            print(f"   {coverage(draw, count, seeds):>12}", flush=True)
    print("\nEach arm alone by its own interval, ten seeds")
    for name, draw in VALUES.items():
        cells = (share(alone(study) for study in studies(draw, count, 10, arms)) for arms in ARMS)
        print(f"{name:<11}        " + "  ".join(f"{cell:>12}" for cell in cells), flush=True)
    print(f"\nA look after every seed from 6 to {LAST}, stopped at the first call")
    for name, draw in VALUES.items():
        cells = (share(looked_at(s) for s in studies(draw, count // 4, LAST, arms)) for arms in ARMS)
        print(f"{name:<11}        " + "  ".join(f"{cell:>12}" for cell in cells), flush=True)
    print("\nShape: differences of mean 0 that are skewed themselves")
    for seeds in SEEDS:
        cells = []
        for arms in ARMS:
            generator = np.random.default_rng((seeds, arms, 1))
            drawn = (1 - generator.exponential(size=(seeds, arms)) for _ in range(count))
            cells.append(share(map(called, drawn)))
        print(f"{'skewed':<11} {seeds:>5}  " + "  ".join(f"{cell:>12}" for cell in cells), flush=True)
    print("\nEquivalent, called for an effect of the margin, of half of it, and of none; spread 0.4 margins")
    for seeds in (6, 10, 20):
        generator = np.random.default_rng((seeds, 2))
        cells = []
        for effect in (1.0, 0.5, 0.0):
            drawn = (generator.normal(effect, 0.4, (seeds, 1)) for _ in range(count))
            cells.append(share(infer(d, margin=1.0)[0].verdict == "equivalent" for d in drawn))
        print(f"{'normal':<11} {seeds:>5}  " + "  ".join(f"{cell:>12}" for cell in cells), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
