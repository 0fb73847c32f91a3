"""One trick of every family, what it needs of a loop, and how to see from outside that it acted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attrs import frozen
from loops.common import Trace, start

import trickbox as tb
from trickbox.testing import tiny_model


@frozen
class Family:
    """A trick and what is to be seen of it: `acted` compares a trace with it to one of the original loop."""

    trick: dict[str, Any] | str
    acted: Callable[[Trace, Trace], None]
    needs: tuple[str, ...] = ()

    @property
    def made(self) -> Any:
        if isinstance(self.trick, str):
            return tb.get(self.trick)()
        settings = dict(self.trick)
        return tb.get(settings.pop("trick"))(**settings)


def scaled(factor: Callable[[int, int], float]) -> Callable[[Trace, Trace], None]:
    """The rate of each step is that of the original loop times a factor of the step."""

    def acted(trace: Trace, original: Trace) -> None:
        total = len(original.rates)
        expected = [rate * factor(step, total) for step, rate in enumerate(original.rates)]
        assert trace.rates == pytest.approx(expected, rel=1e-9)
        assert trace.losses[0] == original.losses[0]

    return acted


def edited(trace: Trace, original: Trace) -> None:
    """Something is on the model, every new parameter has learned, and it can be taken off."""
    added = [name for name, _ in trace.model.named_modules() if name.endswith(".trickbox")]
    converted = type(trace.model.own_dropout) is not type(original.model.own_dropout)
    assert added or converted
    assert trace.losses[0] != original.losses[0]
    assert trace.rates == original.rates
    for name, parameter in trace.model.named_parameters():
        if ".trickbox." in name:  # of the norms, which begin at one and zero
            assert not torch.equal(parameter, torch.ones_like(parameter)), name
            assert not torch.equal(parameter, torch.zeros_like(parameter)), name
    tb.undo(trace.extra.get("whole", trace.model))
    assert list(trace.model.state_dict()) == list(original.model.state_dict())


def adapted(trace: Trace, original: Trace) -> None:
    """It begins as the model was; then adapters and head learn, and nothing else."""
    before = start()
    assert trace.losses[0] == original.losses[0]
    assert trace.losses[-1] != original.losses[-1]
    assert torch.equal(trace.model.conv1.weight, before.conv1.weight)
    assert not torch.equal(trace.model.fc2.weight, before.fc2.weight)
    assert trace.model.conv1.trickbox.lora.up.weight.any()


def redrawn(trace: Trace, original: Trace) -> None:
    assert trace.losses[0] != original.losses[0]
    assert trace.rates == original.rates


def frozen_layers(trace: Trace, original: Trace) -> None:
    before = start()
    assert torch.equal(trace.model.conv1.weight, before.conv1.weight)
    assert not torch.equal(trace.model.fc2.weight, before.fc2.weight)
    assert not torch.equal(original.model.conv1.weight, before.conv1.weight)


def slower(trace: Trace, original: Trace) -> None:
    """The first layer learned less than without, the last one no less slowly than it does by itself."""
    before = start()
    moved, by_itself = (
        [(getattr(model, layer).weight - getattr(before, layer).weight).norm().item() for layer in ("conv1", "fc2")]
        for model in (trace.model, original.model)
    )
    assert trace.losses[0] == original.losses[0]
    assert 0 < moved[0] < 0.1 * by_itself[0]
    assert moved[1] > 0.1 * by_itself[1]


def other_batches(trace: Trace, original: Trace) -> None:
    assert trace.losses[0] != original.losses[0]
    assert trace.rates == original.rates
    assert list(trace.model.state_dict()) == list(original.model.state_dict())


def stopped(trace: Trace, original: Trace) -> None:
    assert trace.epochs == 2 < original.epochs
    assert trace.losses == original.losses[: len(trace.losses)]


def clipped(trace: Trace, original: Trace) -> None:
    assert trace.losses[0] == original.losses[0]
    assert trace.losses[-1] != original.losses[-1]


def averaged(trace: Trace, original: Trace) -> None:
    assert trace.losses == original.losses
    weights, raw = trace.model.fc2.weight, original.model.fc2.weight
    assert not torch.equal(weights, raw)
    assert (weights - start().fc2.weight).norm() < (raw - start().fc2.weight).norm()


def teacher() -> dict[str, torch.Tensor]:
    return tiny_model(seed=7).state_dict()


FAMILIES: dict[str, Family] = {
    "step_decay": Family({"trick": "warm_up", "steps": 8}, scaled(lambda s, _: 1.0 if s >= 8 else 0.01 + 0.99 * s / 8)),
    "cosine_annealing": Family({"trick": "cosine_annealing", "floor": 0.5}, scaled(
        lambda s, t: 0.75 + 0.25 * float(torch.cos(torch.tensor(torch.pi * s / t, dtype=torch.float64))))),
    "dropout": Family({"trick": "dropout", "p": 0.3}, edited),
    "batch_norm": Family("batch_norm", edited),
    "layer_norm": Family("layer_norm", edited),
    "squeeze_excite": Family({"trick": "squeeze_excite", "reduction": 2}, edited),
    "residual": Family("residual", edited),
    "initialize": Family("initialize", redrawn),
    "transfer": Family({"trick": "transfer", "weights": teacher(), "head": "keep"}, redrawn),
    "freeze": Family("freeze", frozen_layers),
    "lora": Family("lora", adapted),
    "layerwise_decay": Family({"trick": "layerwise_decay", "decay": 0.1}, slower),
    "augment": Family("augment", other_batches, needs=("batches",)),
    "mixup": Family("mixup", other_batches, needs=("batches",)),
    "label_smoothing": Family("label_smoothing", other_batches, needs=("batches",)),
    "early_stopping": Family({"trick": "early_stopping", "patience": 1, "min_delta": 100.0,
                              "restore_best_weights": False}, stopped),
    "clip_gradients": Family({"trick": "clip_gradients", "limit": 0.01}, clipped),
    "ema": Family({"trick": "ema", "half_life": 0.5}, averaged, needs=("validation",)),
}  # fmt: skip
"""The rest cannot act in a loop that makes its own passes: see `REFUSED`."""

REFUSED = {
    "accumulate": "accumulate accumulates gradients, but your loop does that itself; do it there",
    "sam": "a second pass over the batch is asked for, but this loop makes its passes itself",
    "mixed_precision": "write: with run.phase('compute_loss')",
}
