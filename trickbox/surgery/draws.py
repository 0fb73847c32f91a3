"""What a layer draws: a function of (seed, trick, site, call, epoch, batch, rank), and of nothing that ran before it.

One generator is seeded anew for every draw. So a draw moves no stream that anybody else uses, is the same again when
activation checkpointing repeats it, and can stand inside a compiled graph: there an operator makes it, from the same
numbers, the moving part of which is a tensor that the graph reads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from attrs import define, field
from torch import Tensor

from trickbox.surgery.recompute import numbered

_BITS = (1 << 64) - 1
_FORWARDS = 16
"""The low bits of the clock's tensor count the forwards that a compiled graph has made at one time of the clock."""


@define(eq=False)
class Clock:
    """The time at which layers draw, a whole number; in Python, and as a tensor that compiled graphs read.

    A clock that nobody sets shows torch's own seed, so that ``torch.manual_seed`` varies what is drawn.
    """

    tensor: Tensor = field(factory=lambda: torch.tensor(_torch_seed() << _FORWARDS))
    _time: int | None = None
    _sets: int = 0

    def set(self, time: int) -> None:
        """Move to *time*, less than 2^47; the same time again repeats its draws. Cost: a microsecond."""
        self._time = time
        self._sets += 1
        self.tensor.fill_(time << _FORWARDS)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A block that draws at a time of its own; afterwards it is the time before, and nothing drawn at it yet."""
        time, tensor = self._time, self.tensor.clone()
        self.set(0)
        try:
            yield
        finally:
            self._time = time
            self._sets += 1
            self.tensor.copy_(tensor)

    def now(self) -> tuple[int, int]:
        """The time, and a number that changes whenever it is set."""
        return (_torch_seed(), -1) if self._time is None else (self._time, self._sets)


@define(eq=False)
class Draws:
    """The draws of one layer. `calls` is how often the layer is called in one forward.

    >>> draws = Draws(key=1, clock=Clock())
    >>> draws.clock.set(7)
    >>> first, second = draws.bernoulli((8,), 0.5, torch.ones(1)), draws.bernoulli((8,), 0.5, torch.ones(1))
    >>> draws.clock.set(7)  # the same time again
    >>> again = draws.bernoulli((8,), 0.5, torch.ones(1))
    >>> torch.equal(first, again), torch.equal(first, second)
    (True, False)
    """

    key: int
    clock: Clock
    calls: int = 1
    _seen: tuple[int, int] | None = field(default=None, init=False)
    _count: int = field(default=0, init=False)
    traced: int = field(default=0, init=False)

    def bernoulli(self, shape: Sequence[int], p: float, like: Tensor) -> Tensor:
        """Ones with probability *p* and zeros, of *shape*, with the type and on the device of *like*.

        Cost: about that of one draw from a running generator; nothing waits for the device.
        """
        if torch.compiler.is_compiling():
            call, self.traced = self.traced, (self.traced + 1) % self.calls
            drawn: Tensor = draw_bernoulli(
                list(shape), p, self.key, self.clock.tensor, self.calls, call, like.dtype, like.device
            )
            return drawn
        time, count = numbered(self, self._next)
        return _bernoulli(shape, p, mixed(self.key, time, count), like.dtype, like.device)

    def _next(self) -> tuple[int, int]:
        """The time and the number of the next call at this time."""
        now = self.clock.now()
        if now != self._seen:
            self._seen, self._count = now, 0
        self._count += 1
        return now[0], self._count - 1


def _torch_seed() -> int:
    return torch.initial_seed() % (1 << 40)


def mixed(key: int, time: int, count: int) -> int:
    """One seed of three numbers, well mixed in all bits (the finalizer of SplitMix64); a pure function.

    >>> mixed(1, 2, 3) == mixed(1, 2, 3) != mixed(1, 3, 2)
    True
    """
    z = (key + time * 0x9E3779B97F4A7C15 + count * 0xD1342543DE82EF95) & _BITS
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _BITS
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _BITS
    return (z ^ z >> 31) >> 1


def _bernoulli(shape: Sequence[int], p: float, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device).bernoulli_(p, generator=_generator(device).manual_seed(seed))


class _Generators(threading.local):
    """One generator a device and thread; it is seeded before each use, so nothing depends on its position."""

    def __init__(self) -> None:
        self.of: dict[torch.device, torch.Generator] = {}


_generators = _Generators()


def _generator(device: torch.device) -> torch.Generator:
    found = _generators.of.get(device)
    if found is None:
        found = _generators.of[device] = torch.Generator(device)
    return found


@torch.library.custom_op("trickbox::bernoulli", mutates_args=())
def draw_bernoulli(
    shape: Sequence[int],
    p: float,
    key: int,
    clock: Tensor,
    calls: int,
    call: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """`Draws.bernoulli` as an operator of compiled graphs."""
    time, forwards = divmod(int(clock), 1 << _FORWARDS)
    return _bernoulli(shape, p, mixed(key, time, forwards * calls + call), dtype, device)


@draw_bernoulli.register_fake
def _(
    shape: Sequence[int],
    p: float,
    key: int,
    clock: Tensor,
    calls: int,
    call: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)
