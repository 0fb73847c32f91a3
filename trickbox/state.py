"""What a run knows now: the one argument of every hook."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from attrs import define, field, frozen

from trickbox.errors import ConfigError, near
from trickbox.history import History
from trickbox.nest import tensors
from trickbox.surgery import Clock, Draws

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from trickbox.streams import Streams
    from trickbox.surgery import Site, Surgery

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

    @classmethod
    def of(cls, inputs: Any, targets: Any) -> Self:
        """The batch of *inputs* and *targets*; its size is the length of the first tensor that has one, or 0.

        >>> import torch
        >>> Batch.of([torch.zeros(()), torch.zeros(4, 2)], None).size
        4
        """
        first = next((tensor for tensor in tensors([inputs, targets]) if tensor.ndim), None)
        return cls(inputs, targets, 0 if first is None else first.shape[0])

    def __iter__(self) -> Iterator[Any]:
        return iter((self.inputs, self.targets))

    def passed(self) -> Any:
        """The inputs as the model takes them: a mapping that holds its labels holds the targets as they are now.

        >>> Batch({"x": 1, "labels": 2}, 3, size=1).passed()
        {'x': 1, 'labels': 3}
        """
        inputs = self.inputs
        if isinstance(inputs, dict) and "labels" in inputs and inputs["labels"] is not self.targets:
            return {**inputs, "labels": self.targets}
        return inputs


@frozen
class Options:
    """How one parameter is optimized: a multiple of the optimizer's rate, and whether weight decay applies."""

    lr: float = 1.0
    weight_decay: bool = True


@define(eq=False)
class State:
    """What a run knows now. A trick reads what it needs and writes only what its hook allows.

    `epoch` and `batch_index` count from 0; `step` counts the updates made so far. In a loop that somebody else drives,
    what that loop has not told is None.
    """

    model: nn.Module
    device: torch.device
    streams: Streams
    surgery: Surgery
    batch: Batch
    loss: Loss | None = None
    history: History = field(factory=History)
    max_epochs: int | None = None
    batches_per_epoch: int | None = None
    max_steps: int | None = None
    smallest_batch: int | None = None
    """How many samples the last batch of an epoch has, where that is known to be smaller than the others."""
    metric_modes: Mapping[str, str | None] | None = None
    """The metrics that this run records, each with its better direction: ``min``, ``max`` or unknown. None where the
    loop measures by itself: then they are known when it hands the first ones over."""

    has_loop: bool = True
    """False where tricks only edit, or explain what they would do."""
    batches_per_update: int = 1
    """How many batches share one update. A trick sets it in `init`; the run then accumulates their gradients."""
    optimizer: torch.optim.Optimizer | None = None
    take_step: Callable[[torch.optim.Optimizer], Any] | None = None
    """How the run's own update steps the optimizer, where that is not ``optimizer.step()``."""
    outputs: Any = None
    batch_loss: Any = None
    epoch: int = 0
    batch_index: int = 0
    step: int = 0
    metrics: dict[str, float] = field(factory=dict)
    evaluated: Mapping[str, Tensor] | None = None
    """The state dict that the validation metrics of this epoch belong to, where that is not the model's own."""
    stop_reason: str | None = None
    clock: Clock = field(factory=Clock)
    scales: dict[str, list[Callable[[State], float]]] = field(factory=dict)
    parameter_options: dict[str, Options] = field(factory=dict)
    rates: dict[int, float] = field(factory=dict)
    """By the id of each parameter that has one: the multiple of the rate, around every step of the optimizer."""
    regrouped: list[tuple[torch.optim.Optimizer, dict[str, Any], list[Any], list[dict[str, Any]]]] = field(factory=list)
    """An optimizer, one of its groups with its members, and the copies of it that those with options moved to."""
    idle: set[tuple[str, str]] = field(factory=set)
    again: Callable[[], Tensor] | None = None

    @property
    def total_steps(self) -> int:
        """Updates in the whole run. Raises `ConfigError` where neither the data nor the caller tells its length."""
        if self.batches_per_epoch is None or self.max_epochs is None:
            if self.max_steps is not None:
                return self.max_steps
            raise ConfigError(
                "the length of the run is asked for, but nothing tells it: give max_steps, or training data with a "
                "len(); to attach, epochs and steps_per_epoch, or steps"
            )
        steps = self.max_epochs * math.ceil(self.batches_per_epoch / self.batches_per_update)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @property
    def progress(self) -> float:
        """The share of the run's updates that are made, from 0 to 1."""
        return min(self.step / self.total_steps, 1.0)

    def scale(self, name: str, factor: Callable[[State], float]) -> None:
        """Multiply a hyper-parameter of the optimizer by *factor* of the state, around every step of the optimizer.

        Just before the step each parameter group gets its own value times all factors, whatever their order; right
        after it, its own value back. So it goes together with schedulers of the caller. *name* is one of lr, momentum
        (of Adam: the first beta) and weight_decay. Cost: one call of *factor* an update.
        """
        if name not in SCALABLE:
            raise ConfigError(f"only {', '.join(SCALABLE)} can be scaled, got {name!r}.{near(name, SCALABLE)}")
        if self.has_loop:
            factor(self)  # what is wrong with it shall show before any training
        self.scales.setdefault(name, []).append(factor)
        self.surgery.note(name, "scaled around every update")

    def stream(self) -> torch.Generator:
        """The random generator of the trick whose `init` is running: keep it, and draw in `batch` from nothing else.

        It moves along with the run: in every training batch it starts from (seed, trick, epoch, batch, rank).
        """
        return self.streams[f"trick:{self.surgery.acting}"]

    def draws(self, site: Site, calls: int = 1) -> Draws:
        """What a layer that the acting trick puts at *site* draws from, *calls* times in a forward: see `Draws`."""
        self.surgery.tick(self.clock)
        key = self.streams.derive(f"trick:{self.surgery.acting}", site.label)
        return Draws(key, self.clock, calls)

    def options(self, parameter: str, options: Options) -> None:
        """Set how the parameter of that name is optimized; to be called in `init`. What several tricks set combines."""
        found = self.parameter_options.get(parameter, Options())
        combined = Options(found.lr * options.lr, found.weight_decay and options.weight_decay)
        self.parameter_options[parameter] = combined
        decay = "" if options.weight_decay else ", no weight decay"
        self.surgery.note(parameter, f"rate times {options.lr:g}{decay}")

    def decline(self, *hooks: str) -> None:
        """Say in `init` that, with its settings, the acting trick does nothing in *hooks*: they then cost nothing."""
        self.idle |= {(self.surgery.acting, hook) for hook in hooks}

    def replay(self) -> Tensor:
        """Compute loss and gradients of this update once more, from zero: same batches, same draws, all tricks.

        `batch` does not fire again. To be called in `update`. Returns the loss of the last batch. Raises `ConfigError`
        in a loop that makes its passes itself. Cost: the forward and backward of one update.
        """
        if self.again is None:
            raise ConfigError(
                "a second pass over the batch is asked for, but this loop makes its passes itself; use fit, or a "
                "Session that computes the loss, or hand a closure to optimizer.step"
            )
        return self.again()

    def stop(self, reason: str) -> None:
        """Ask the run to end after this epoch. The first reason stays."""
        self.stop_reason = self.stop_reason or reason
