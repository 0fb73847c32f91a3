"""Losses and metrics, averaged over samples, without a host sync in a step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trickbox import ranks
from trickbox.data import Source, as_source
from trickbox.errors import ConfigError
from trickbox.nest import call
from trickbox.state import Loss
from trickbox.surgery import evaluating

Metric = Callable[[Any, Any], Tensor]
Forward = Callable[[nn.Module, Any], Any]

PENDING_ELEMENTS = 1 << 20
"""Outputs kept until metrics are computed on many batches at once: at most so many numbers (4 MiB of float32)."""
PENDING_BATCHES = 1024

MODES: Mapping[str, str] = {"loss": "min", "accuracy": "max"}
"""The better direction of the metrics that trickbox itself records."""


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The share of samples whose largest output is the target class.

    Shapes: outputs (N, C, ...), targets (N, ...) of class numbers.

    >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
    tensor(0.5000)
    """
    return (outputs.argmax(1) == targets).float().mean()


def loss_of_model(outputs: Any, targets: Any) -> Tensor:
    """The loss that the model has computed by itself: ``outputs.loss``, or ``outputs["loss"]``."""
    found = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    if not isinstance(found, Tensor):
        raise ConfigError(
            f"loss: none was given, and the model's outputs, a {type(outputs).__name__}, hold none; pass loss=, such "
            "as nn.CrossEntropyLoss(), or labels that make the model compute its own"
        )
    return found


def default_metrics(outputs: Any, targets: Any) -> dict[str, Metric]:
    """Accuracy where the targets are class numbers for the outputs, nothing elsewhere."""
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or outputs.ndim < 2:
        return {}
    classes = targets.dtype == torch.int64 and targets.shape == (outputs.shape[0], *outputs.shape[2:])
    return {"accuracy": accuracy} if classes else {}


def check_metrics(metrics: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for metrics without a name, a metric that cannot be called, or one with the loss's name."""
    if not isinstance(metrics, Mapping):
        raise ConfigError(f"metrics must map names to functions of (outputs, targets), got {metrics!r}")
    if "loss" in metrics:
        raise ConfigError("metrics: the name 'loss' is taken by the loss itself; choose another")
    for name, metric in metrics.items():
        if not callable(metric):
            raise ConfigError(f"metrics: {name!r} must be a function of (outputs, targets), got {metric!r}")


class Meter:
    """Averages over samples: the loss of each batch weighted by its size, metrics on many batches at once.

    With *classes*, metrics get class numbers also where a trick made probabilities of them: the most probable class.
    *together*, the averages are those of all ranks; then all must ask for them.

    Cost of `add`: well under a microsecond; nothing is read from the device before `result`.
    """

    def __init__(self, metrics: Mapping[str, Any], classes: bool = False, together: bool = False) -> None:
        self._classes = classes
        self._together = together
        self._functions = {n: m for n, m in metrics.items() if not _is_stateful(m)}
        self._stateful = {n: copy.deepcopy(m) for n, m in metrics.items() if _is_stateful(m)}
        self._measures = bool(metrics)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._pending: list[tuple[Tensor, Any, Any, int]] = []
        self._elements = 0
        self._found: list[tuple[Tensor, list[str], list[int]]] = []
        for metric in self._stateful.values():
            metric.reset()

    def add(self, outputs: Any, targets: Any, loss: Tensor, size: int) -> None:
        """Take in one batch; without *outputs* only its loss."""
        if not self._measures:
            outputs = None
        elif isinstance(outputs, Tensor):
            outputs = outputs.detach()
            self._elements += outputs.numel()
        elif outputs is not None:
            self._elements = PENDING_ELEMENTS
        self._pending.append((loss.detach(), outputs, targets, size))
        if self._elements >= PENDING_ELEMENTS or len(self._pending) >= PENDING_BATCHES:
            self._fold()

    def result(self) -> dict[str, float]:
        """The averages so far; the one place where the host waits for the device."""
        self._fold()
        names = ["loss", *self._functions]
        sums, weights = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
        for numbers, names, sizes in self._found:
            for name, number, size in zip(names, numbers.tolist(), sizes, strict=True):
                sums[name] += number * size
                weights[name] += size
        if self._together:  # also where this rank had no batch
            sums, weights = _over_ranks(sums), _over_ranks(weights)
        averages = {name: total / weights[name] for name, total in sums.items() if weights[name]}
        if not averages:
            return {}
        return averages | {name: float(metric.compute()) for name, metric in self._stateful.items()}

    @torch.no_grad()
    def _fold(self) -> None:
        """Turn what is pending into one small tensor, still on the device."""
        if not self._pending:
            return
        pending, self._pending, self._elements = self._pending, [], 0
        numbers = [loss for loss, _, _, _ in pending]
        names, sizes = ["loss"] * len(pending), [size for _, _, _, size in pending]
        device = numbers[0].device
        for outputs, targets, size in _joined(pending):
            if self._classes and targets.is_floating_point():
                targets = targets.argmax(1)  # noqa: PLW2901
            for name, function in self._functions.items():
                numbers.append(torch.as_tensor(function(outputs, targets), device=device))
                names.append(name)
                sizes.append(size)
            for metric in self._stateful.values():
                metric.to(device).update(outputs, targets)
        self._found.append((torch.stack([n.reshape(()) if n.ndim else n for n in numbers]), names, sizes))


def _joined(pending: list[tuple[Tensor, Any, Any, int]]) -> list[tuple[Any, Any, int]]:
    """The batches whose outputs were kept, as one where their shapes allow it."""
    batches = [(outputs, targets, size) for _, outputs, targets, size in pending if outputs is not None]
    if len(batches) < 2:
        return batches
    outputs, targets, sizes = zip(*batches, strict=True)
    try:
        return [(torch.cat(outputs), torch.cat(targets), sum(sizes))]
    except (TypeError, RuntimeError):
        return batches


def measure(
    model: nn.Module, source: Source, loss: Loss, meter: Meter, forward: Forward = call, shared: bool = False
) -> dict[str, float]:
    """The averages of a whole source in eval mode, *shared* out among the ranks; modes of all modules are put back."""
    meter.reset()
    with evaluating(model), torch.no_grad():
        for batch in source.once(shared):
            outputs = forward(model, batch.inputs)
            meter.add(outputs, batch.targets, loss(outputs, batch.targets), batch.size)
    return meter.result()


def evaluate(
    model: nn.Module,
    data: Any,
    *,
    loss: Loss,
    metrics: Mapping[str, Any] | None = None,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    forward: Forward = call,
) -> dict[str, float]:
    """Loss and metrics of *model* on *data*, averaged over samples, in eval mode.

    *data* is what `fit` takes; without *metrics*, accuracy is measured where targets are classes. The model stays on
    its device unless *device* is given.

    >>> net = nn.Linear(2, 2)
    >>> sorted(evaluate(net, (torch.zeros(5, 2), torch.zeros(5, dtype=torch.long)), loss=nn.CrossEntropyLoss()))
    ['accuracy', 'loss']
    """
    place = torch.device(device) if device else next((p.device for p in model.parameters()), torch.device("cpu"))
    source = as_source(data, name="data", batch_size=batch_size, device=place)
    if metrics is None:
        sample = source.sample()
        with evaluating(model), torch.no_grad():
            metrics = default_metrics(forward(model.to(place), sample.inputs), sample.targets)
    check_metrics(metrics)
    return measure(model.to(place), source, loss, Meter(metrics), forward)


def _over_ranks(sums: dict[str, float]) -> dict[str, float]:
    return dict(zip(sums, ranks.totals(list(sums.values())), strict=True))


def _is_stateful(metric: Any) -> bool:
    return all(hasattr(metric, name) for name in ("update", "compute", "reset"))
