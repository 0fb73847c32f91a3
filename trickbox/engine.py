"""`fit`: the whole loop on one screen. It stands on the public `Session` and on nothing else."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from trickbox import ranks
from trickbox.metrics import Forward
from trickbox.nest import call
from trickbox.optimization import OptimizerFactory
from trickbox.run import Wrap
from trickbox.session import Result, Session
from trickbox.state import Loss, State


def fit(
    model: nn.Module,
    train: Any,
    valid: Any = None,
    *,
    loss: Loss | None = None,
    optimizer: OptimizerFactory | torch.optim.Optimizer,
    tricks: Any = (),
    max_epochs: int | None = None,
    max_steps: int | None = None,
    batch_size: int = 32,
    last_batch: str = "keep",
    metrics: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool | None = None,
    forward: Forward = call,
    wrap: Wrap | None = None,
) -> Result:
    """Train *model*, in place, with *tricks*; Ctrl-C ends the run cleanly with what there is so far.

    train, valid   a pair of tensors or arrays (kept on the device, cut by *batch_size*), a DataLoader, or any iterable
                   of (inputs, targets), or of mappings that the model takes by name; inputs may be any nest of tensors
    loss           a function of (outputs, targets) that averages over the samples of a batch; by default the loss that
                   the model computes itself, ``outputs.loss``
    optimizer      a factory such as ``partial(torch.optim.Adam, lr=0.01)``, or an optimizer of this model
    tricks         tricks, names or JSON forms; ``("alias", trick)`` names one. A set: tricks declare their order
    max_epochs     the length of the run, or its greatest length where `max_steps`, in updates, ends it earlier
    last_batch     what becomes of a last batch of tensors that is not full: ``keep`` it, ``drop`` it, or ``balance``:
                   cut equal batches, of 36 samples 12, 12 and 12 where the batch size is 16
    metrics        names to functions of (outputs, targets), or torchmetrics objects; accuracy by default for classes
    device         ``auto`` is the first there is of cuda, mps, mtia and cpu
    progress       a progress bar; None means: on a terminal or in a notebook
    forward        a function of (model, inputs), where calling the model is not enough
    wrap           what goes around the model after surgery: ``torch.compile``, DistributedDataParallel, ``fully_shard``

    In a process group each rank trains on its part of every round of batches, in one seeded order; metrics and
    decisions are those of all ranks, and the first alone prints. Without a `wrap` that joins them it is refused.

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
        max_steps=max_steps,
        batch_size=batch_size,
        last_batch=last_batch,
        metrics=metrics,
        seed=seed,
        device=device,
        forward=forward,
        wrap=wrap,
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
    if ranks.rank() > 0:
        return False
    return (sys.stderr.isatty() or "ipykernel" in sys.modules) if progress is None else progress


def _progress_bar(state: State) -> tqdm[Any]:
    known = state.batches_per_epoch is not None and state.max_epochs is not None
    total = state.max_epochs * state.batches_per_epoch if known else state.max_steps  # type: ignore[operator]
    return tqdm(total=total, unit="step", desc="fit")


def _show_metrics(bar: tqdm[Any], state: State) -> None:
    """Show the metrics of the last finished epoch."""
    planned = "" if state.max_epochs is None else f"/{state.max_epochs}"
    bar.set_description(f"epoch {state.epoch + 1}{planned}", refresh=False)
    bar.set_postfix({name: f"{value:.4g}" for name, value in state.metrics.items()})
