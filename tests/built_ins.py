"""One object of every installed trick that comes with trickbox; a trick that is missing here fails a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trickbox.catalog import available, get
from trickbox.testing import tiny_model
from trickbox.trick import hooks_of


def every_trick(folder: Path) -> dict[str, Any]:
    """All built-in tricks by name, with settings at which they act on the tiny net."""
    weights = folder / "weights.pt"
    if not weights.exists():
        torch.save(tiny_model(seed=7).state_dict(), weights)
    settings: dict[str, dict[str, Any]] = {
        "transfer": {"weights": str(weights), "head": "new"},
        "warm_up": {"steps": 4},
        "early_stopping": {"patience": 1},
        "accumulate": {"batches": 2},
        "clip_gradients": {"limit": 0.1},
        "sam": {"rho": 0.5},
        "convert_norm": {"to": "group_norm"},
    }
    return {name: get(name)(**settings.get(name, {})) for name in available()}


def edits_only(trick: Any) -> bool:
    """Whether a trick acts on the model alone, so that `apply` takes it."""
    return hooks_of(trick) == ["init"] and trick.family not in ("schedule", "accumulation", "parameter groups")
