"""An edited model must still run: one trial in eval mode, one in training mode."""

from __future__ import annotations

from torch import nn

from trickbox.errors import SurgeryError
from trickbox.surgery.attach import CHILD
from trickbox.surgery.edits import Surgery
from trickbox.surgery.ledger import edits_of
from trickbox.surgery.tape import dry


def try_out(surgery: Surgery) -> None:
    """Run the edited model once in eval mode and once in training mode, where it could run so before.

    Raises `SurgeryError`, naming the trick and the site, where that fails. Leaves no trace. Cost: two forwards without
    gradients, where anything was edited.
    """
    if edits_of(surgery.model) == 0:
        return
    for training in (False, True):
        if training and surgery.trained is None:
            continue
        try:
            with dry(surgery.model, training):
                surgery.forward(surgery.model, surgery.inputs)
        except Exception as error:
            where, mode = _blame(surgery, error), "training" if training else "eval"
            raise SurgeryError(
                f"{where}: with it the model cannot run in {mode} mode: {type(error).__name__}: {error}"
            ) from error


def _blame(surgery: Surgery, error: Exception) -> str:
    """Where an error came from: the innermost of the modules that tricks have added or put in."""
    ours: dict[int, str] = {id(m): p for p, m in surgery.model.named_modules() if f".{CHILD}." in f".{p}."}
    exchanged: dict[str, nn.Module] = {path: surgery.model.get_submodule(path) for path, _ in surgery.converted()}
    ours |= {id(module): path for path, module in exchanged.items()}
    found, trace = "surgery", error.__traceback__
    while trace is not None:
        found = ours.get(id(trace.tb_frame.f_locals.get("self")), found)
        trace = trace.tb_next
    return found
