"""Functions that a module calls in its own forward: counted while it runs, and the chosen ones changed.

The module's source stays as it is. Its forward runs inside a mode that sees every function of torch; what is called by
the modules inside it is theirs, and passed over.
"""

from __future__ import annotations

import functools
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode, get_ignored_functions, get_overridable_functions

from trickbox.errors import SurgeryError


def name_of(function: Callable[..., Any]) -> str:
    """The name by which a function of torch is told, alike for ``torch.add``, ``x + y`` and ``x.add_(y)``.

    >>> name_of(torch.add), name_of(torch.Tensor.__add__), name_of(torch.Tensor.add_)
    ('add', 'add', 'add')
    """
    return getattr(function, "__name__", str(function)).strip("_")


@functools.cache
def _named() -> dict[str, list[Callable[..., Any]]]:
    found: dict[str, list[Callable[..., Any]]] = {}
    for function in itertools.chain(*get_overridable_functions().values(), get_ignored_functions()):
        found.setdefault(name_of(function), []).append(function)
    return found


def table_of(names: Iterable[str]) -> dict[Callable[..., Any], str]:
    """All functions of torch that bear one of *names*, with that name; graphs can look one up, but not ask its name.

    >>> sorted(set(table_of(["add", "no such"]).values()))
    ['add']
    """
    return {function: name for name in names for function in _named().get(name, ())}


class Calls(TorchFunctionMode):
    """Counts the calls that the forward of *host* makes itself, and lets what is attached to it change them."""

    def __init__(self, attached: Any, call: int) -> None:
        super().__init__()
        self.attached = attached
        self.call = call
        self.seen = {name: 0 for at, name in attached.planned if at == call}
        self.region = _region()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = self.attached.table.get(func)
        if name not in self.seen or self.attached.depth:
            return func(*args, **(kwargs or {}))
        number = self.seen[name]
        self.seen[name] = number + 1
        if _region() != self.region:
            raise SurgeryError(
                f"a trick acts on {name}, which is called inside activation checkpointing or torch.no_grad() within "
                "one forward, where a repetition would not know of it; checkpoint the whole module instead"
            )
        return self.attached.change(self.call, name, number, func, args, kwargs or {})


def _region() -> tuple[bool, bool]:
    """What differs inside a checkpointed region, reentrant or not; nothing does while a graph is made."""
    if torch.compiler.is_compiling():
        return True, True
    return torch.is_grad_enabled(), torch._C._autograd._top_saved_tensors_default_hooks(False) is None


def watch(host: nn.Module, attached: Any, forward: Callable[..., Any], inner: Iterable[nn.Module]) -> None:
    """Let *forward* run instead of the forward of *host*, and let the modules that it calls say when they run.

    Raises `SurgeryError` for a module whose forward somebody else has put in its place already.
    """
    if "forward" in vars(host):
        raise SurgeryError(
            f"{type(host).__name__} has a forward that was set on the object, so functions inside it cannot be reached"
        )
    host.forward = functools.partial(forward, host)
    attached.hooks = (functools.partial(_enter, attached), functools.partial(_leave, attached))
    attached.inner = [module for module in inner if module is not host]
    for module in attached.inner:
        _say(module, *attached.hooks)


def come_last(module: nn.Module) -> None:
    """Let *module* say that it is done only after what was attached to it later."""
    hooks = cast("OrderedDict[int, Callable[..., Any]]", module._forward_hooks)
    for key in [key for key, hook in hooks.items() if getattr(hook, "func", None) is _leave]:
        hooks.move_to_end(key)


def _say(module: nn.Module, before: Callable[..., Any], after: Callable[..., Any]) -> None:
    module.register_forward_pre_hook(before, prepend=True)
    module.register_forward_hook(after)


def _enter(attached: Any, module: nn.Module, args: Any) -> None:
    attached.depth += 1


def _leave(attached: Any, module: nn.Module, args: Any, output: Any) -> None:
    attached.depth -= 1
