"""Attaching modules to a layer without touching it: its class, its keys and its identity stay.

What tricks add to a module is one child named ``trickbox``, so its keys are ``conv1.trickbox.batch_norm.weight``. Two
stateless hooks find that child on the module that they are called for; deepcopy and pickle therefore just work. Where
something acts on a function in the middle of a forward, that forward runs as the file inside.py says.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Any, Literal, cast

import torch
from attrs import define
from torch import Tensor, nn

from trickbox.errors import SurgeryError
from trickbox.nest import map_tensors, tensors
from trickbox.surgery.inside import Calls, come_last, table_of, watch
from trickbox.surgery.recompute import numbered

Way = Literal["after", "before", "add", "instead"]
"""How a child acts: on an output; on an input; added to the output, worked out from the input; as the function."""

CHILD = "trickbox"
COUNTED = "_trickbox_counted"
CLOCK = "_trickbox_clock"


class Rank(IntEnum):
    """The order of what is stacked at one site: nearest to the layer first, whatever was installed first."""

    ADAPTER = 5
    NORM = 10
    DROPOUT = 20
    SQUEEZE = 22
    GATE = 25
    STOCHASTIC_DEPTH = 30
    SHORTCUT = 40


@define(eq=False)
class Stash:
    """The input of the first layer under a shortcut, kept until the last one has run."""

    value: Tensor | None = None

    def take(self) -> Tensor:
        """Give the tensor away; the graph must not live longer than its forward."""
        value, self.value = self.value, None
        if value is None:
            raise SurgeryError(
                "a shortcut around several layers was left without its input: activation checkpointing repeats the "
                "last layer without the first; checkpoint all of them together, or span one layer only"
            )
        return value

    def __reduce__(self) -> tuple[type[Stash], tuple[()]]:
        # Copies and pickles never carry the tensor that an aborted forward left behind.
        return Stash, ()


@define(eq=False)
class Slot:
    """One attached child: at which call of its host it acts, and in which way."""

    name: str
    call: int
    rank: Rank
    way: Way = "after"
    stash: Stash | None = None
    """For a shortcut: where the input comes from, when it is not the host's own."""
    tensor: int = 0
    """On which of the inputs or outputs it acts, where there are several tensors."""
    function: str = ""
    """The function in the host's forward on which it acts; empty for the host itself."""
    number: int = 0
    """Which call of that function it is."""


class Attachments(nn.Module):
    """Everything that tricks attached to one module."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls
        self.call = 0
        self.counts = False
        """Whether a forward of the whole model is running, in which calls are numbered."""
        self.entered = 0
        self.slots: list[Slot] = []
        self.row: list[str] = []
        """The children one after the other, where all of them act on the output of a host that is called once."""
        self.planned: dict[tuple[int, str], int] = {}
        """How often each call of the host calls the functions that something acts on."""
        self.table: dict[Callable[..., Any], str] = {}
        """Those functions, by all their spellings."""
        self.depth = 0
        """How many of the modules inside the host are running, one in another."""
        self.inner: list[nn.Module] = []
        self.hooks: tuple[Callable[..., Any], ...] = ()
        """Those modules, and the hooks by which they say so."""

    def forward(self, x: Any) -> Any:
        """*x* itself: where the host runs all its children in a row, as nn.Sequential does, this is one of them."""
        return x

    def add(self, slot: Slot, child: nn.Module | None) -> None:
        """Add one child; of equal rank, the earlier is nearer to the layer."""
        if child is not None:
            self.add_module(slot.name, child)
        self._set_slots(sorted([*self.slots, slot], key=lambda each: each.rank))

    def remove(self, slot: Slot) -> None:
        """Remove a slot and its child."""
        self._set_slots([other for other in self.slots if other is not slot])
        self._modules.pop(slot.name, None)

    def _set_slots(self, slots: list[Slot]) -> None:
        self.slots = slots
        in_a_row = self.calls == 1 and all(_is_behind(slot) for slot in slots)
        self.row = [slot.name for slot in slots] if in_a_row else []

    def plan(self, slot: Slot, calls: int) -> None:
        """Expect *calls* calls of the function of *slot*."""
        self.planned[slot.call, slot.function] = calls
        self.table = table_of(name for _, name in self.planned)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "table": {}}  # not all spellings of a function can be pickled

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.table = table_of(name for _, name in self.planned)

    def free_name(self, name: str) -> str:
        """*name* as one word, or with a number where it is taken, also by an attribute of every module."""
        word = re.sub(r"\W", "_", name)
        return next(n for n in (word, *(f"{word}_{i}" for i in range(2, 1000))) if not hasattr(self, n))

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the host is called with instead of *args* and *kwargs*."""
        self.entered = call = self._number()
        for slot in self.slots:
            if slot.way == "before" and slot.call == call and not slot.function:
                if slot.stash is not None:
                    slot.stash.value = next(tensors([args, kwargs]))
                else:
                    args, kwargs = _changed((args, kwargs), slot.tensor, self._modules[slot.name])
        return args, kwargs

    def after(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """What the host gives back instead of *output*."""
        if self.row and isinstance(output, Tensor):
            for name in self.row:
                output = self._modules[name](output)  # type: ignore[misc]
            return output
        call = self.entered if any(map(_early, self.slots)) else self._number()
        for slot in self.slots:
            if slot.call == call and not slot.function:
                output = self._output(slot, args, kwargs, output)
        return output

    def change(
        self, call: int, name: str, number: int, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What a function in the forward of the host gives back, with all that acts on this call of it."""
        here = [s for s in self.slots if (s.call, s.function, s.number) == (call, name, number)]
        for slot in here:
            if slot.way == "before":
                args, kwargs = _changed((args, kwargs), slot.tensor, self._modules[slot.name])
            elif slot.way == "instead":
                function = functools.partial(self._modules[slot.name], function)  # type: ignore[arg-type, misc]
        output = function(*args, **kwargs)
        for slot in here:
            output = self._output(slot, args, kwargs, output)
        return output

    def _output(self, slot: Slot, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """*output* as one slot leaves it."""
        if slot.way == "after" and slot.stash is not None:
            slot.stash.value = output
        child = self._modules.get(slot.name) if slot.way in ("after", "add") else None
        if child is None:
            return output
        if slot.way == "after":
            return _changed(output, slot.tensor, child)
        return _add(output, child(next(tensors([args, kwargs])) if slot.stash is None else slot.stash.take()))

    def _number(self) -> int:
        """Which call of the host in this forward has begun, or is repeated by activation checkpointing."""
        if self.calls == 1:
            return 0
        return self._next() if torch.compiler.is_compiling() else numbered(self, self._next)

    def _next(self) -> int:
        """The number of a new call; of one outside of a forward of the whole model 0."""
        if not self.counts:
            return 0
        if self.call == self.calls:
            raise SurgeryError(
                f"a layer with {', '.join(self._modules)} on it is called more often than the {self.calls} times that "
                "tricks were planned for, and nothing says what acts on the new call; apply the tricks with inputs on "
                "which the model makes all of its calls"
            )
        self.call += 1
        return self.call - 1

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # A plain checkpoint knows nothing of what is attached: then everything here keeps its values.
        if not any(key.startswith(prefix) for key in state_dict):
            state_dict.update(self.state_dict(prefix=prefix))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _is_behind(slot: Slot) -> bool:
    """Whether a child acts on the output of the host and on nothing else."""
    return slot.way == "after" and slot.stash is None and not slot.function and slot.call == 0


def _early(slot: Slot) -> bool:
    """Whether the host must know before its forward which call of it this is."""
    return slot.way == "before" or bool(slot.function)


def _changed(nest: Any, number: int, child: Any) -> Any:
    """*nest* with one of its tensors as *child* leaves it."""
    if isinstance(nest, Tensor):
        return child(nest)
    seen = [0]

    def each(tensor: Tensor) -> Any:
        seen[0] += 1
        return child(tensor) if seen[0] == number + 1 else tensor

    return map_tensors(each, nest)


def _add(output: Tensor, shortcut: Tensor) -> Tensor:
    if output.shape != shortcut.shape:
        raise SurgeryError(
            f"a shortcut of shape {tuple(shortcut.shape)} cannot be added to an output of shape "
            f"{tuple(output.shape)}; adding would broadcast. Feed inputs of the shape that the tape was recorded with"
        )
    return output + shortcut


def attachments(module: nn.Module) -> Attachments | None:
    """What is attached to *module*, or None."""
    found = module._modules.get(CHILD)
    return found if isinstance(found, Attachments) else None


def attach(host: nn.Module, slot: Slot, child: nn.Module | None, calls: int, inner: Iterable[nn.Module] = ()) -> None:
    """Attach *child* to *host*, whose forward calls the modules *inner*.

    Raises `SurgeryError` when the host has something else of that name.
    """
    found = attachments(host)
    if found is None:
        if hasattr(host, CHILD):
            raise SurgeryError(f"{type(host).__name__} has its own attribute {CHILD!r}, which trickbox needs")
        found = Attachments(calls)
        host.add_module(CHILD, found)
    if slot.function and not found.hooks:
        watch(host, found, run_inside, inner)
    if _early(slot) and run_before not in host._forward_pre_hooks.values():
        host.register_forward_pre_hook(run_before, with_kwargs=True)
    if slot.way in ("after", "add") and not slot.function and run_after not in host._forward_hooks.values():
        host.register_forward_hook(run_after, with_kwargs=True)
        come_last(host)
    found.add(slot, child)
    found.train(host.training)


def take_off(host: nn.Module, slot: Slot) -> None:
    """Take one child off *host* again, and everything of ours with the last."""
    found = attachments(host)
    if found is None:
        return
    found.remove(slot)
    if found.hooks and not any(other.function for other in found.slots):
        unwatch(host, found)
    if not found.slots:
        del host._modules[CHILD]
        unhook(host, (run_before, run_after))


def unwatch(host: nn.Module, attached: Attachments) -> None:
    """Let *host* run its own forward again."""
    del host.__dict__["forward"]
    for module in attached.inner:
        unhook(module, attached.hooks)
    attached.inner, attached.hooks = [], ()


_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def stand_in(old: nn.Module, new: nn.Module) -> None:
    """Let *new*, which takes the place of *old*, have what is attached to *old*, and all of its hooks."""
    for name in _HOOKS:
        vars(new)[name] = vars(old)[name] | vars(new)[name]
    new._is_full_backward_hook = old._is_full_backward_hook
    if (found := attachments(old)) is not None:
        new.add_module(CHILD, found)


def unhook(module: nn.Module, functions: tuple[Callable[..., Any], ...]) -> None:
    """Remove those forward hooks from *module*; a copy has the hooks of its original, but not their handles."""
    for hooks, with_kwargs in (
        (module._forward_hooks, module._forward_hooks_with_kwargs),
        (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
    ):
        for key in [key for key, hook in hooks.items() if hook in functions]:
            del hooks[key]
            with_kwargs.pop(key, None)


def run_before(host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook of every host."""
    return cast(Attachments, host._modules[CHILD]).before(args, kwargs)


def run_after(host: nn.Module, *passed: Any) -> Any:
    """Forward hook of every host."""
    # Starred arguments, because dynamo looks into named ones, and warns of outputs that require gradients.
    return cast(Attachments, host._modules[CHILD]).after(*passed)


def run_inside(host: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The forward of a host in which something acts on a function."""
    found = cast(Attachments, host._modules[CHILD])
    found.depth = 0  # a forward that failed may have left it anywhere
    calls = Calls(found, found.entered)
    with calls:
        output = type(host).forward(host, *args, **kwargs)
    for name, made in calls.seen.items():
        if made != found.planned[found.entered, name]:
            raise SurgeryError(
                f"{type(host).__name__} called {name} {made} times in one forward, and tricks were planned for "
                f"{found.planned[found.entered, name]}; apply them with inputs on which the model makes the same calls"
            )
    return output


def stay_in_eval(module: nn.Module, args: tuple[Any, ...]) -> None:
    """Forward pre-hook of a frozen norm or dropout: in eval mode also after ``model.train()``."""
    module.training = False


def restart_calls(model: nn.Module, args: tuple[Any, ...]) -> None:
    """Forward pre-hook of a model with modules that are called twice: their calls are numbered from here on."""
    for attached in model.__dict__[COUNTED]:
        attached.call, attached.counts = 0, True


def end_calls(model: nn.Module, *_: Any) -> None:
    """Forward hook of such a model: a part of it that is called on its own makes first calls."""
    for attached in model.__dict__[COUNTED]:
        attached.call, attached.counts = 0, False


def count_forwards(model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Forward hook of a model with layers that draw: two forwards of a compiled graph must not draw the same."""
    if torch.compiler.is_compiling() and model.training:
        model.__dict__[CLOCK].tensor.add_(1)
