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
    Way,
    attach,
    attachments,
    count_forwards,
    end_calls,
    restart_calls,
    stand_in,
)
from trickbox.surgery.branches import Branch, branch_at, branches_of
from trickbox.surgery.depths import Depths
from trickbox.surgery.draws import Clock
from trickbox.surgery.ledger import (
    Added,
    Converted,
    Counting,
    Frozen,
    Ticking,
    Written,
    clock_of,
    ledger,
    replace_module,
    tensor_of,
)
from trickbox.surgery.places import MODEL, Places, check_matched, check_not_around, choose, unmatched
from trickbox.surgery.sites import DROPOUTS, NORMS, Site, functions_of, site_of, sites_of
from trickbox.surgery.tape import Event, Tape, record

SHOWN = 12
"""How many calls of modules an error names, before it counts kinds."""
_RESTING = (*NORMS, *DROPOUTS, nn.MultiheadAttention)
"""What stays in eval mode where it is frozen."""


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
    _depths: Depths | None = field(default=None, init=False)
    _shared: dict[tuple[Any, ...], nn.Module] = field(factory=dict, init=False)
    """What serves all calls of a module, by the trick, the module, and how it acts there."""

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

    # where

    def sites(self, *kinds: type) -> list[Site]:
        """The calls of modules of the given kinds, in the order of execution, without what tricks attached."""
        return [site for site in sites_of(self.model, self.tape, kinds) if not site.attached]

    def functions(self, *names: str) -> list[Site]:
        """The calls of functions in the forwards of modules, in the order of execution: all, or of these names."""
        sites = functions_of(self.model, self.tape)
        return [site for site in sites if not names or site.function in names]

    def site_of(self, event: Event) -> Site:
        """The site of a call that is on the tape."""
        return site_of(self.model, self.tape, event)

    @property
    def anatomy(self) -> Anatomy:
        """The parts of the model as it is now: layers that carry weights, residual connections, blocks, head."""
        if self._anatomy is None or self._anatomy.tape is not self.tape:
            self._anatomy = Anatomy(self.model, self.tape)
        return self._anatomy

    @property
    def depths(self) -> Depths:
        """How deep each part of the model lies, as it is now."""
        if self._depths is None or self._depths.anatomy is not self.anatomy:
            self._depths = Depths(self.anatomy)
        return self._depths

    def head(self) -> Site:
        """The last weight layer that makes an output. Raises `NoEffectError` where there is none."""
        return self.require(self.anatomy.heads, "a layer that makes the outputs")[-1]

    def branches(self, at: Places | None, not_at: Places | None) -> list[Branch]:
        """The residual branches, the model's own and those that tricks made, at *at* and not at *not_at*.

        A branch is named by its block, by the module that makes what is added, or by the sum: ``block:add[1]``.
        """
        found = branches_of(self.model, self.tape, self.anatomy)
        made = [e for e in ledger(self.model).edits if isinstance(e, Added) and e.slot.rank is Rank.SHORTCUT]
        hosts = {id(edit.host): edit.slot.call for edit in made if edit.slot.way == "add"}
        found += [branch_at(s) for s in self.sites(nn.Module) if hosts.get(id(s.module)) == s.call]
        sites = list({site.label: site for branch in found for site in branch.sites}.values())
        named = {site.label for site in self.choose(sites, sites, at, None)}
        kept = {site.label for site in self.choose(sites, sites, None, not_at)}
        chosen = [b for b in found if any(s.label in named for s in b.sites) and all(s.label in kept for s in b.sites)]
        for branch in chosen:
            if branch.is_lost:
                self.skip(branch.place, "the sum changes in place what the branch has made, and no module makes it")
        return [branch for branch in chosen if not branch.is_lost]

    def choose(
        self, default: Sequence[Site], among: Sequence[Site], at: Places | None, not_at: Places | None
    ) -> list[Site]:
        """Those of *among* that are at *at*, or where that is None *default*; in both cases without those at *not_at*.

        Raises `ConfigError` for a place that is none of *among*, and says whether it is misspelt or is elsewhere.
        """
        for setting, places in (("at", at), ("not_at", not_at)):
            if unmatched(places, among):
                self._refuse(setting, places, among)
        if at is None and not_at is not None:
            check_not_around(self.acting, not_at, default, among)
        return choose(default if at is None else among, at, not_at)

    def _refuse(self, setting: str, places: Places | None, among: Sequence[Site]) -> None:
        found = {site.label for site in among}
        others = [site for site in (*self.sites(nn.Module), *self.functions()) if site.label not in found]
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

    def insert(self, site: Site, child: nn.Module, rank: Rank, shared: bool = False) -> None:
        """Let *child* change the output of *site*; of several children the lowest rank comes first.

        Where it is *shared*, the child of the first call of the module acts on its other calls too, in place of theirs.
        """
        self._attach(site, child, rank, "after", self.tape.used(site.event), shared=shared)

    def insert_before(self, site: Site, child: nn.Module, rank: Rank, tensor: int = 0, shared: bool = False) -> None:
        """Let *child* change an input of *site*: the first tensor that goes in, or the one of that number."""
        if site.function and tensor == 0 and site.event.in_place:
            raise SurgeryError(f"{self.acting}: {site.label} changes its first input in place; act after it instead")
        self._attach(site, child, rank, "before", tensor, shared=shared)

    def insert_instead(self, site: Site, child: nn.Module, rank: Rank, shared: bool = False) -> None:
        """Let *child* do the work of a function that a forward calls: ``child(function, *args, **kwargs)``."""
        self._attach(site, child, rank, "instead", shared=shared)

    def insert_in(self, branch: Branch, child: nn.Module, rank: Rank, shared: bool = False) -> None:
        """Let *child* change what a residual branch adds."""
        if branch.place.function:
            self.insert_before(branch.place, child, rank, branch.tensor, shared)
        else:
            self._attach(branch.place, child, rank, "after", branch.tensor, shared=shared)

    def replacement(self, site: Site) -> nn.Module | None:
        """What does the work of a function already, or None."""
        found, here = attachments(site.module), (site.host_call, site.function, site.call)
        slots = [slot for slot in found.slots if slot.way == "instead"] if found else []
        name = next((slot.name for slot in slots if (slot.call, slot.function, slot.number) == here), None)
        return None if found is None or name is None else found._modules[name]

    def add(self, site: Site, path: nn.Module, rank: Rank) -> None:
        """Add ``path(input)`` to the output of *site*; shapes must be equal, nothing broadcasts.

        The same *path* added at several calls of a module is one child, which they share.
        """
        self._attach(site, path, rank, "add")

    def shortcut(self, first: Site, last: Site, path: nn.Module, of: Literal["input", "output"] = "input") -> None:
        """Add *path* of what goes into *first*, or of its output, to the output of *last*.

        Shapes must be equal, nothing broadcasts.
        """
        stash = None
        if (first.path, first.call) != (last.path, last.call):
            stash = Stash()
            way: Way = "before" if of == "input" else "after"
            self._add(first, Slot("stash", first.call, Rank.SHORTCUT, way, stash), None)
        self._attach(last, path, Rank.SHORTCUT, "add", stash=stash)

    def convert(self, site: Site, module: nn.Module) -> None:
        """Replace the layer at *site* everywhere it is used; the new one must put out the same shapes."""
        module.to(_device_of(self.model)).train(site.module.training)
        replace_module(self.model, site.module, module)
        stand_in(site.module, module)
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
        prefix, part = f"{path}." if path else "", self.model.get_submodule(path)
        modules = [(prefix + name).rstrip(".") for name, m in part.named_modules() if isinstance(m, _RESTING)]
        self._freeze(path, [prefix + name for name, _ in part.named_parameters()], modules)

    def hold(self, path: str) -> None:
        """Stop training the parameters of one module itself, and its running statistics; what is inside it goes on."""
        prefix, module = f"{path}." if path else "", self.model.get_submodule(path)
        statistics = getattr(module, "running_mean", None) is not None
        names = [prefix + name for name, _ in module.named_parameters(recurse=False)]
        self._freeze(path, names, [path] if statistics else [])

    def _freeze(self, path: str, parameters: list[str], modules: list[str]) -> None:
        edit = Frozen.put(self.model, path, parameters, modules)
        ledger(self.model).edits.append(edit)
        self.note(path or MODEL, f"frozen, {len(edit.trained)} parameter tensors")

    def pause(self, name: str, parameters: Sequence[str], modules: Sequence[str]) -> None:
        """Freeze, in the middle of a run, *parameters* and what rests of *modules*, until `thaw` of the same *name*."""
        resting = [path for path in modules if isinstance(self.model.get_submodule(path), _RESTING)]
        edit = Frozen.put(self.model, name, parameters, resting)
        ledger(self.model).edits += [edit] if edit.trained or edit.kept else []

    def thaw(self, name: str) -> None:
        """Train again what was paused under *name*, or frozen under that path; harmless where nothing is."""
        edits = ledger(self.model).edits
        for edit in [edit for edit in edits if isinstance(edit, Frozen) and edit.path == name]:
            edit.undo(self.model)
            edits.remove(edit)

    def tick(self, clock: Clock) -> None:
        """Let the model count its forwards for what draws at *clock*."""
        if CLOCK not in self.model.__dict__:
            self.model.__dict__[CLOCK] = clock
            self.model.register_forward_hook(count_forwards)
            ledger(self.model).edits.append(Ticking())
        assert clock_of(self.model) is clock, "a run takes over the clock that it finds"

    def _attach(
        self,
        site: Site,
        child: nn.Module,
        rank: Rank,
        way: Way,
        tensor: int = 0,
        stash: Stash | None = None,
        shared: bool = False,
    ) -> None:
        there = attachments(site.module) or Attachments(1)
        number = site.call if site.function else 0
        if shared:
            child = self._shared.setdefault((self.acting, site.module, way, site.function, number, tensor), child)
        known = next((name for name, other in there.named_children() if other is child), None)
        slot = Slot(known or self._free_name(site), site.host_call, rank, way, stash, tensor, site.function, number)
        child.to(_device_of(self.model))
        self._add(site, slot, child)
        shapes = site.event.input_shapes if way == "before" else site.event.output_shapes
        where = {"add": "after", "instead": "instead of"}.get(way, way)
        what = f"{type(child).__name__}({child.extra_repr()}) on {shapes[tensor]}"
        self.note(f"{where} {site.label}", what, 0 if known else _count(child))

    def _free_name(self, site: Site) -> str:
        """The name of the next child at *site*: the trick's, with the call and the function where there are several."""
        parts = [self.acting, site.function, str(site.call) if site.function and site.calls > 1 else ""]
        parts.append(f"call{site.host_call}" if site.host_call else "")
        name = "_".join(part for part in parts if part)
        return (attachments(site.module) or Attachments(1)).free_name(name)

    def _called_by(self, site: Site) -> list[nn.Module]:
        """The modules that the forward of the module at *site* calls itself."""
        paths = {event.path for event in self.tape.called_by(site.path)}
        return [module for path, module in self.model.named_modules() if path in paths]

    def _add(self, site: Site, slot: Slot, child: nn.Module | None) -> None:
        calls = self.tape.calls(site.path)
        attach(site.module, slot, child, calls, self._called_by(site) if site.function else ())
        ledger(self.model).edits.append(Added(site.module, slot))
        found = attachments(site.module)
        assert found is not None
        if site.function:
            found.plan(slot, site.calls)
        if calls > 1:
            counted = self.model.__dict__.setdefault(COUNTED, [])
            if not counted:
                self.model.register_forward_pre_hook(restart_calls)
                self.model.register_forward_hook(end_calls)
            if found not in counted:
                counted.append(found)
                ledger(self.model).edits.append(Counting(found))


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _device_of(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))
