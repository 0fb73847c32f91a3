"""The lesson as studies: eight chapters on equal terms, and the course's own experiments as they really come out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from trickbox.study import Arm, Study
from trickbox.tasks.source import pretrain
from trickbox.tasks.waveforms import Waveforms

TASK = Waveforms(noise=0.3, lr=0.003, max_epochs=30)
"""All chapters share this: enough noise that a net can still be better or worse, and one rate for everybody."""

LARGE_RATE = {"lr": 10 * TASK.lr}
FEW_LABELS = {"samples": 150}

MARGIN = 1.0
"""Points of test accuracy that would make a newcomer care."""

COURSE_DROPOUT = {"trick": "dropout", "conv": 0.1, "dense": 0.3, "where": "after_pool"}


def chapters(source: Path) -> list[Arm]:
    """One arm or more for each of the eight chapters, in the lesson's order, and the questions it only talks about.

    *source* is a file of weights trained on other waves, for the chapter on transfer.
    """
    transfer = {"trick": "transfer", "weights": str(source)}
    return [
        *_alone(
            ("step decay", {"trick": "step_decay", "epochs": 5, "factor": 0.7}),
            ("one-cycle", "one_cycle"),
            ("dropout", COURSE_DROPOUT),
            ("residual", "residual"),
            ("batch norm", "batch_norm"),
            ("layer norm", "layer_norm"),
            ("group norm", "group_norm"),
            ("initialization", "initialize"),
            ("early stopping", "early_stopping"),
            ("transfer", transfer),
            ("augmentation", "augment"),
            ("mixup", "mixup"),
        ),
        Arm("large rate", control=None, overrides=LARGE_RATE),
        Arm("large rate: norm", ["batch_norm"], control="large rate", overrides=LARGE_RATE),
        Arm("few labels", control=None, overrides=FEW_LABELS),
        Arm("few: dropout", [COURSE_DROPOUT], control="few labels", overrides=FEW_LABELS),
        Arm("few: transfer", [transfer], control="few labels", overrides=FEW_LABELS),
        Arm("few: augment", ["augment"], control="few labels", overrides=FEW_LABELS),
    ]


def course() -> list[Arm]:
    """The notebook's own experiments at its own rates and epochs, each next to its own control."""
    long = {"lr": 0.01, "max_epochs": 100, "noise": 0.05}
    slow = {"lr": 0.0008, "max_epochs": 50, "noise": 0.05}
    norm = {"trick": "batch_norm", "momentum": 0.01}
    # Projections, because the notebook's shortcuts double the parameters too; its broadcast is refused here.
    shortcuts = {"trick": "residual", "shortcut": "projection"}
    return [
        *_alone(("schedule", {"trick": "step_decay", "epochs": 5, "factor": 0.7})),
        Arm("no dropout", control=None, overrides=long),
        Arm("dropout", [COURSE_DROPOUT], control="no dropout", overrides=long),
        Arm("plain", control=None, overrides=slow),
        Arm("batch norm", [norm], control="plain", overrides=slow),
        Arm("residual", ["batch_norm", shortcuts], control="batch norm", overrides=slow),
    ]


def lesson_study(folder: Path, seeds: int | Sequence[int] = 10, margin: float = MARGIN) -> Study:
    """The eight chapters as one study; writes the weights for the chapter on transfer into *folder* where missing."""
    source = folder / "source.pt"
    if not source.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pretrain(source)
    return Study(TASK, chapters(source), seeds=seeds, margin=margin)


def course_study(seeds: int | Sequence[int] = 10, margin: float = MARGIN) -> Study:
    """The notebook's own experiments as one study."""
    return Study(Waveforms(), course(), seeds=seeds, margin=margin)


def _alone(*entries: tuple[str, Any]) -> Iterable[Arm]:
    return [Arm(name, [trick]) for name, trick in entries]
