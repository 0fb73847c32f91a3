"""What a study needs to know of a task: where data and model come from, how they are trained, and what is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from attrs import Factory, frozen
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["ACCURACY", "LOSS", "METRICS", "Metric", "Pair", "Splits", "Task"]

Pair = tuple[Tensor, Tensor]


@frozen
class Splits:
    """The data of one seed, as pairs of (inputs, targets).

    Training goes over `train` and watches `valid`. Arms are compared on `comparison`, which is `valid` where nothing
    else is given: the more samples it has, the less noise of its own. `test` is read once, for the arm that won;
    without one, the winner is confirmed on fresh seeds alone.
    """

    train: Pair
    valid: Pair
    test: Pair | None = None
    comparison: Pair = Factory(lambda self: self.valid, takes_self=True)


@frozen
class Metric:
    """The one number that a study compares: which metric, which way is better, and how people read it.

    `name` is that of a metric of `trickbox.fit`, such as ``loss``. Values are shown as ``scale * value`` in `unit`.
    `margin`, in `unit`, is the smallest effect that matters where a study declares none.
    """

    name: str = "accuracy"
    higher_is_better: bool = True
    unit: str = "points"
    scale: float = 100.0
    margin: float = 1.0

    @property
    def label(self) -> str:
        """The name as people write it."""
        return self.name.replace("_", " ")

    @property
    def label_and_unit(self) -> str:
        """The name with its unit, where it has one."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


ACCURACY = Metric()
LOSS = Metric("loss", higher_is_better=False, unit="nats", scale=1.0, margin=0.05)
METRICS = {metric.name: metric for metric in (ACCURACY, LOSS)}


class Task(Protocol):
    """An attrs class with these members; no base class. Its fields are what arms may override.

    It may also have ``metrics``, names to functions of (outputs, targets), as `trickbox.fit` takes them, so that a
    `Metric` of any such name can be compared.

    Fields must be plain JSON values, and worker processes must be able to import the class: not made in a function.

    >>> import attrs, torch
    >>> from typing import ClassVar
    >>> @attrs.frozen
    ... class Blobs:
    ...     spread: float = 1.0
    ...     lr: float = 0.01
    ...     max_epochs: int = 3
    ...     batch_size: int = 32
    ...     name: ClassVar = "blobs"
    ...     metric: ClassVar = ACCURACY
    ...     class_names: ClassVar = ("left", "right")
    ...     loss: ClassVar = nn.CrossEntropyLoss()
    ...
    ...     def model(self):
    ...         return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    ...
    ...     def data(self, seed):
    ...         targets = torch.arange(200) % 2
    ...         noise = torch.randn(200, 2, generator=torch.Generator().manual_seed(seed))
    ...         inputs = 2.0 * targets[:, None] + self.spread * noise
    ...         return Splits(*((inputs[part], targets[part]) for part in (slice(80), slice(80, 120), slice(120, 200))))
    ...
    ...     def optimizer(self, parameters):
    ...         return torch.optim.Adam(parameters, lr=self.lr)
    >>> task: Task = Blobs()
    >>> task.data(seed=0).train[0].shape
    torch.Size([80, 2])
    """

    @property
    def name(self) -> str:
        """What reports call the task."""

    @property
    def max_epochs(self) -> int:
        """Epochs of training; a trick may stop earlier."""

    @property
    def batch_size(self) -> int:
        """Samples in a training batch."""

    @property
    def metric(self) -> Metric:
        """What is compared."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers."""

    @property
    def loss(self) -> Callable[[Any, Any], Tensor]:
        """The loss of (outputs, targets), a mean over samples. A method or an attribute."""

    def model(self) -> nn.Module:
        """Build a fresh model. Global generators are seeded for the call, so that all arms of a seed start alike."""

    def data(self, seed: int) -> Splits:
        """Make the data of *seed*, drawing from nothing but it."""

    def optimizer(self, parameters: Iterable[Any]) -> Optimizer:
        """Build the optimizer for *parameters* (tensors or groups)."""
