"""What a run knows now: the one argument of every hook."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen

from trickbox.errors import ConfigError, near

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from trickbox.history import History
    from trickbox.streams import Streams
    from trickbox.surgery import Surgery

Loss = Callable[[Any, Any], "Tensor"]
SCALABLE = ("lr", "momentum", "weight_decay")


@frozen
class Batch:
    """One batch: inputs (any nest of tensors), targets, and how many samples they are.

    >>> inputs, targets = Batch([[1.0], [2.0]], [0, 1], size=2)
    """

    inputs: Any
    targets: Any
    size: int

    def __iter__(self) -> Iterator[Any]:
        return iter((self.inputs, self.targets))


@frozen
class Options:
    """How one parameter is optimized: a multiple of the optimizer's rate, and whether weight decay applies."""

    lr: float = 1.0
    weight_decay: bool = True


@define(eq=False)
class State:
    """What a run knows now. A trick reads what it needs and writes only what its hook allows.

    `epoch` and `batch_index` count from 0; `step` counts the updates made so far.
    """

    model: nn.Module
    loss: Loss
    device: torch.device
    streams: Streams
    surgery: Surgery
    history: History
    max_epochs: int
    batches_per_epoch: int | None
    batch: Batch
    metric_modes: Mapping[str, str | None]
    """The metrics that this run records, each with its better direction: ``min``, ``max`` or unknown."""

    batches_per_update: int = 1
    """A trick that accumulates gradients sets it in `init`, so that schedules know how many updates there will be."""
    optimizer: torch.optim.Optimizer | None = None
    outputs: Any = None
    batch_loss: Any = None
    epoch: int = 0
    batch_index: int = 0
    step: int = 0
    metrics: dict[str, float] = field(factory=dict)
    stop_reason: str | None = None
    scales: dict[str, list[Callable[[State], float]]] = field(factory=dict)
    parameter_options: dict[str, Options] = field(factory=dict)

    @property
    def total_steps(self) -> int:
        """Updates in the whole run. Raises `ConfigError` where the training data does not tell its length."""
        if self.batches_per_epoch is None:
            raise ConfigError(
                "the length of the run is asked for, but the training data has no len(); "
                "give an iterable with __len__, a DataLoader or tensors"
            )
        return self.max_epochs * math.ceil(self.batches_per_epoch / self.batches_per_update)

    @property
    def progress(self) -> float:
        """The share of the run's updates that are made, from 0 to 1."""
        return min(self.step / self.total_steps, 1.0)

    def scale(self, name: str, factor: Callable[[State], float]) -> None:
        """Multiply a hyper-parameter of the optimizer by *factor* of the state, asked just before every update.

        Factors of several tricks multiply, whatever their order. *name* is one of lr, momentum (of Adam: the first
        beta) and weight_decay. Cost: one call of *factor* an update.
        """
        if name not in SCALABLE:
            raise ConfigError(f"only {', '.join(SCALABLE)} can be scaled, got {name!r}.{near(name, SCALABLE)}")
        factor(self)  # what is wrong with it shall show before any training
        self.scales.setdefault(name, []).append(factor)
        self.surgery.note(name, "scaled before every update")

    def stream(self) -> torch.Generator:
        """The random generator of the trick whose `init` is running: keep it, and draw from nothing else.

        It moves along with the run: in every training batch it starts from (seed, trick, epoch, batch).
        """
        return self.streams[f"trick:{self.surgery.acting}"]

    def options(self, parameter: str, options: Options) -> None:
        """Set how the parameter of that name is optimized; to be called in `init`. What several tricks set combines."""
        found = self.parameter_options.get(parameter, Options())
        combined = Options(found.lr * options.lr, found.weight_decay and options.weight_decay)
        self.parameter_options[parameter] = combined
        decay = "" if options.weight_decay else ", no weight decay"
        self.surgery.note(parameter, f"rate times {options.lr:g}{decay}")

    def stop(self, reason: str) -> None:
        """Ask the run to end after this epoch. The first reason stays."""
        self.stop_reason = self.stop_reason or reason
