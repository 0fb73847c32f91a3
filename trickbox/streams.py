"""Named random streams: every draw belongs to a purpose, and its seed is a function of integers.

Adding a trick therefore cannot shift the data order, the initial weights or another trick's draws, and the position
of every stream is two counters: the epoch and the batch.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch


def derive(seed: int, *purpose: str | int) -> int:
    """Return the 63-bit seed that belongs to *purpose* under *seed*; a pure function.

    >>> derive(0, "order", 1) == derive(0, "order", 1) != derive(0, "order", 2)
    True
    """
    text = "\x1f".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "little") >> 1


def seed_global(seed: int) -> None:
    """Seed the global generators of torch, Python and numpy, which the user's own code draws from."""
    for generator in _global_generators():
        generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def _cuda_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _global_generators() -> list[torch.Generator]:
    """Torch's own, of the CPU and of every accelerator that is in use."""
    return [torch.default_generator, *(torch.cuda.default_generators if _cuda_in_use() else ())]


class GlobalState:
    """The state of all global generators at one moment, to be put back later."""

    def __init__(self) -> None:
        self._python = random.getstate()
        self._numpy = np.random.get_state()
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if _cuda_in_use() else []

    def put_back(self) -> None:
        """Give every global generator the state that it had."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)


@contextmanager
def forked(seed: int | None = None) -> Iterator[None]:
    """Run a block whose global draws leave no trace; with *seed*, from that seed.

    >>> before = torch.get_rng_state()
    >>> with forked(seed=1):
    ...     _ = torch.rand(3)
    >>> torch.equal(before, torch.get_rng_state())
    True
    """
    state = GlobalState()
    try:
        if seed is not None:
            seed_global(seed)
        yield
    finally:
        state.put_back()


class Streams:
    """The random streams of one run: ``streams["augment"]`` is a generator that the run moves along by itself.

    A generator is reseeded from (seed, purpose, epoch, batch) before every training batch, and on every rank but the
    first from the rank too, so what is drawn in a step depends on nothing that happened before it. No global generator
    is touched, unless the run says that it owns them. Cost: 1.6 microseconds a step for each stream in use.

    >>> a, b = Streams(seed=0), Streams(seed=0)
    >>> _ = torch.rand(100, generator=a["augment"])  # more draws here ...
    >>> a.move(epoch=0, batch=1), b.move(epoch=0, batch=1)
    (None, None)
    >>> bool(torch.rand(1, generator=a["augment"]) == torch.rand(1, generator=b["augment"]))  # ... shift nothing there
    True
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu", rank: int = 0) -> None:
        self.seed = seed
        self.rank = rank
        self._device = torch.device(device)
        self._generators: dict[str, torch.Generator] = {}
        self._owns_globals = False
        self._moving: list[tuple[torch.Generator, int]] = []
        """Every generator that moves along, with the seed that it had at the start of this epoch."""
        self._epoch = self._batch = 0

    def __getitem__(self, purpose: str) -> torch.Generator:
        """The generator of *purpose*, on the run's device, at the current batch."""
        if purpose not in self._generators:
            self._generators[purpose] = generator = torch.Generator(device=self._device)
            generator.manual_seed(self.derive(purpose, self._epoch) + self._batch)
            self._take_aim()
        return self._generators[purpose]

    def own_globals(self) -> None:
        """Move torch's global generators along too, from which the user's own dropout draws: the stream ``noise``."""
        self._owns_globals = True
        self._take_aim()

    def move(self, epoch: int, batch: int) -> None:
        """Move every stream to a batch of an epoch."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._take_aim()
        self._batch = batch
        for generator, base in self._moving:
            generator.manual_seed(base + batch)

    def derive(self, *purpose: str | int) -> int:
        """The seed of what is drawn in steps for *purpose*: no two ranks share it."""
        return derive(self.seed, *purpose, *([f"rank {self.rank}"] if self.rank else []))

    def forked(self, *purpose: str | int) -> AbstractContextManager[None]:
        """A context in which the global generators belong to *purpose*, and are put back; equal on all ranks."""
        return forked(derive(self.seed, *purpose))

    def _take_aim(self) -> None:
        owned = _global_generators() if self._owns_globals else []
        moving = [*self._generators.items(), *(("noise", generator) for generator in owned)]
        self._moving = [(generator, self.derive(purpose, self._epoch)) for purpose, generator in moving]
