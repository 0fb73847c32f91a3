"""Tricks on a model without a loop around it: `apply` edits it for any loop, `explain` says what would happen."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from trickbox.box import Box
from trickbox.checks import plan_surgery
from trickbox.errors import ConfigError, SurgeryError
from trickbox.history import History
from trickbox.metrics import MODES, Forward
from trickbox.nest import call
from trickbox.state import Batch, State
from trickbox.streams import Streams
from trickbox.surgery import is_tricked, undo
from trickbox.trick import hooks_of


def apply(model: nn.Module, tricks: Any, inputs: Any, *, seed: int = 0, forward: Forward = call) -> nn.Module:
    """Put the surgery of *tricks* on *model*, in place, for use in any loop; returns the same model.

    *inputs* is one batch as the model takes it. Raises `ConfigError` for a trick that needs a training loop; on any
    error the model stays as it was.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> _ = apply(net, ["layer_norm"], torch.zeros(3, 4))
    >>> [name for name in net.state_dict() if "trickbox" in name]
    ['0.trickbox.layer_norm.weight', '0.trickbox.layer_norm.bias']
    """
    if is_tricked(model):
        raise SurgeryError("the model already has tricks on; trickbox.undo(model) takes them off")
    box = Box(tricks)
    for member in box.members:
        if others := [hook for hook in hooks_of(member.trick) if hook != "init"]:
            raise ConfigError(f"{member.name} acts in {', '.join(others)} and needs a loop: use fit or Session")
    try:
        state = operate(model, box, inputs, seed, forward)
        if state.scales or state.parameter_options:
            raise ConfigError("a trick here sets how parameters are optimized and needs a loop: use fit or Session")
    except BaseException:
        undo(model)
        raise
    return model


def explain(model: nn.Module, inputs: Any, tricks: Any, *, seed: int = 0, forward: Forward = call) -> str:
    """Say what *tricks* would do to *model*: hooks, order and why, every site, parameters added. Changes nothing.

    >>> print(explain(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(5, 2), ["dropout"]))
    ... # doctest: +ELLIPSIS
    Hooks, and who acts there in this order
      init          dropout
    ...
    """
    box = Box(tricks)
    model = copy.deepcopy(model)
    before = sum(p.numel() for p in model.parameters())
    state = operate(model, box, inputs, seed, forward)
    lines = [box.order(), "Model"]
    for note in state.surgery.notes:
        parameters = f", {note.parameters:+d} parameters" if note.parameters else ""
        skipped = "skipped: " if note.skipped else ""
        lines.append(f"  {note.trick}: {note.where}: {skipped}{note.what}{parameters}")
    after = sum(p.numel() for p in model.parameters())
    lines.append(f"Parameters: {before} before, {after} after")
    return "\n".join(lines)


def operate(model: nn.Module, box: Box, inputs: Any, seed: int, forward: Forward) -> State:
    """Run `init` of all tricks on *model* without a loop around it; of the data only *inputs* are known."""
    surgery = plan_surgery(model, Batch(inputs, None, 0), forward)
    state = State(
        model=model,
        loss=nn.CrossEntropyLoss(),
        device=torch.device("cpu"),
        streams=Streams(seed, next((p.device for p in model.parameters()), "cpu")),
        surgery=surgery,
        history=History(),
        max_epochs=1,
        batches_per_epoch=1,
        batch=Batch(inputs, None, 0),
        metric_modes={f"{side}_{name}": mode for side in ("train", "val") for name, mode in MODES.items()},
    )
    box.init(state)
    return state
