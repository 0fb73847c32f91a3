"""What was done to a model, written down on it, so that every edit can be undone."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any

import torch
from attrs import define, field
from torch import Tensor, nn

from trickbox.errors import SurgeryError
from trickbox.surgery.attach import (
    CLOCK,
    COUNTED,
    Attachments,
    Slot,
    count_forwards,
    end_calls,
    restart_calls,
    stay_in_eval,
    take_off,
    unhook,
)
from trickbox.surgery.draws import Clock

LEDGER = "_trickbox_ledger"


@define(eq=False)
class Added:
    """Something was attached to a layer."""

    host: nn.Module
    slot: Slot

    def undo(self, model: nn.Module) -> None:
        take_off(self.host, self.slot)


@define(eq=False)
class Converted:
    """A layer was replaced; `original` is what stood there."""

    path: str
    original: nn.Module

    def undo(self, model: nn.Module) -> None:
        new = model.get_submodule(self.path)
        replace_module(model, new, self.original.train(new.training))


@define(eq=False)
class Written:
    """A parameter or buffer was overwritten; later tricks leave it alone where `keep` says so."""

    name: str
    original: Tensor
    keep: bool

    def undo(self, model: nn.Module) -> None:
        with torch.no_grad():
            tensor_of(model, self.name).copy_(self.original)


@define(eq=False)
class Frozen:
    """The parameters under `path` stopped being trained; `trained` are those that were, `kept` the modules that are
    kept in eval mode, `following` those of them that had the model's own mode."""

    path: str
    trained: list[str]
    kept: list[str]
    following: list[str]

    @classmethod
    def put(cls, model: nn.Module, path: str, parameters: Collection[str], modules: Collection[str]) -> Frozen:
        """Stop training *parameters*, and keep *modules* in eval mode, where that is not so already."""
        trained = [name for name in parameters if model.get_parameter(name).requires_grad]
        for name in parameters:
            model.get_parameter(name).requires_grad_(False).grad = None
        resting = {name: model.get_submodule(name) for name in modules}
        kept = [name for name, module in resting.items() if stay_in_eval not in module._forward_pre_hooks.values()]
        for name in kept:
            resting[name].register_forward_pre_hook(stay_in_eval)
        following = [name for name in kept if resting[name].training == model.training]
        return cls(path, trained, kept, following)

    def undo(self, model: nn.Module) -> None:
        for name in self.trained:
            model.get_parameter(name).requires_grad_(True)
        for path in self.kept:
            unhook(model.get_submodule(path), (stay_in_eval,))
        for path in self.following:
            model.get_submodule(path).training = model.training


@define(eq=False)
class Counting:
    """The calls of a layer that is called several times are numbered anew in every forward of the model."""

    attached: Attachments

    def undo(self, model: nn.Module) -> None:
        model.__dict__[COUNTED].remove(self.attached)
        if not model.__dict__[COUNTED]:
            del model.__dict__[COUNTED]
            unhook(model, (restart_calls, end_calls))


@define(eq=False)
class Ticking:
    """The model counts its forwards for what draws."""

    def undo(self, model: nn.Module) -> None:
        del model.__dict__[CLOCK]
        unhook(model, (count_forwards,))


Edit = Added | Converted | Written | Frozen | Counting | Ticking


@define(eq=False)
class Ledger:
    """All edits of a model, oldest first, and the digest of its parameters when the last trick was done."""

    edits: list[Edit] = field(factory=list)
    sealed: bytes | None = None
    recipes: list[list[dict[str, Any]]] = field(factory=list)
    """For every time that tricks were put on: those that changed more than weights, in their JSON form, in order."""
    shared: set[str] = field(factory=set)
    """The parameters that more than one module uses."""
    written: set[str] = field(factory=set)
    """The parameters and buffers that were overwritten, also after the originals are forgotten."""

    def copy(self) -> Ledger:
        """What is written down now, whatever is added later."""
        return Ledger(list(self.edits), self.sealed, list(self.recipes), set(self.shared), set(self.written))

    def seal(self, model: nn.Module) -> None:
        """Remember the parameters as they are now. Cost: one pass over them, where any was written."""
        if any(isinstance(edit, Written) for edit in self.edits):
            self.sealed = _digest(model)

    def forget_trained(self, model: nn.Module) -> None:
        """Forget what was overwritten if the model has been trained since: its weights belong together now."""
        if self.sealed is not None and self.sealed != _digest(model):
            self.edits = [edit for edit in self.edits if not isinstance(edit, Written)]
            self.sealed = None


def undo(model: nn.Module) -> None:
    """Take back everything that tricks did to *model*, in place: same class, same keys, same bits.

    What tricks wrote into the model's own parameters (initialization, transfer) is taken back too, unless the model has
    been trained since: then its weights belong together and all stay. What a trick added is gone, with all that it
    learned. Harmless on a model that has no tricks.
    """
    forget_trained(model)
    undo_since(model, 0)
    model.__dict__.pop(LEDGER, None)


def edits_of(model: nn.Module) -> int:
    """How many edits *model* has undergone; `undo_since` takes back those that follow."""
    return len(ledger(model).edits) if is_tricked(model) else 0


def undo_since(model: nn.Module, edits: int) -> None:
    """Take back all edits but the first so many."""
    if is_tricked(model):
        made = ledger(model).edits
        while len(made) > edits:
            made.pop().undo(model)


def builds_since(model: nn.Module, edits: int) -> bool:
    """Whether any edit but the first so many did more than to overwrite values."""
    return is_tricked(model) and any(not isinstance(edit, Written) for edit in ledger(model).edits[edits:])


def remember(model: nn.Module, recipe: list[dict[str, Any]], shared: set[str]) -> None:
    """Write down, on a model that was edited, by which tricks, and which parameters more than one module uses."""
    if is_tricked(model):
        found = ledger(model)
        found.recipes += [recipe] if recipe else []
        found.shared |= shared
        found.written |= {edit.name for edit in found.edits if isinstance(edit, Written)}


def clock_of(model: nn.Module) -> Clock:
    """The clock of the layers of *model* that draw; a new one where there are none."""
    found: Clock = model.__dict__.get(CLOCK) or Clock()
    return found


def has_draws(model: nn.Module) -> bool:
    """Whether tricks have put layers on *model* that draw."""
    return CLOCK in model.__dict__


def recipes_of(model: nn.Module) -> list[list[dict[str, Any]]]:
    """For every time that tricks were put on *model*: those that changed more than weights, in their JSON form."""
    return ledger(model).recipes if is_tricked(model) else []


def ledger(model: nn.Module) -> Ledger:
    """The edits of *model* that undo takes back."""
    found: Ledger = model.__dict__.setdefault(LEDGER, Ledger())
    return found


def is_tricked(model: nn.Module) -> bool:
    """Whether tricks have edited *model* and have not been undone."""
    return LEDGER in model.__dict__


def seal(model: nn.Module) -> None:
    """Mark the end of surgery: what changes in the parameters from here on is training."""
    if is_tricked(model):
        ledger(model).seal(model)


def forget_trained(model: nn.Module) -> None:
    """Free the originals of overwritten parameters when the model has been trained: undo would not use them."""
    if is_tricked(model):
        ledger(model).forget_trained(model)


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put *new* in the place of *old* under every parent. Raises `SurgeryError` for the model itself."""
    if old is model:
        raise SurgeryError("the model itself cannot be replaced, only a layer inside it; wrap it in nn.Sequential")
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


def tensor_of(model: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of that name."""
    path, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(path), leaf)  # type: ignore[no-any-return]


def _digest(model: nn.Module) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()
