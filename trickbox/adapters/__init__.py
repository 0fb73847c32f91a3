"""Tricks in trainers that others wrote: `trickbox.adapters.lightning` and `trickbox.adapters.transformers`.

Each needs its framework, and none is imported before it is asked for. accelerate, Fabric, Ignite and skorch need no
adapter: their loops have a place for every line of `trickbox.attach`. Here is what the adapters share: a run that is
handed everything, methods that are wrapped for a while, a first batch and a dry step that leave no trace.
"""

from __future__ import annotations

import copy
import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from attrs import define, field
from torch import Tensor, nn
from torch.utils.data import DataLoader

from trickbox.box import Box
from trickbox.checks import check_model
from trickbox.data import KeptGenerators
from trickbox.errors import ConfigError
from trickbox.hooks import PHASES
from trickbox.loops import Attached
from trickbox.metrics import Forward
from trickbox.nest import call
from trickbox.run import refuse_answers
from trickbox.state import Batch
from trickbox.streams import forked


class Driven(Attached):
    """A run in the loop of a trainer, whose adapter hands over every batch, pass, validation and epoch."""

    repeats = False
    """Whether a closure that the loop hands to its optimizer makes all passes of an update."""
    repeating = False
    """Whether a trick has asked for those passes again."""
    labels: tuple[str, ...] = ("labels",)
    """Where a batch that is a mapping has its targets."""

    def __init__(self, model: nn.Module, tricks: Any, *, seed: int | None, forward: Forward = call) -> None:
        check_model(model)
        seed = torch.initial_seed() if seed is None else seed
        super().__init__(model, tricks, seed=seed, forward=forward, wrap=None)
        for phase in PHASES:
            refuse_answers(phase, self._box.answers(phase))

    def loss_of(self, batch: Any, compute: Callable[[Any], Any], again: bool = False) -> Any:
        """The loss that *compute* makes of a batch, through `batch` and `compute_loss`; *again*: of the last one."""
        state = self.state
        if again:
            self._move(state.epoch, state.batch_index)
        else:
            self._next_batch()
            state.batch = self._given = split(batch, self.labels)
            if state.batch.size == 0 and (acting := self._box.acting("batch")):
                raise ConfigError(f"{acting[0]} acts on batches of tensors, got {type(batch).__name__}: {batch!r}")
            self._fire("batch")

        def work() -> Any:
            changed = state.batch is not self._given
            return compute(join(state.batch, self._given, batch, self.labels) if changed else batch)

        state.batch_loss = self.around("compute_loss", work)
        return state.batch_loss

    def backward(self, loss: Any, compute: Callable[[Any], Any]) -> None:
        """Let *compute* make the gradients of *loss*, as the phase `backward`."""
        self.state.batch_loss = loss
        self.around("backward", lambda: compute(self.state.batch_loss) or True)

    def validation(self, compute: Callable[[], dict[str, float]]) -> dict[str, float]:
        """The metrics that *compute* measures, as the phase `validate`."""
        self.state.evaluated = None
        self._measured = self.around("validate", compute)
        return self._measured

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._closed:
            return
        self._closed = True
        self._end(error)
        if error is not None and not self.state.step:
            self._take_back()  # nothing has been trained, so the next try shall find the model as it was
        waiting = self._box.acting("epoch_end")
        if error is None and self.state.step and not self.state.history.rows and waiting:
            raise ConfigError(f"{waiting[0]} acted nowhere: training ended before any epoch or validation did")

    def _check(self, validated: bool = False) -> None:
        self._check_trained()  # all else is handed over

    def _closure_first(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        changed, again = super()._closure_first(optimizer, args, kwargs), self.state.again

        def repeat() -> Any:
            self.repeating = True
            try:
                return again()  # type: ignore[misc]
            finally:
                self.repeating = False

        self.state.again = repeat if self.repeats and again is not None else None
        return changed


def checked(tricks: Any) -> list[tuple[str, Any]]:
    """The tricks of a list with their names in a run. What is wrong with the list shows here."""
    return [(member.name, member.trick) for member in Box(tricks).members]


def split(batch: Any, labels: tuple[str, ...] = ("labels",)) -> Batch:
    """What a loader gave, as inputs and targets: a pair, a mapping with *labels*, or inputs alone.

    >>> split([1, 2]).targets, split({"ids": 1, "labels": 2}).targets, split("all").inputs
    (2, 2, 'all')
    """
    inputs, targets = batch, None
    if isinstance(batch, Mapping):
        found = [batch[name] for name in labels if name in batch]
        inputs, targets = dict(batch), found[0] if len(found) == 1 else tuple(found) or None
    elif _is_pair(batch):
        inputs, targets = batch
    return Batch.of(inputs, targets)


def join(batch: Batch, before: Batch, like: Any, labels: tuple[str, ...] = ("labels",)) -> Any:
    """The reverse of `split`, for a batch that was *before* when it came from *like*.

    >>> join(Batch(3, 4, 1), Batch(1, 2, 1), [1, 2])
    [3, 4]
    """
    if isinstance(like, Mapping):
        if batch.targets is before.targets:
            return dict(batch.inputs)
        present = [name for name in labels if name in like]
        targets = [batch.targets] if len(present) == 1 else batch.targets
        return {**batch.inputs, **dict(zip(present, targets, strict=True))}
    if _is_pair(like):
        return type(like)(*batch) if hasattr(like, "_fields") else type(like)(batch)
    return batch.inputs


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, (tuple, list)) and len(batch) == 2


@define(eq=False)
class Wraps:
    """Methods of objects that are wrapped for a while, each in a function of the original and its arguments.

    >>> class Greeter:
    ...     def greet(self, name): return f"hello {name}"
    >>> greeter = Greeter()
    >>> with Wraps() as wraps:
    ...     wraps.add(greeter, "greet", lambda original, name: original(name.upper()))
    ...     greeter.greet("you")
    'hello YOU'
    >>> greeter.greet("you"), vars(greeter)
    ('hello you', {})
    """

    _kept: list[tuple[Any, str, bool, Any]] = field(factory=list)

    def add(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        """Wrap the method *name* of *owner*."""
        original = getattr(owner, name)
        self._kept.append((owner, name, name in vars(owner), original))

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return around(original, *args, **kwargs)

        # Frameworks look at the arguments of a method, through one decorator and no more.
        wrapped.__wrapped__ = getattr(original, "__wrapped__", original)
        setattr(owner, name, wrapped)

    def silence(self, owner: Any, *names: str) -> None:
        """Let methods of *owner* do nothing."""
        for name in names:
            self.add(owner, name, lambda *args, **kwargs: None)  # noqa: ARG005

    def put_back(self) -> None:
        """Give every object its own methods back."""
        while self._kept:
            owner, name, own, original = self._kept.pop()
            if own:
                setattr(owner, name, original)
            else:
                delattr(owner, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.put_back()


def first_batch(loader: Any) -> Any:
    """The first batch that *loader* would give; generators, workers and iterators stay as they are.

    Of a mapping or a list of loaders, one of each. Cost: one batch, loaded in this process.
    """
    if isinstance(loader, Mapping):
        return {name: first_batch(one) for name, one in loader.items()}
    if isinstance(loader, (tuple, list)):
        return [first_batch(one) for one in loader]
    with forked(), KeptGenerators(loader, getattr(loader, "batch_sampler", None)):
        if not isinstance(loader, DataLoader):
            return next(iter(loader))
        alone = copy.copy(loader)
        vars(alone).update(num_workers=0, timeout=0, prefetch_factor=None, persistent_workers=False, _iterator=None)
        return next(DataLoader.__iter__(alone))


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Undo what a training step writes down on *module* and its parts: buffers, numbers, lists, states of metrics."""
    noted = [(part, _noted(part)) for part in module.modules()]
    values = [value for _, found in noted for value in found.values()]
    containers = [(each, copy.copy(each)) for each in _containers(values)]
    written = [*module.buffers(), *(value for value in values if isinstance(value, Tensor))]
    copies = [tensor.detach().clone() for tensor in written]
    try:
        yield
    finally:
        for part, found in noted:
            for name in _noted(part).keys() - found.keys():
                delattr(part, name)
            vars(part).update(found)
        for container, content in containers:
            container.clear()
            container.extend(content) if hasattr(container, "extend") else container.update(content)
        with torch.no_grad():
            for tensor, value in zip(written, copies, strict=True):
                tensor.copy_(value)


def _noted(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE}


def _containers(values: Iterable[Any]) -> Iterator[Any]:
    """The plain containers among *values*, and those inside them."""
    for value in values:
        if type(value) in (list, dict, set, deque):
            yield value
            yield from _containers(value.values() if isinstance(value, dict) else value)


def missing(framework: str) -> str:
    """What to say where a framework is not installed."""
    return f"trickbox.adapters.{framework} needs {framework}; write: pip install 'trickbox[{framework}]'"
