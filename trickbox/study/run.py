"""One run of a study, as a plain function from JSON to JSON: any executor on any machine can call it."""

from __future__ import annotations

import hashlib
import math
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trickbox.engine import fit
from trickbox.metrics import evaluate
from trickbox.session import Session
from trickbox.streams import derive, forked
from trickbox.study.cost import measure
from trickbox.study.guess import guess, is_guessing
from trickbox.study.spec import Spec, build_task, build_trick
from trickbox.study.store import dumps, loads
from trickbox.study.task import Pair, Splits, Task
from trickbox.surgery import evaluating

EXAMPLES = 6
_BATCH = 500
_TAIL = 2000  # characters of a traceback that are kept


def run_spec(facts: dict[str, Any]) -> dict[str, Any]:
    """Train and measure one run, given as `Spec.to_json`; a pure function but for the seconds.

    Never raises for what goes wrong in the run: the result's ``status`` is ``ok``, ``diverged`` or ``error``.
    """
    spec = Spec.from_json(facts)
    started = time.perf_counter()
    try:
        with _threads(spec.threads):
            outcome = loads(dumps(_timed(spec) if spec.is_timed else _train(spec)))
    except (Exception, SystemExit) as error:
        tail = traceback.format_exc()[-_TAIL:]
        outcome = {"status": "error", "message": f"{type(error).__name__}: {error}", "traceback": tail}
    return {**outcome, "wall_seconds": time.perf_counter() - started}


def failed(message: str) -> dict[str, Any]:
    """The result of a run that could not be made at all."""
    return {"status": "error", "message": message, "traceback": "", "wall_seconds": 0.0}


@contextmanager
def _threads(count: int) -> Iterator[None]:
    # The number of threads changes rounding, and so every number after it.
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _made(spec: Spec) -> tuple[Task, Splits, nn.Module]:
    """The task of a run with its data and its fresh model."""
    task = build_task(spec.task)
    splits = task.data(derive(spec.seed, "split"))
    with forked(derive(spec.seed, "init")):
        return task, splits, task.model()


def _timed(spec: Spec) -> dict[str, Any]:
    task, splits, model = _made(spec)
    with warnings.catch_warnings(action="ignore"):  # the runs that are trained to the end say the same
        session = Session(
            model,
            splits.train,
            splits.valid,
            loss=task.loss,
            optimizer=task.optimizer,
            tricks=[build_trick(part) for part in spec.tricks],
            max_epochs=task.max_epochs,
            batch_size=task.batch_size,
            seed=spec.seed,
            device=spec.device,
        )
        return {"status": "ok", "message": "timed", **measure(session)}


def _train(spec: Spec) -> dict[str, Any]:
    task, splits, model = _made(spec)
    metrics = getattr(task, "metrics", None)
    # Kept for the report, where each is said once: a worker would print it for every run.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        result = fit(
            model,
            splits.train,
            splits.valid,
            loss=task.loss,
            metrics=metrics,
            optimizer=task.optimizer,
            tricks=[build_trick(part) for part in spec.tricks],
            max_epochs=task.max_epochs,
            batch_size=task.batch_size,
            seed=spec.seed,
            device=spec.device,
            progress=False,
        )
    data = splits.test if spec.final and splits.test is not None else splits.comparison
    found = result.metrics | evaluate(
        result.model, data, loss=task.loss, metrics=metrics, batch_size=_BATCH, device=spec.device
    )
    sound = all(math.isfinite(value) for value in found.values()) and not result.stop_reason.startswith("diverged")
    guessed = guess(model, splits.train, data, task.loss, metrics)
    return {
        "status": "ok" if sound else "diverged",
        "message": result.stop_reason,
        "metrics": found,
        "guess": guessed,
        "is_guessing": sound and is_guessing(found, guessed, len(data[1])),
        "samples": len(data[1]),
        "weights": _digest(result.model),
        "curves": {name: result.history[name] for name in result.history.columns},
        "seconds": list(result.seconds),
        "parameters": sum(parameter.numel() for parameter in result.model.parameters()),
        "epochs": len(result.seconds),
        "set": "test" if data is splits.test else "comparison",
        "predictions": _predictions(result.model, data),
        "record": result.record,
        "warnings": list(dict.fromkeys(str(warning.message) for warning in caught)),
    }


def _digest(model: nn.Module) -> str:
    """A hash of all weights and buffers: two runs with one digest ended in the same bits."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _predictions(model: nn.Module, data: Pair) -> list[int]:
    """The classes of the first samples; empty where targets are no class numbers."""
    inputs, targets = data
    if not isinstance(inputs, Tensor) or not isinstance(targets, Tensor) or targets.is_floating_point():
        return []
    device = next((parameter.device for parameter in model.parameters()), inputs.device)
    with evaluating(model), torch.no_grad():
        outputs = model(inputs[:EXAMPLES].to(device))
    predictions: list[int] = outputs.argmax(1).tolist() if outputs.ndim == 2 and targets.ndim == 1 else []
    return predictions
