"""Editing a model so that every edit can be explained and undone.

`Surgery` is what tricks use (``state.surgery``). It edits through four verbs: *attach* a module at a site, *convert* a
layer to another type, *write* a parameter, *freeze* a part. A ledger on the model remembers what undo needs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from attrs import define, field, frozen
from torch import Tensor, nn

from trickbox.errors import NoEffectError, SurgeryError
from trickbox.nest import call
from trickbox.surgery.attach import (
    CLOCK,
    COUNTED,
    Attachments,
    Rank,
    Slot,
    Stash,
    attach,
    attachments,
    count_forwards,
    restart_calls,
    stay_in_eval,
    take_off,
    unhook,
)
from trickbox.surgery.draws import Clock
from trickbox.surgery.sites import DROPOUTS, NORMS, WEIGHT_LAYERS, Site, sites_of
from trickbox.surgery.tape import Tape, record

LEDGER = "_trickbox_ledger"


# -- what undo needs to know -----------------------------------------------------------------------------------------


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
        replace_module(model, model.get_submodule(self.path), self.original)


@define(eq=False)
class Written:
    """A parameter or buffer was overwritten; later tricks leave it alone where `keep` says so."""

    name: str
    original: Tensor
    keep: bool

    def undo(self, model: nn.Module) -> None:
        with torch.no_grad():
            _tensor(model, self.name).copy_(self.original)


@define(eq=False)
class Frozen:
    """Parameters stopped being trained; `trained` are those that were, `kept` the modules that are kept in eval mode,
    `following` those of them that had the model's own mode."""

    trained: list[str]
    kept: list[str]
    following: list[str]

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
            unhook(model, (restart_calls,))


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

    def seal(self, model: nn.Module) -> None:
        """Remember the parameters as they are now. Cost: one pass over them, where any was written."""
        if any(isinstance(edit, Written) for edit in self.edits):
            self.sealed = _digest(model)

    def forget_trained(self, model: nn.Module) -> None:
        """Forget what was overwritten if the model has been trained since: its weights belong together now."""
        if self.sealed is not None and self.sealed != _digest(model):
            self.edits = [edit for edit in self.edits if not isinstance(edit, Written)]
            self.sealed = None


@frozen
class Note:
    """One line of the explanation: what a trick did, or did not do, at a site and why."""

    trick: str
    where: str
    what: str
    parameters: int = 0
    skipped: bool = False


# -- the verbs -------------------------------------------------------------------------------------------------------


@define(eq=False)
class Surgery:
    """The edits of one run on one model. `acting` names the trick whose turn it is."""

    model: nn.Module
    inputs: Any
    tape: Tape
    forward: Callable[[nn.Module, Any], Any] = call
    acting: str = "surgery"
    notes: list[Note] = field(factory=list)

    @classmethod
    def on(cls, model: nn.Module, inputs: Any, forward: Callable[[nn.Module, Any], Any] = call) -> Surgery:
        """Record the tape of *model* on *inputs* and be ready to edit."""
        return cls(model, inputs, record(model, inputs, forward), forward)

    # where

    def sites(self, *kinds: type) -> list[Site]:
        """The calls of modules of the given kinds, in the order of execution, without what tricks attached."""
        return [site for site in sites_of(self.model, self.tape, kinds) if not site.attached]

    def head(self) -> Site:
        """The last convolution or linear layer: what makes the outputs. Raises `NoEffectError` where there is none."""
        layers = self.require(self.sites(*WEIGHT_LAYERS), "a last convolution or linear layer")
        return layers[-1]

    def require(self, sites: Sequence[Site], looked_for: str) -> list[Site]:
        """*sites*, unless there are none: then `NoEffectError` tells what was looked for and what was found."""
        if sites:
            return list(sites)
        found = {f"{event.path or '(model)'} ({event.name})": None for event in self.tape.modules()}
        reasons = "; ".join(f"{n.where}: {n.what}" for n in self.notes if n.trick == self.acting and n.skipped)
        raise NoEffectError(
            f"{self.acting} acted nowhere: it looked for {looked_for}; the model ran {', '.join(found)}"
            + (f". Skipped: {reasons}" if reasons else "")
        )

    def skip(self, site: Site, why: str) -> None:
        """Note that a site was left alone, and why."""
        self.notes.append(Note(self.acting, site.label, why, skipped=True))

    def note(self, where: str, what: str, parameters: int = 0) -> None:
        """Note what the acting trick did at a place; `explain` prints it."""
        self.notes.append(Note(self.acting, where, what, parameters))

    # what

    def insert(self, site: Site, child: nn.Module, rank: Rank) -> None:
        """Let *child* change the output of *site*; of several children the lowest rank comes first."""
        self._attach(site, child, rank)

    def insert_before(self, site: Site, child: nn.Module, rank: Rank) -> None:
        """Let *child* change the first input of *site*."""
        self._attach(site, child, rank, before=True)

    def shortcut(self, first: Site, last: Site, path: nn.Module) -> None:
        """Add ``path(input of first)`` to the output of *last*; shapes must be equal, nothing broadcasts."""
        stash = None
        if (first.path, first.call) != (last.path, last.call):
            stash = Stash()
            self._add(first, Slot("stash", first.call, Rank.SHORTCUT, True, stash), None)
        self._attach(last, path, Rank.SHORTCUT, stash=stash)

    def convert(self, site: Site, module: nn.Module) -> None:
        """Replace the layer at *site* everywhere it is used, and record the tape anew."""
        module.to(_device_of(self.model)).train(site.module.training)
        replace_module(self.model, site.module, module)
        ledger(self.model).edits.append(Converted(site.path, site.module))
        added = _count(module) - _count(site.module)
        self.note(site.label, f"{type(site.module).__name__} becomes {type(module).__name__}", added)
        self.tape = record(self.model, self.inputs, self.forward)

    def write(self, name: str, value: Tensor, *, keep: bool = True) -> None:
        """Overwrite a parameter or buffer by name; with *keep*, `kept` tells later tricks to leave it alone."""
        tensor = _tensor(self.model, name)
        if tensor.shape != value.shape:
            raise SurgeryError(
                f"{self.acting}: {name} has shape {tuple(tensor.shape)}, cannot write {tuple(value.shape)}"
            )
        original = tensor.detach().clone()
        with torch.no_grad():
            tensor.copy_(value)
        ledger(self.model).edits.append(Written(name, original, keep))
        self.note(name, "written")

    def written(self) -> set[str]:
        """The parameters and buffers that tricks have overwritten so far."""
        return {edit.name for edit in ledger(self.model).edits if isinstance(edit, Written)}

    def kept(self) -> set[str]:
        """Those of `written` that later tricks shall leave alone."""
        return {edit.name for edit in ledger(self.model).edits if isinstance(edit, Written) and edit.keep}

    def converted(self) -> list[tuple[str, nn.Module]]:
        """The path of every layer that was replaced, and what stood there."""
        return [(edit.path, edit.original) for edit in ledger(self.model).edits if isinstance(edit, Converted)]

    def freeze(self, path: str) -> None:
        """Stop training everything under *path*; its norms and dropouts stay in eval mode whatever is called."""
        part = self.model.get_submodule(path)
        prefix = f"{path}." if path else ""
        trained = [prefix + name for name, p in part.named_parameters() if p.requires_grad]
        for parameter in part.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        kept, following = [], []
        for name, module in part.named_modules():
            if (
                isinstance(module, (*NORMS, *DROPOUTS, nn.MultiheadAttention))
                and stay_in_eval not in module._forward_pre_hooks.values()
            ):
                module.register_forward_pre_hook(stay_in_eval)
                kept.append((prefix + name).rstrip("."))
                if module.training == self.model.training:
                    following.append(kept[-1])
        ledger(self.model).edits.append(Frozen(trained, kept, following))
        self.note(path or "(model)", f"frozen, {len(trained)} parameter tensors")

    def tick(self, clock: Clock) -> None:
        """Let the model count its forwards for what draws at *clock*."""
        if CLOCK not in self.model.__dict__:
            self.model.__dict__[CLOCK] = clock
            self.model.register_forward_hook(count_forwards)
            ledger(self.model).edits.append(Ticking())
        assert clock_of(self.model) is clock, "a run takes over the clock that it finds"

    def _attach(
        self, site: Site, child: nn.Module, rank: Rank, *, before: bool = False, stash: Stash | None = None
    ) -> None:
        name = self.acting if site.call == 0 else f"{self.acting}_call{site.call}"
        name = (attachments(site.module) or Attachments(site.calls)).free_name(name)
        child.to(_device_of(self.model))
        self._add(site, Slot(name, site.call, rank, before, stash), child)
        shape = site.input_shape if before else site.output_shape
        where = "before" if before else "after"
        self.note(f"{where} {site.label}", f"{type(child).__name__}({child.extra_repr()}) on {shape}", _count(child))

    def _add(self, site: Site, slot: Slot, child: nn.Module | None) -> None:
        attach(site.module, slot, child, site.calls)
        ledger(self.model).edits.append(Added(site.module, slot))
        if site.calls > 1:
            counted = self.model.__dict__.setdefault(COUNTED, [])
            if not counted:
                self.model.register_forward_pre_hook(restart_calls)
            found = attachments(site.module)
            assert found is not None
            if found not in counted:
                counted.append(found)
                ledger(self.model).edits.append(Counting(found))


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


def clock_of(model: nn.Module) -> Clock:
    """The clock of the layers of *model* that draw; a new one where there are none."""
    found: Clock = model.__dict__.get(CLOCK) or Clock()
    return found


def has_draws(model: nn.Module) -> bool:
    """Whether tricks have put layers on *model* that draw."""
    return CLOCK in model.__dict__


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


def _tensor(model: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(path), leaf)  # type: ignore[no-any-return]


def _digest(model: nn.Module) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _device_of(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))
