"""The execution tape: what one dry forward really calls, in which order, with which shapes.

Order, shared modules, shapes and the functional op that follows a layer are known only here, not from
``named_modules()``. Recording leaves no trace: eval mode, no gradients, forked randomness, modes and hooks put back.
"""

from __future__ import annotations

import heapq
import itertools
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property
from typing import Any

import torch
from attrs import define, evolve, field, frozen
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from trickbox.nest import call, tensors
from trickbox.streams import forked
from trickbox.surgery.attach import CHILD, CLOCK
from trickbox.surgery.draws import Clock
from trickbox.surgery.inside import name_of

Shape = tuple[int, ...]


@frozen
class Event:
    """One call on the tape: of a module, or of a function such as ``relu`` between modules."""

    path: str
    """The module's path; for a function, that of the module in whose forward it was called."""
    call: int
    """How many calls of this module came before in the same forward."""
    name: str
    """The module's class, or the function's name."""
    is_module: bool
    inputs: tuple[int, ...]
    """The numbers of the tensors that went in. A tensor has one number as long as it lives, also where an operation
    changes it in place."""
    outputs: tuple[int, ...]
    input_shapes: tuple[Shape, ...]
    output_shapes: tuple[Shape, ...]
    floating: bool
    """Whether the first input holds floating-point or complex numbers."""
    number: int
    """The event's place on the tape."""
    last: int
    """The place of the last event inside it; its own where there is none."""
    nth: int = 0
    """For a function: how many calls of it came before in the same forward of the module at `path`."""
    in_place: bool = False
    """Whether a function changes its first input, and its caller goes on with that."""


@define(slots=False)
class Tape:
    """The events of one forward, in the order in which the calls began."""

    events: list[Event]
    output: Any
    """What the model returned, on the device, without gradient."""
    given: dict[int, str]
    """The parameters among the tensors, by their number."""
    returned: tuple[int, ...] = ()
    """The numbers of the tensors that the model returned."""
    before: int = 0
    """The tensors with lower numbers were there before the forward: its inputs, and what the modules hold."""

    def modules(self) -> Iterator[Event]:
        """The calls of modules, in order."""
        return (event for event in self.events if event.is_module)

    def calls(self, path: str) -> int:
        """How often the module at *path* is called in one forward."""
        return self._calls[path]

    def calls_inside(self, path: str, call: int, function: str) -> int:
        """How often one call of the module at *path* calls *function* in its own forward."""
        return self._functions[path, call, function]

    def inside(self, event: Event) -> list[Event]:
        """The events of the user's model that lie inside the call of a container."""
        events = self.events[event.number + 1 : event.last + 1]
        return [e for e in events if f".{CHILD}." not in f".{e.path}."]

    def called_by(self, path: str) -> Iterator[Event]:
        """The calls of modules that the module at *path* makes in its own forward."""
        for event in (event for event in self.modules() if event.path == path):
            number = event.number + 1
            while number <= event.last:
                if self.events[number].is_module:
                    yield self.events[number]
                number = self.events[number].last + 1

    def holds_others(self, event: Event) -> bool:
        """Whether *event* is the call of a container: other events of the user's model lie inside."""
        return event.last > event.number and bool(self.inside(event))

    def following(self, event: Event) -> Iterator[Event]:
        """The events after *event* that consume its output, and then the outputs of those, in order."""
        waiting: list[int] = []
        seen = {event.number}

        def follow(made: Event) -> None:
            for number in itertools.chain.from_iterable(self._consumers.get(tensor, ()) for tensor in made.outputs):
                if number > made.last and number not in seen:
                    seen.add(number)
                    heapq.heappush(waiting, number)

        follow(event)
        while waiting:
            later = self.events[heapq.heappop(waiting)]
            follow(later)
            yield later

    def users(self, event: Event) -> list[Event]:
        """The later calls that consume an output of *event*, without those that only hold them."""
        found = {n for tensor in event.outputs for n in self._consumers.get(tensor, ()) if n > event.last}
        return [self.events[n] for n in sorted(found) if not self.holds_others(self.events[n])]

    def used(self, event: Event) -> int:
        """Which of the outputs of *event* is the first that anything uses; the first of all where none is."""
        later = (n for n, tensor in enumerate(event.outputs) if self._uses(tensor, event))
        return next(later, 0)

    def shows_more(self, other: Tape) -> bool:
        """Whether this tape has all calls of modules that *other* has, and calls of other modules too."""
        mine, theirs = self._calls, other._calls
        return len(mine) > len(theirs) and all(mine[path] == calls for path, calls in theirs.items())

    def _uses(self, tensor: int, event: Event) -> bool:
        return tensor in self.returned or any(number > event.last for number in self._consumers.get(tensor, ()))

    def replaced(self, path: str, module: nn.Module) -> Tape:
        """The tape of the model with *module* in the place of the layer at *path*, which puts out the same shapes."""
        name = type(module).__name__
        return evolve(self, events=[evolve(e, name=name) if e.is_module and e.path == path else e for e in self.events])

    @cached_property
    def _calls(self) -> Counter[str]:
        return Counter(event.path for event in self.modules())

    @cached_property
    def _functions(self) -> Counter[tuple[str, int, str]]:
        return Counter((event.path, event.call, event.name) for event in self.events if not event.is_module)

    @cached_property
    def _consumers(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for event in self.events:
            for tensor in event.inputs:
                found.setdefault(tensor, []).append(event.number)
        return found


@define(eq=False)
class _Recorder(TorchFunctionMode):
    events: list[Event | None] = field(factory=list)
    stack: list[tuple[str, nn.Module, int]] = field(factory=list)
    counts: dict[str, int] = field(factory=dict)
    functions: dict[tuple[str, int, str], int] = field(factory=dict)
    numbers: Any = field(factory=WeakIdKeyDictionary)
    """A number for every tensor that lives; the tape keeps none of them alive."""
    _next: Iterator[int] = field(factory=itertools.count)

    def __attrs_post_init__(self) -> None:
        TorchFunctionMode.__init__(self)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        made = args[0] if func is Tensor.__setitem__ else result
        if any(True for _ in tensors(made)) and not self._inside_leaf():
            path = self.stack[-1][0] if self.stack else ""
            key = path, self.counts.get(path, 0), name_of(func)
            self.functions[key] = nth = self.functions.get(key, -1) + 1
            event = self._event(*key, False, [args, kwargs or {}], made, len(self.events), nth)
            self.events.append(evolve(event, in_place=True) if _is_in_place(func) else event)
        return result

    def enter(self, path: str, module: nn.Module) -> None:
        """A module's forward begins: keep its place on the tape."""
        self.stack.append((path, module, len(self.events)))
        self.events.append(None)

    def leave(self, path: str, inputs: Any, output: Any) -> None:
        """A module's forward has ended."""
        _, module, place = self.stack.pop()
        number = self.counts.get(path, 0)
        self.counts[path] = number + 1
        self.events[place] = self._event(path, number, type(module).__name__, True, inputs, output, place)

    def number(self, tensor: Tensor) -> int:
        """The number of a tensor, a new one where it has none yet."""
        found = self.numbers.get(tensor)
        if found is None:
            found = self.numbers[tensor] = next(self._next)
        return found  # type: ignore[no-any-return]

    def _event(
        self, path: str, call: int, name: str, is_module: bool, inputs: Any, output: Any, place: int, nth: int = 0
    ) -> Event:
        ins, outs = list(tensors(inputs)), list(tensors(output))
        return Event(
            path,
            call,
            name,
            is_module,
            tuple(map(self.number, ins)),
            tuple(map(self.number, outs)),
            tuple(tuple(t.shape) for t in ins),
            tuple(tuple(t.shape) for t in outs),
            floating=bool(ins) and (ins[0].is_floating_point() or ins[0].is_complex()),
            number=place,
            last=max(place, len(self.events) - 1),
            nth=nth,
        )

    def _inside_leaf(self) -> bool:
        """Whether the innermost module is one of torch's own layers: what it calls is its own business."""
        if not self.stack:
            return False
        module = self.stack[-1][1]
        own_children = [name for name, _ in module.named_children() if name != CHILD]
        return type(module).__module__.startswith("torch.nn") and not own_children


def _is_in_place(function: Callable[..., Any]) -> bool:
    """Whether a function is a method such as ``add_``, after which its caller goes on with the changed tensor."""
    name = getattr(function, "__name__", "")
    return name.endswith("_") and not name.endswith("__")


def record(
    model: nn.Module, inputs: Any, forward: Callable[[nn.Module, Any], Any] = call, training: bool = False
) -> Tape:
    """Run *model* once on *inputs* and return its tape; the model, its modes and all randomness stay as they were.

    In eval mode, or in that of *training*, whose statistics are put back too. Cost: one forward without gradients, and
    some microseconds for every op; no tensor is kept alive but the output.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> [(event.path, event.name, event.output_shapes[0]) for event in record(net, torch.zeros(5, 2)).events]
    [('', 'Sequential', (5, 3)), ('0', 'Linear', (5, 3)), ('1', 'ReLU', (5, 3))]
    """
    recorder = _Recorder()
    with ExitStack() as stack:
        stack.enter_context(dry(model, training))
        for path, module in model.named_modules():
            for handle in _watch(recorder, path, module):
                stack.callback(handle.remove)
        given = {recorder.number(parameter): name for name, parameter in model.named_parameters()}
        held = [value for m in model.modules() for value in (*vars(m).values(), *m._buffers.values())]
        there = [value for value in (*held, *tensors(inputs)) if isinstance(value, Tensor)]
        before = 1 + max(map(recorder.number, (*model.parameters(), *there)), default=-1)
        with recorder:
            output = forward(model, inputs)
    events = [event for event in recorder.events if event is not None]
    assert len(events) == len(recorder.events), "every call that began has ended"
    return Tape(events, output, given, tuple(map(recorder.number, tensors(output))), before)


def _watch(recorder: _Recorder, path: str, module: nn.Module) -> tuple[RemovableHandle, RemovableHandle]:
    """Report every call of *module* to *recorder*, until the handles are removed."""

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        recorder.enter(path, module)

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        recorder.leave(path, (args, kwargs), output)

    # Prepended before, appended after: an attachment's own calls lie inside its host's.
    return (
        module.register_forward_pre_hook(before, with_kwargs=True, prepend=True),
        module.register_forward_hook(after, with_kwargs=True),
    )


@contextmanager
def dry(model: nn.Module, training: bool) -> Iterator[None]:
    """A block in which *model* may run without leaving a trace: no gradients, forked randomness.

    Buffers are put back, and the attributes of all modules; not what a forward writes elsewhere, or into a list.
    """
    before = [(module, type(module), dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    buffers = (buffer for *_, own in before for buffer in own.values() if buffer is not None and _writable(buffer))
    values = [(buffer, buffer.clone(), buffer._version) for buffer in buffers]
    clock = model.__dict__.get(CLOCK) or Clock()
    with forked(), clock.aside(), torch.no_grad(), _in_mode(model, training), warnings.catch_warnings():
        # Checkpointed regions say that they are useless without gradients, which is no news here.
        warnings.filterwarnings("ignore", message="None of the inputs have requires_grad=True")
        try:
            yield
        finally:
            for module, kind, own, own_buffers in before:
                if type(module) is kind:  # a lazy layer has become what it is to be
                    vars(module).clear()
                    vars(module).update(own)
                    module._buffers.clear()
                    module._buffers.update(own_buffers)
            for buffer, value, version in values:
                if training or buffer._version != version:  # fused norms change their statistics at the same version
                    buffer.copy_(value)


def _writable(buffer: Tensor) -> bool:
    """Whether a buffer has values, and a forward may change them in place."""
    if is_lazy(buffer) or buffer.is_inference():
        return False
    return buffer.layout is not torch.strided or 0 not in buffer.stride()


def evaluating(model: nn.Module) -> AbstractContextManager[None]:
    """Put all of *model* in eval mode for a block, and each module back in its own mode afterwards."""
    return _in_mode(model, training=False)


@contextmanager
def _in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.train(training)
        yield
    finally:
        for module, before in modes:
            module.training = before
