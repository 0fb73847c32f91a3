"""The execution tape: what one dry forward really calls, in which order, with which shapes.

Order, shared modules, shapes and the functional op that follows a layer are known only here, not from
``named_modules()``. Recording leaves no trace: eval mode, no gradients, forked randomness, modes and hooks put back.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from attrs import define, field, frozen
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from trickbox.nest import call, tensors
from trickbox.streams import forked
from trickbox.surgery.attach import CHILD

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
    outputs: tuple[int, ...]
    input_shapes: tuple[Shape, ...]
    output_shapes: tuple[Shape, ...]


@define
class Tape:
    """The events of one forward, in the order in which the calls began."""

    events: list[Event]
    output: Any
    """What the model returned, on the device, without gradient."""

    def modules(self) -> Iterator[Event]:
        """The calls of modules, in order."""
        return (event for event in self.events if event.is_module)

    def calls(self, path: str) -> int:
        """How often the module at *path* is called in one forward."""
        return sum(event.path == path for event in self.modules())

    def holds_others(self, event: Event) -> bool:
        """Whether *event* is the call of a container: other events of the user's model lie inside."""
        if not event.is_module:
            return False
        inside = f"{event.path}." if event.path else ""
        return any(
            (e.path == event.path and not e.is_module)
            or (e.path.startswith(inside) and e.path != event.path and f".{CHILD}." not in f".{e.path}.")
            for e in self.events
        )

    def following(self, event: Event) -> Iterator[Event]:
        """The events after *event* that consume its output, and then the outputs of those, in order."""
        known = set(event.outputs)
        for later in self.events[self.events.index(event) + 1 :]:
            again = later.path == event.path and later.is_module  # the module is shared and called once more
            inside = not again and f"{later.path}.".startswith(f"{event.path}.")
            if known & set(later.inputs) and not inside:
                known |= set(later.outputs)
                yield later


@define(eq=False)
class _Recorder(TorchFunctionMode):
    events: list[Event | None] = field(factory=list)
    stack: list[tuple[str, nn.Module, int]] = field(factory=list)
    counts: dict[str, int] = field(factory=dict)
    alive: list[Any] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        TorchFunctionMode.__init__(self)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = list(tensors(result))
        if outputs and not self._inside_leaf():
            name = getattr(func, "__name__", str(func)).strip("_")
            path = self.stack[-1][0] if self.stack else ""
            self.events.append(self._event(path, 0, name, False, [args, kwargs or {}], result))
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
        self.events[place] = self._event(path, number, type(module).__name__, True, inputs, output)

    def _event(self, path: str, number: int, name: str, is_module: bool, inputs: Any, output: Any) -> Event:
        ins, outs = list(tensors(inputs)), list(tensors(output))
        self.alive += [*ins, *outs]  # an id is unique only while its tensor lives
        return Event(
            path,
            number,
            name,
            is_module,
            tuple(map(id, ins)),
            tuple(map(id, outs)),
            tuple(tuple(t.shape) for t in ins),
            tuple(tuple(t.shape) for t in outs),
        )

    def _inside_leaf(self) -> bool:
        """Whether the innermost module is one of torch's own layers: what it calls is its own business."""
        if not self.stack:
            return False
        module = self.stack[-1][1]
        own_children = [name for name, _ in module.named_children() if name != CHILD]
        return type(module).__module__.startswith("torch.nn") and not own_children


def record(model: nn.Module, inputs: Any, forward: Callable[[nn.Module, Any], Any] = call) -> Tape:
    """Run *model* once on *inputs* and return its tape; the model, its modes and all randomness stay as they were.

    Cost: one forward without gradients, and some microseconds for every op.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> [(event.path, event.name, event.output_shapes[0]) for event in record(net, torch.zeros(5, 2)).events]
    [('', 'Sequential', (5, 3)), ('0', 'Linear', (5, 3)), ('1', 'ReLU', (5, 3))]
    """
    recorder = _Recorder()
    with ExitStack() as stack:
        stack.enter_context(forked())
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluating(model))
        for path, module in model.named_modules():
            for handle in _watch(recorder, path, module):
                stack.callback(handle.remove)
        # Checkpointed regions say that they are useless without gradients, which is no news here.
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message="None of the inputs have requires_grad=True")
        with recorder:
            output = forward(model, inputs)
    return Tape([event for event in recorder.events if event is not None], output)


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
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put all of *model* in eval mode for a block, and each module back in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
