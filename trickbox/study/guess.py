"""What guessing gives: the metrics of a model that answers the same to everything, as well as that can be done."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trickbox.metrics import evaluate
from trickbox.nest import call, tensors
from trickbox.streams import forked
from trickbox.study.task import Pair
from trickbox.surgery import evaluating

_STEPS = 50


class Constant(nn.Module):
    """The same output for every sample."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = nn.Parameter(output)

    def forward(self, inputs: Any) -> Tensor:
        """As many copies of the output as there are samples."""
        return self.output.expand(len(next(tensors(inputs))), *self.output.shape)


def guess(
    model: nn.Module,
    train: Pair,
    data: Pair,
    loss: Callable[[Any, Any], Tensor],
    metrics: Mapping[str, Any] | None = None,
    batch_size: int = 500,
) -> dict[str, float]:
    """The metrics on *data* of the best constant output: that of the least *loss* on the targets of *train*.

    Empty where inputs, targets or outputs are no plain tensors, or where no such output can be found. Cost: a few
    dozen losses over the targets.

    >>> data = torch.zeros(9, 2), torch.tensor([0, 1, 2] * 3)
    >>> found = guess(nn.Linear(2, 3), data, data, nn.CrossEntropyLoss())
    >>> round(found["accuracy"], 3), round(found["loss"], 3)
    (0.333, 1.099)
    """
    inputs, targets = train
    if not all(isinstance(part, Tensor) for part in train):  # arrays, say, as `fit` takes them too
        return {}
    with evaluating(model), torch.no_grad(), forked(0):
        outputs = call(model, inputs[:2].to(next((p.device for p in model.parameters()), inputs.device)))
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point() or outputs.shape[:1] != targets[:2].shape[:1]:
        return {}
    constant = Constant(torch.zeros(outputs.shape[1:]))
    optimizer = torch.optim.LBFGS(constant.parameters(), max_iter=_STEPS, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimizer.zero_grad()
        value = loss(constant(inputs), targets)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(step)  # type: ignore[no-untyped-call]
    found = evaluate(constant, data, loss=loss, metrics=metrics, batch_size=batch_size, device="cpu")
    return found if all(map(math.isfinite, found.values())) else {}


def is_guessing(metrics: dict[str, float], guessed: dict[str, float], samples: int) -> bool:
    """Whether neither accuracy nor loss are better than guessing gives: by two standard errors, and by one percent.

    Without a guess, never.

    >>> is_guessing({"accuracy": 0.36, "loss": 1.1}, {"accuracy": 0.33, "loss": 1.1}, samples=100)
    True
    >>> is_guessing({"accuracy": 0.90, "loss": 1.2}, {"accuracy": 0.33, "loss": 1.1}, samples=100)
    False
    """
    if not guessed.keys() & {"loss", "accuracy"}:
        return False
    chance, loss = guessed.get("accuracy", 1.0), guessed.get("loss", -math.inf)
    room = 2 * math.sqrt(chance * (1 - chance) / samples)
    fits = metrics.get("accuracy", 0.0) > chance + room
    return not fits and not metrics.get("loss", math.inf) < loss - abs(loss) / 100
