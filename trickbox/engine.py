"""`fit`: the whole loop on one screen. It stands on the public `Session` and on nothing else."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from trickbox.metrics import Forward
from trickbox.nest import call
from trickbox.optimization import OptimizerFactory
from trickbox.session import Result, Session
from trickbox.state import Loss, State


def fit(
    model: nn.Module,
    train: Any,
    valid: Any = None,
    *,
    loss: Loss,
    optimizer: OptimizerFactory | torch.optim.Optimizer,
    tricks: Any = (),
    max_epochs: int,
    batch_size: int = 32,
    metrics: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool | None = None,
    forward: Forward = call,
) -> Result:
    """Train *model*, in place, with *tricks*; Ctrl-C ends the run cleanly with what there is so far.

    train, valid   a pair of tensors or arrays (kept on the device, cut by *batch_size*), a DataLoader, or any iterable
                   of (inputs, targets); inputs may be any nest of tensors
    loss           a function of (outputs, targets) that averages over the samples of a batch
    optimizer      a factory such as ``partial(torch.optim.Adam, lr=0.01)``, or an optimizer of this model
    tricks         tricks, names or JSON forms; ``("alias", trick)`` names one. A set: tricks declare their order
    metrics        names to functions of (outputs, targets), or torchmetrics objects; accuracy by default for classes
    device         ``auto`` is the first there is of cuda, mps, mtia and cpu
    progress       a progress bar; None means: on a terminal or in a notebook
    forward        a function of (model, inputs), where calling the model is not enough

    Raises `ConfigError`, `DataError` or `NoEffectError` before any training; the model then stays as it was. A loss
    that is not finite ends the run with a warning and a stop reason that begins with ``diverged``.

    >>> from functools import partial
    >>> inputs, targets = torch.randn(64, 4), torch.randint(0, 2, (64,))
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> result = fit(net, (inputs, targets), loss=nn.CrossEntropyLoss(), tricks=["dropout"], max_epochs=3,
    ...              optimizer=partial(torch.optim.Adam, lr=0.01))
    >>> result.history.columns
    ['epoch', 'step', 'train_loss', 'train_accuracy', 'lr']
    """
    session = Session(
        model,
        train,
        valid,
        loss=loss,
        optimizer=optimizer,
        tricks=tricks,
        max_epochs=max_epochs,
        batch_size=batch_size,
        metrics=metrics,
        seed=seed,
        device=device,
        forward=forward,
    )
    with session:
        bar = _progress_bar(session.state) if _wanted(progress) else None
        try:
            for _ in session.epochs():
                for batch in session.batches():
                    session.step(batch)
                    if bar is not None:
                        bar.update()
                if bar is not None:
                    _show_metrics(bar, session.state)
        except KeyboardInterrupt:
            session.state.stop(f"interrupted in epoch {session.state.epoch}, step {session.state.step}")
        finally:
            if bar is not None:
                _show_metrics(bar, session.state)
                bar.close()
    return session.result()


def _wanted(progress: bool | None) -> bool:
    return (sys.stderr.isatty() or "ipykernel" in sys.modules) if progress is None else progress


def _progress_bar(state: State) -> tqdm[Any]:
    total = None if state.batches_per_epoch is None else state.max_epochs * state.batches_per_epoch
    return tqdm(total=total, unit="step", desc="fit")


def _show_metrics(bar: tqdm[Any], state: State) -> None:
    """Show the metrics of the last finished epoch."""
    bar.set_description(f"epoch {state.epoch + 1}/{state.max_epochs}", refresh=False)
    bar.set_postfix({name: f"{value:.4g}" for name, value in state.metrics.items()})
