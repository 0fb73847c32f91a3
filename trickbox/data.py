"""Batches from what users have: a pair of tensors or arrays, a DataLoader, or any iterable of pairs.

A pair is kept on the device and indexed in whole batches, without collation of single samples: on small models that
is the largest part of what a DataLoader costs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset, default_collate

from trickbox import ranks
from trickbox.errors import ConfigError, DataError
from trickbox.nest import map_tensors, shapes, tensors
from trickbox.state import Batch
from trickbox.streams import derive, forked

EVALUATION_BATCHES = 4
"""Batches without gradients are this many times larger: they need far less memory, and fewer are faster."""

CHECKED_AT_ONCE = 16 * 2**20
"""Bytes of data in which NaN and infinity are looked for at a time, or one sample where that is larger."""


class Source(Protocol):
    """Data that can be gone through again and again."""

    def __len__(self) -> int:
        """Batches in one epoch, of every rank. Raises `TypeError` where nobody knows."""

    def sample(self) -> Batch:
        """One batch to plan with; taking it changes nothing that follows."""

    def smallest(self) -> Batch | None:
        """A batch of the size of the smallest of an epoch, where that is known to be smaller than the others."""

    def epoch(self, seed: int, epoch: int) -> Iterator[Batch]:
        """This rank's training batches of an epoch, in an order that is a function of the two integers.

        All ranks share one order: each takes its part of every round, and a round that is not complete is dropped.
        """

    def once(self, shared: bool = False) -> Iterator[Batch]:
        """All batches in their own order, for evaluation; *shared* out among the ranks, this one's share of them."""


LAST_BATCH = ("keep", "drop", "balance")
"""What becomes of a last batch that is not full: it stays, it is left out, or all become equally large."""


class TensorSource:
    """A pair of tensors, shuffled anew each epoch and cut into batches; *last* is one of `LAST_BATCH`."""

    def __init__(self, inputs: Any, targets: Any, batch_size: int, device: torch.device, last: str = "keep") -> None:
        self._inputs = map_tensors(lambda tensor: tensor.to(device), inputs)
        self._targets = map_tensors(lambda tensor: tensor.to(device), targets)
        self._size = next(tensors(inputs)).shape[0]
        self._in_order = torch.arange(self._size, device=device)
        self._batch_size = batch_size
        self._device = device
        self._last = last

    def __len__(self) -> int:
        together = ranks.world()
        if together == 1 and self._last != "drop":
            return math.ceil(self._size / self._batch_size)
        return self._size // (self._batch_size * together)

    def sample(self) -> Batch:
        return self._at(self._cut(self._in_order)[0])

    def smallest(self) -> Batch | None:
        last = self._cut(self._in_order)[-1]
        return self._at(last) if ranks.world() == 1 and len(last) < self._batch_size else None

    def epoch(self, seed: int, epoch: int) -> Iterator[Batch]:
        # Drawn on the CPU, so that the order is the same on every device.
        generator = torch.Generator().manual_seed(derive(seed, "order", epoch))
        order = torch.randperm(self._size, generator=generator).to(self._device)
        for index in self._mine(self._cut(order)):
            yield self._at(index)

    def once(self, shared: bool = False) -> Iterator[Batch]:
        first, parts = (ranks.rank(), ranks.world()) if shared else (0, 1)
        for index in torch.split(self._in_order, self._batch_size * EVALUATION_BATCHES)[first::parts]:
            yield self._at(index)

    def _cut(self, order: Tensor) -> Sequence[Tensor]:
        if self._last == "balance":
            return torch.tensor_split(order, math.ceil(self._size / self._batch_size))
        parts = torch.split(order, self._batch_size)
        return parts[: self._size // self._batch_size] if self._last == "drop" else parts

    def _mine(self, indices: Sequence[Tensor]) -> Sequence[Tensor]:
        """This rank's batch of every round of full batches; alone, all of them."""
        together = ranks.world()
        return indices if together == 1 else indices[ranks.rank() : len(self) * together : together]

    def _at(self, index: Tensor) -> Batch:
        # Copies: a model that works on its inputs in place must not change the caller's data.
        return Batch(_take(self._inputs, index), _take(self._targets, index), index.shape[0])


class LoaderSource:
    """A DataLoader, or any iterable of (inputs, targets), moved to the device batch by batch."""

    def __init__(self, loader: Iterable[Any], name: str, device: torch.device) -> None:
        self._loader = loader
        self._name = name
        self._device = device

    def __len__(self) -> int:
        return len(self._loader) // self._parts()  # type: ignore[arg-type]

    def sample(self) -> Batch:
        with forked(), KeptGenerators(self._loader):
            return next(self._batches())

    def smallest(self) -> Batch | None:
        return None

    def epoch(self, seed: int, epoch: int) -> Iterator[Batch]:
        # A loader without a generator draws its order from the global one, which the run has seeded for this epoch.
        for generator in _generators(self._loader):
            generator.manual_seed(derive(seed, "order", epoch))
        if self._parts() == 1:
            _set_epoch(self._loader, epoch)
            return self._batches()
        rounds = zip(*[self._batches()] * ranks.world(), strict=False)
        return (batches[ranks.rank()] for batches in rounds)

    def once(self, shared: bool = False) -> Iterator[Batch]:
        first, parts = (ranks.rank(), ranks.world()) if shared and self._parts() > 1 else (0, 1)
        return itertools.islice(self._batches(), first, None, parts)

    def _parts(self) -> int:
        """Into how many parts the run has to split the loader; one that splits by itself is left to do so."""
        by_itself = isinstance(getattr(self._loader, "sampler", None), DistributedSampler)
        return 1 if by_itself else ranks.world()

    def _batches(self) -> Iterator[Batch]:
        empty = True
        for item in _whole_batches(self._loader) or self._loader:
            empty = False
            yield as_batch(item, self._name, self._device)
        if empty:
            raise DataError(f"{self._name} gave no batch; give data that has batches every time it is gone through")


def as_batch(item: Any, name: str, device: torch.device) -> Batch:
    """The batch, on *device*, that a pair (inputs, targets) is, or a mapping that a model takes by name.

    Raises `DataError`, naming *name*, for anything else.
    """
    if isinstance(item, Mapping):
        inputs = _place(dict(item), device)
        targets = inputs.get("labels")
    elif isinstance(item, (tuple, list)) and len(item) == 2:
        inputs, targets = _place(item[0], device), _place(item[1], device)
    else:
        got = f"{len(item)} parts" if isinstance(item, (tuple, list)) else f"a {type(item).__name__}"
        raise DataError(f"{name} must give pairs (inputs, targets), or mappings that the model takes, got {got}")
    batch = Batch.of(inputs, targets)
    if not any(tensor.ndim for tensor in tensors([inputs, targets])):
        raise DataError(f"{name} must give tensors or arrays, got a pair of {shapes(inputs)}")
    return batch


def _place(nest: Any, device: torch.device) -> Any:
    if isinstance(nest, Tensor):
        return nest if nest.device == device else nest.to(device, non_blocking=True)
    return map_tensors(lambda tensor: _place(tensor, device), _as_tensors(nest))


def _set_epoch(loader: Any, epoch: int) -> None:
    sampler = getattr(loader, "sampler", None)
    if isinstance(sampler, DistributedSampler):
        sampler.set_epoch(epoch)


def _whole_batches(loader: Any) -> Iterator[list[Tensor]] | None:
    """The batches of a plain DataLoader over tensors by index: same order, draws and bits, no collation of samples."""
    plain = (
        type(loader) is DataLoader
        and type(loader.dataset) is TensorDataset
        and loader.collate_fn is default_collate
        and loader.batch_sampler is not None
        and loader.num_workers == 0
        and not loader.pin_memory
    )
    return _indexed(loader) if plain else None


def _indexed(loader: DataLoader[tuple[Tensor, ...]]) -> Iterator[list[Tensor]]:
    dataset: Any = loader.dataset
    torch.empty((), dtype=torch.int64).random_(generator=loader.generator)  # as the loader's own iterator does
    for indices in loader.batch_sampler or ():
        yield [tensor[indices] for tensor in dataset.tensors]


def as_source(data: Any, *, name: str, batch_size: int, device: torch.device, last: str = "keep") -> Source:
    """Make a source of *data*, checked as far as it can be without going through it.

    Raises `DataError` for empty data, sizes that differ, NaN or infinity in tensors, or an iterator that runs once;
    `ConfigError` for batches that only tensors can be cut into.
    """
    if _is_pair(data):
        inputs, targets = _as_tensors(data[0]), _as_tensors(data[1])
        _check_sizes(name, inputs, targets)
        check_finite(name, inputs, targets)
        source = TensorSource(inputs, targets, batch_size, device, last)
        if len(source) == 0:
            raise DataError(
                f"{name} has no full batch of {batch_size}; give a smaller batch_size, or keep the last batch"
            )
        return source
    if last != "keep":
        raise ConfigError(f"last_batch: {name} makes its own batches; say it there, such as DataLoader(drop_last=True)")
    if not isinstance(data, Iterable):
        raise DataError(
            f"{name} must be a pair of tensors or arrays, a DataLoader or an iterable of (inputs, targets), "
            f"got a {type(data).__name__}"
        )
    if isinstance(data, Iterator):
        raise DataError(f"{name} is an iterator, which is empty after one epoch; give a list or a DataLoader")
    if isinstance(data, DataLoader) or hasattr(data, "__len__"):
        _check_not_empty(name, data)
    return LoaderSource(data, name, device)


def find_device(device: str | torch.device) -> torch.device:
    """The device of that name; ``auto`` is the first there is of cuda, mps, mtia and cpu, each rank its own."""
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available() and ranks.joined():
        return torch.device("cuda", ranks.local_index())
    for kind in ("cuda", "mps", "mtia"):
        backend = getattr(torch, kind, None) if kind != "mps" else torch.backends.mps
        if backend is not None and backend.is_available():
            return torch.device(kind)
    return torch.device("cpu")


def length(source: Source) -> int | None:
    """Batches in one epoch, or None where the data does not tell."""
    try:
        return len(source)
    except TypeError:
        return None


def check_finite(name: str, inputs: Any, targets: Any) -> None:
    """Raise `DataError` where a tensor holds NaN or infinity. Memory: a few times `CHECKED_AT_ONCE`."""
    for part, nest in (("inputs", inputs), ("targets", targets)):
        for tensor in tensors(nest):
            if tensor.is_floating_point() and (count := int(_not_finite(tensor))):
                bad = count if tensor.ndim > 1 else "some"
                raise DataError(f"{name}: {bad} samples of the {part} hold NaN or infinity; clean or drop them")


def _not_finite(tensor: Tensor) -> Tensor:
    """How many samples hold NaN or infinity, counted where they are, so that a device is waited for once."""
    samples = tensor if tensor.ndim > 1 else tensor.reshape(-1, 1)
    each = math.prod(samples.shape[1:]) * samples.element_size()
    parts = torch.split(samples, max(1, CHECKED_AT_ONCE // max(1, each)))
    return torch.stack([(~torch.isfinite(part)).flatten(1).any(1).sum() for part in parts]).sum()


def _is_pair(data: Any) -> bool:
    """Whether *data* is a pair of whole arrays."""
    return isinstance(data, (tuple, list)) and len(data) == 2 and isinstance(data[1], (Tensor, np.ndarray))


def _as_tensors(nest: Any) -> Any:
    """Arrays become tensors; floating arrays take torch's default dtype, as numpy's float64 is rarely meant."""
    if isinstance(nest, np.ndarray):
        if nest.dtype.kind not in "biufc":
            raise DataError(f"arrays of {nest.dtype} cannot become tensors; make them numbers, classes 0, 1, ...")
        tensor = torch.from_numpy(np.require(nest, requirements=["C", "W"]))
        return tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor
    if isinstance(nest, (tuple, list)) and not hasattr(nest, "_fields"):
        return type(nest)(_as_tensors(value) for value in nest)
    if isinstance(nest, dict):
        return {key: _as_tensors(value) for key, value in nest.items()}
    return nest


def _check_sizes(name: str, inputs: Any, targets: Any) -> None:
    if next(tensors(inputs), None) is None:
        raise DataError(f"{name}: the inputs must be tensors or arrays, got {shapes(inputs)}")
    sizes = [tensor.shape[0] if tensor.ndim else 0 for tensor in tensors([inputs, targets])]
    if len(set(sizes)) > 1:
        raise DataError(f"{name}: inputs and targets differ in length: {shapes(inputs)} and {shapes(targets)}")
    if not sizes or sizes[0] == 0:
        raise DataError(f"{name} is empty; give at least one sample")


def _check_not_empty(name: str, data: Any) -> None:
    try:
        empty = len(data) == 0
    except TypeError:  # a DataLoader over an iterable dataset has no length
        return
    if empty:
        raise DataError(f"{name} is empty: it has no batch. With drop_last=True a batch must fill batch_size")


def _take(nest: Any, index: Tensor) -> Any:
    return nest[index] if isinstance(nest, Tensor) else map_tensors(lambda tensor: tensor[index], nest)


def _generators(loader: Any) -> list[torch.Generator]:
    """The generators that a DataLoader was given, its own and its samplers'."""
    batches = getattr(loader, "batch_sampler", None)
    owners = (loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None))
    found = {id(g): g for g in (getattr(owner, "generator", None) for owner in owners) if g is not None}
    return [generator for generator in found.values() if isinstance(generator, torch.Generator)]


class KeptGenerators:
    """Puts the generators of a loader back at the end of a block."""

    def __init__(self, *loaders: Any) -> None:
        self._states = [(g, g.get_state()) for loader in loaders for g in _generators(loader)]

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.put_back()

    def put_back(self) -> None:
        """Give every generator the state that it had."""
        for generator, state in self._states:
            generator.set_state(state)
