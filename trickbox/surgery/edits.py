"""Editing a model so that every edit can be explained and undone.

`Surgery` is what tricks use (``state.surgery``). It edits through four verbs: *attach* a module at a site, *convert* a
layer to another type, *write* a parameter, *freeze* a part. A ledger on the model remembers what undo needs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from attrs import define, evolve, field, frozen
from torch import Tensor, nn

from trickbox.errors import NoEffectError, SurgeryError
from trickbox.nest import call
from trickbox.surgery.anatomy import Anatomy
from trickbox.surgery.attach import (
    CHILD,
    CLOCK,
    COUNTED,
    Attachments,
    Rank,
    Slot,
    Stash,
    attach,
    attachments,
    count_forwards,
    end_calls,
    restart_calls,
    stay_in_eval,
)
from trickbox.surgery.draws import Clock
from trickbox.surgery.ledger import (
    Added,
    Converted,
    Counting,
    Frozen,
    Ticking,
    Written,
    clock_of,
    edits_of,
    ledger,
    replace_module,
    tensor_of,
)
from trickbox.surgery.places import MODEL, Places, check_matched, choose, unmatched
from trickbox.surgery.sites import DROPOUTS, NORMS, Site, site_of, sites_of
from trickbox.surgery.tape import Event, Tape, dry, record

SHOWN = 12
"""How many calls of modules an error names, before it counts kinds."""


@frozen
class Note:
    """One line of the explanation: what a trick did, or did not do, at a site and why."""

    trick: str
    where: str
    what: str
    parameters: int = 0
    kind: Literal["edit", "skip", "remark"] = "edit"


@define(eq=False)
class Surgery:
    """The edits of one run on one model. `acting` names the trick whose turn it is."""

    model: nn.Module
    inputs: Any
    tape: Tape
    trained: Tape | None = None
    """The tape in training mode; None where the model cannot run so on inputs alone."""
    forward: Callable[[nn.Module, Any], Any] = call
    acting: str = "surgery"
    notes: list[Note] = field(factory=list)
    _anatomy: Anatomy | None = field(default=None, init=False)

    @classmethod
    def on(cls, model: nn.Module, inputs: Any, forward: Callable[[nn.Module, Any], Any] = call) -> Surgery:
        """Record the tapes of *model* on *inputs* and be ready to edit."""
        tape = record(model, inputs, forward)
        try:
            trained = record(model, inputs, forward, training=True)
        except Exception:  # whatever it is, such as targets that it asks for in training
            return cls(model, inputs, tape, None, forward)
        return cls(
            model, inputs, evolve(trained, output=tape.output) if trained.shows_more(tape) else tape, trained, forward
        )

    def try_out(self) -> None:
        """Run the edited model once in eval mode and once in training mode, where it could run so before.

        Raises `SurgeryError`, naming the trick and the site, where that fails. Leaves no trace. Cost: two forwards
        without gradients, where anything was edited.
        """
        if edits_of(self.model) == 0:
            return
        for training in (False, True):
            if training and self.trained is None:
                continue
            try:
                with dry(self.model, training):
                    self.forward(self.model, self.inputs)
            except Exception as error:
                where, mode = self._blame(error), "training" if training else "eval"
                raise SurgeryError(
                    f"{where}: with it the model cannot run in {mode} mode: {type(error).__name__}: {error}"
                ) from error

    def _blame(self, error: Exception) -> str:
        """Where an error came from: the innermost of the modules that tricks have added or put in."""
        ours = {id(m): path for path, m in self.model.named_modules() if f".{CHILD}." in f".{path}."}
        ours |= {id(self.model.get_submodule(path)): path for path, _ in self.converted()}
        found, trace = "surgery", error.__traceback__
        while trace is not None:
            found = ours.get(id(trace.tb_frame.f_locals.get("self")), found)
            trace = trace.tb_next
        return found

    # where

    def sites(self, *kinds: type) -> list[Site]:
        """The calls of modules of the given kinds, in the order of execution, without what tricks attached."""
        return [site for site in sites_of(self.model, self.tape, kinds) if not site.attached]

    def site_of(self, event: Event) -> Site:
        """The site of a module's call that is on the tape."""
        return site_of(self.model, self.tape, event)

    @property
    def anatomy(self) -> Anatomy:
        """The parts of the model as it is now: layers that carry weights, residual connections, blocks, head."""
        if self._anatomy is None or self._anatomy.tape is not self.tape:
            self._anatomy = Anatomy(self.model, self.tape)
        return self._anatomy

    def head(self) -> Site:
        """The last weight layer that makes an output. Raises `NoEffectError` where there is none."""
        return self.require(self.anatomy.heads, "a layer that makes the outputs")[-1]

    def choose(
        self, default: Sequence[Site], among: Sequence[Site], at: Places | None, not_at: Places | None
    ) -> list[Site]:
        """Those of *among* that are at *at*, or where that is None *default*; in both cases without those at *not_at*.

        Raises `ConfigError` for a place that is none of *among*, and says whether it is misspelt or is elsewhere.
        """
        for setting, places in (("at", at), ("not_at", not_at)):
            if unmatched(places, among):
                self._refuse(setting, places, among)
        return choose(default if at is None else among, at, not_at)

    def _refuse(self, setting: str, places: Places | None, among: Sequence[Site]) -> None:
        found = {(site.path, site.call) for site in among}
        others = [site for site in self.sites(nn.Module) if (site.path, site.call) not in found]
        named = self.model.named_modules(remove_duplicate=False)
        idle = {path: m for path, m in named if not self.tape.calls(path) and f".{CHILD}." not in f".{path}."}
        kind = "weight layers" if among and all(site in self.anatomy.layers for site in among) else ""
        check_matched(self.acting, places, among, setting, others=others, idle=idle, kind=kind)

    def require(self, sites: Sequence[Site], looked_for: str) -> list[Site]:
        """*sites*, unless there are none: then `NoEffectError` tells what was looked for and what was found."""
        if sites:
            return list(sites)
        found = list(dict.fromkeys(f"{event.path or MODEL} ({event.name})" for event in self.tape.modules()))
        if len(found) > SHOWN:
            kinds = Counter(event.name for event in self.tape.modules() if not self.tape.holds_others(event))
            found = [f"{calls} {kind}" for kind, calls in kinds.most_common(SHOWN)]
        reasons = "; ".join(f"{n.where}: {n.what}" for n in self.notes if n.trick == self.acting and n.kind != "edit")
        raise NoEffectError(
            f"{self.acting} acted nowhere: it looked for {looked_for}; the model ran {', '.join(found)}"
            + (f". Left alone: {reasons}" if reasons else "")
        )

    def skip(self, site: Site, why: str) -> None:
        """Note that a site was left alone, and why."""
        self.notes.append(Note(self.acting, site.label, why, kind="skip"))

    def leave_out(self, error: NoEffectError) -> None:
        """Note that the acting trick found no place and is left out; what it had noted no longer holds."""
        self.notes = [note for note in self.notes if note.trick != self.acting]
        self.remark(f"left out: {str(error).partition('; the model ran')[0]}")

    def remark(self, what: str) -> None:
        """Note what holds for the whole model, such as why the places are those and no others."""
        self.notes.append(Note(self.acting, MODEL, what, kind="remark"))

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
        """Replace the layer at *site* everywhere it is used; the new one must put out the same shapes."""
        module.to(_device_of(self.model)).train(site.module.training)
        replace_module(self.model, site.module, module)
        ledger(self.model).edits.append(Converted(site.path, site.module))
        added = _count(module) - _count(site.module)
        self.note(site.label, f"{type(site.module).__name__} becomes {type(module).__name__}", added)
        self.tape = self.tape.replaced(site.path, module)

    def write(self, name: str, value: Tensor, *, keep: bool = True) -> None:
        """Overwrite a parameter or buffer by name; with *keep*, `kept` tells later tricks to leave it alone."""
        tensor = tensor_of(self.model, name)
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
        ledger(self.model).edits.append(Frozen(path, trained, kept, following))
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
        output = 0 if before else self.tape.used(site.event)
        self._add(site, Slot(name, site.call, rank, before, stash, output), child)
        shape = site.input_shape if before else site.event.output_shapes[output]
        where = "before" if before else "after"
        self.note(f"{where} {site.label}", f"{type(child).__name__}({child.extra_repr()}) on {shape}", _count(child))

    def _add(self, site: Site, slot: Slot, child: nn.Module | None) -> None:
        attach(site.module, slot, child, site.calls)
        ledger(self.model).edits.append(Added(site.module, slot))
        if site.calls > 1:
            counted = self.model.__dict__.setdefault(COUNTED, [])
            if not counted:
                self.model.register_forward_pre_hook(restart_calls)
                self.model.register_forward_hook(end_calls)
            found = attachments(site.module)
            assert found is not None
            if found not in counted:
                counted.append(found)
                ledger(self.model).edits.append(Counting(found))


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _device_of(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))
