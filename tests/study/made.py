"""Results and plans without training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def made_run(value: float, metric: str, **facts: Any) -> dict[str, Any]:
    """A result such as `run_spec` gives; nan is a run that diverged."""
    if math.isnan(value):
        return {"status": "diverged", "message": "diverged at epoch 2", "seconds": [0.1], "epochs": 1}
    losses = [math.exp(-epoch / 4) for epoch in range(10)]
    run = {
        "status": "ok",
        "message": "max_epochs",
        "metrics": {metric: value},
        "guess": {metric: 1 / 3},
        "is_guessing": False,
        "samples": 30,
        "weights": str(value),
        "curves": {
            "train_loss": losses,
            "val_loss": [0.1 + loss for loss in losses],
            "val_accuracy": [value - loss / 10 for loss in losses],
        },
        "seconds": [0.1] * 10,
        "parameters": 100,
        "epochs": 10,
        "predictions": [0, 1, 2, 0, 2, 2],
        "record": {},
    }
    return run | facts


def made_plan(margin: float = 1.0, seeds: int = 10, arms: Sequence[str] = (), final: bool = False) -> dict[str, Any]:
    """The plan of a look at some arms, each compared with the baseline."""
    return {
        "task": "made",
        "final": final,
        "metric": "accuracy",
        "margin": margin,
        "seeds": list(range(seeds)),
        "arms": {name: name for name in ("baseline", *arms)},
        "questions": {"effect": [{name: 1.0, "baseline": -1.0} for name in arms]},
    }
