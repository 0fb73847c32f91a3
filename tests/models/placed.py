"""Where tricks acted in a model, in the words of the tables of expected places."""

from __future__ import annotations

from models.expected import SETTINGS, Refusal

import trickbox as tb
from trickbox.surgery.attach import Rank
from trickbox.surgery.ledger import Added, Converted, Frozen, Written, ledger

WAYS = {"instead": "inside", "add": "after"}
RECURRENT = ("lstm", "gru")


def label(edit, path):
    """Where something acts, in the words of the table; the function of a recurrent layer goes by its module alone."""
    slot, attached = edit.slot, edit.host._modules["trickbox"]
    name = path + (f"[{slot.call}]" if attached.calls > 1 else "")
    if not slot.function or slot.function in RECURRENT:
        return name
    several = attached.planned[slot.call, slot.function] > 1
    return f"{name}:{slot.function}" + (f"[{slot.number}]" if several else "")


def places(model):
    """What the ledger of *model* says, in the words of the table: of what is frozen, where nothing is added."""
    paths = {id(module): path or "(model)" for path, module in model.named_modules()}
    starts = {
        id(e.slot.stash): e
        for e in ledger(model).edits
        if isinstance(e, Added) and e.slot.rank is Rank.SHORTCUT and e.slot.way == "before"
    }
    adds = any(isinstance(edit, Added) for edit in ledger(model).edits)
    found = set()
    for edit in ledger(model).edits:
        if isinstance(edit, Converted):
            found.add(f"replaces {edit.path}")
        elif isinstance(edit, Frozen):
            if not adds and list(model.get_submodule(edit.path).parameters()):
                found.add(edit.path)
        elif isinstance(edit, Written) and model.get_parameter(edit.name).ndim > 1:
            found.add(edit.name)
        elif isinstance(edit, Added) and edit not in starts.values():
            place = label(edit, paths[id(edit.host)])
            if edit.slot.rank is Rank.SHORTCUT:
                start = starts.get(id(edit.slot.stash))
                found.add(f"around {paths[id(start.host)]}..{place}" if start else f"around {place}")
            else:
                found.add(f"{WAYS.get(edit.slot.way, edit.slot.way)} {place}")
    return found


def outcome(model, inputs, trick):
    """Where *trick* acts in *model*, on which it stays, or what its refusal says."""
    try:
        tb.apply(model, [SETTINGS.get(trick, trick)], inputs)
    except tb.NoEffectError as error:
        return str(error)
    return places(model)


def agree(expected, found):
    """Whether what was found is what the table says."""
    if isinstance(expected, Refusal):
        return isinstance(found, str) and expected.reason in found
    return set(expected) == found
