"""Tricks in loops that are not ours: `attach` a run to one, `apply` surgery alone, `explain` what would happen.

What such a loop does by itself is reached through torch's own hooks: the steps of its optimizers. What it alone has, it
hands over in a line: a batch, the time of a validation, the end of an epoch.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from trickbox import ranks
from trickbox.box import LOSS, UPDATES
from trickbox.checks import check_model, plan_surgery
from trickbox.errors import ConfigError
from trickbox.metrics import MODES, Forward
from trickbox.nest import call
from trickbox.optimization import keep_groups, repair
from trickbox.run import Run, Wrap
from trickbox.state import Batch, Loss
from trickbox.steps import closure_of
from trickbox.surgery.ledger import LEDGER, Ledger, ledger
from trickbox.surgery.picture import draw, left_over
from trickbox.surgery.table import Sites, table
from trickbox.trick import hooks_of


class Attached(Run):
    """A run in a loop that somebody else drives; `attach` makes it. Close it, or use it in a with statement."""

    def __init__(self, model: nn.Module, tricks: Any, *, seed: int, forward: Forward, wrap: Wrap | None) -> None:
        super().__init__(model, tricks, seed=seed, forward=forward, wrap=wrap)
        self._hands_batches = False
        self._epoch_began = 0
        self._steps_per_epoch: int | None = None
        self._checked = self._closed = self._failed = False
        self._measured: dict[str, float] = {}
        self._inside = False
        self._of_closure: Any = None
        """The inputs that a closure has handed over inside the step that is being taken."""

    def watch(self, *optimizers: Any) -> Any:
        """Follow the steps of *optimizers*; returns what it was given, one or a tuple.

        To be called once, before the first step, with all optimizers of the model. Those that were built before
        `attach` are repaired: what tricks added joins the group of its layer, or the first group of the first one.
        Raises `ConfigError` where a trick scales what an optimizer does not have. Cost: some microseconds a step.
        """
        if self._steps.made:
            raise ConfigError("watch was called before; hand over all optimizers of this model in one call")
        inner = [_innermost(optimizer) for optimizer in optimizers]
        put_back = [keep_groups(optimizer) for optimizer in inner]
        try:
            left = [repair(optimizer, self.state, self._before) for optimizer in inner]
            for name, parameter in left[0].items():
                if all(name in others for others in left):
                    inner[0].param_groups[0]["params"].append(parameter)
            for optimizer in inner:
                self._steps.follow(optimizer)
            self.state.optimizer = inner[0]
            self._fire("fit_start")
            self._fire("epoch_start")
        except BaseException:
            self._unfollow()
            for back in put_back:
                back()
            raise
        return optimizers[0] if len(optimizers) == 1 else optimizers

    def batch(self, inputs: Any, targets: Any = None) -> Any:
        """Let the tricks that act on batches change one, before the forward.

        ``x, y = run.batch(x, y)``, or ``batch = run.batch(batch)`` for a mapping that the model takes by name.
        """
        state = self.state
        together = targets is None and isinstance(inputs, Mapping)
        if inputs is self._of_closure is not None:
            self._move(state.epoch, state.batch_index)  # once more, for an optimizer that asks its closure again
            return state.batch.passed() if together else tuple(state.batch)
        self._of_closure = inputs if self._inside else None
        self._next_batch()
        state.batch = Batch.of(dict(inputs), inputs.get("labels")) if together else Batch.of(inputs, targets)
        if state.batch.size == 0:
            raise ConfigError(f"batch: the batch must hold tensors, got {inputs!r}")
        self._fire("batch")
        return state.batch.passed() if together else tuple(state.batch)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """A context for the loop's own validation, for tricks that change weights for its duration."""
        self.state.evaluated = None
        with self._opened("validate") as result:
            result[0] = {}
            yield
        self._measured = result[0]

    def epoch_end(self, **metrics: Any) -> bool:
        """End an epoch, or whatever lies between two validations; True when a trick says stop.

        *metrics* are numbers that the loop has measured, such as ``val_loss=0.3``; with several processes their means
        count. Raises `ConfigError` for what a trick needs and the loop has not handed over.
        """
        state = self.state
        self._check(validated=any(name.startswith(("val_", "eval_")) for name in metrics))
        values = {name: value.detach() if isinstance(value, torch.Tensor) else value for name, value in metrics.items()}
        state.metrics = ranks.means({name: float(value) for name, value in (self._measured | values).items()})
        state.metric_modes = {name: direction(name) for name in state.metrics}
        self._fire("epoch_end")
        self._write_row()
        state.evaluated, self._measured = None, {}
        self._phases.discard("validate")
        self._epoch_began = state.step
        self._hands_batches = False
        self._move(state.epoch + 1, 0)
        self._fire("epoch_start")
        return state.stop_reason is not None

    def close(self) -> None:
        """End the run: tricks give back what they kept, such as the best weights. The model keeps its tricks."""
        self.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._closed:
            self._closed = True
            self._end(error)
            if error is None and not self.state.history.rows and (waiting := self._box.acting("epoch_end")):
                raise ConfigError(f"{waiting[0]} acted nowhere: no epoch has ended; write: run.epoch_end(val_loss=...)")

    def __del__(self) -> None:
        trained = hasattr(self, "_state") and self._state.step > 0
        if trained and not self._closed and not self._failed and self._box.acting("fit_end"):
            message = "an attached run was never closed, so its tricks gave nothing back; call run.close()"
            warnings.warn(message, stacklevel=2)

    def _open(self, sample: Batch, **facts: Any) -> None:
        """Begin, and stand at the first batch of the first epoch. Raises `ConfigError` for what no such loop can do."""
        self._closed = True  # what has not begun need not be closed
        self._begin(sample, **facts)
        self._move(0, 0)
        for where, what in ((UPDATES, "accumulates gradients"), (LOSS, "replaces the loss function")):
            if name := next((note.trick for note in self.state.surgery.notes if note.where == where), None):
                self._take_back()
                raise ConfigError(f"{name} {what}, but your loop does that itself; do it there, or use Session or fit")
        self._closed = False

    def _next_batch(self) -> None:
        """Move to a batch that the loop hands over."""
        self._move(self.state.epoch, self.state.batch_index + self._hands_batches)
        self._hands_batches = True

    # -- what the loop owes --------------------------------------------------------------------------------------------

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        self._inside = True
        if not self._checked and closure_of(args, kwargs) is None:
            self._check()
            self._checked = True
        made, length = self._steps.made[optimizer] - self._epoch_began, self._steps_per_epoch
        if length is not None and made > length and self._box.acting("epoch_end"):
            name = self._box.acting("epoch_end")[0]
            raise self._owed(
                f"{name} acts at the end of an epoch, but after {made} updates of {length} none has ended; write: "
                "if run.epoch_end(val_loss=...): break"
            )
        return super()._before_step(optimizer, args, kwargs)

    def _after_step(self, made: bool) -> None:
        super()._after_step(made)
        self._inside, self._of_closure = False, None
        if not self._checked:  # with a closure, only now the batch has been handed over
            self._check()
            self._checked = True
        if not self._hands_batches:
            self._move(self._state.epoch, self._state.batch_index + 1)

    def _check(self, validated: bool = False) -> None:
        """Raise `ConfigError` for what a trick needs and the loop has not handed over, with the line to write."""
        lines = {
            "batch": "x, y = run.batch(x, y)",
            "compute_loss": "with run.phase('compute_loss'): around the forward and the loss",
            "backward": "with run.phase('backward'): loss.backward()",
        }
        if validated:
            lines["validate"] = "with run.evaluating(): around the validation"
        for hook, line in lines.items():
            handed = self._hands_batches if hook == "batch" else hook in self._phases
            if not handed and (acting := self._box.acting(hook)):
                raise self._owed(f"{acting[0]} acts in {hook!r}, which your loop does by itself; write: {line}")
        self._check_trained()

    def _check_trained(self) -> None:
        """Raise `ConfigError` for a parameter that a trick added and no optimizer trains."""
        if not self._steps.made:
            raise self._owed("no optimizer is known to the run; write: optimizer = run.watch(optimizer)")
        held = {id(p) for optimizer in self._steps.made for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in self._model.named_parameters():
            if id(parameter) not in held and ".trickbox." in f".{name}" and parameter.requires_grad:
                raise self._owed(f"{name} is in no optimizer; give run.watch all optimizers of the model")

    def _owed(self, message: str) -> ConfigError:
        """The error of a loop that owes something; it will hardly come to close the run."""
        self._failed = True
        return ConfigError(message)

    def _explain(self, error: BaseException) -> None:
        self._failed = True
        super()._explain(error)


def direction(metric: str) -> str | None:
    """The better direction of a metric by its name: of losses ``min``, of accuracies ``max``, of others unknown.

    >>> direction("val_loss"), direction("eval/accuracy"), direction("bleu")
    ('min', 'max', None)
    """
    return MODES.get(re.split(r"[\W_]", metric)[-1])


def attach(
    model: nn.Module,
    tricks: Any,
    inputs: Any,
    *,
    targets: Any = None,
    loss: Loss | None = None,
    epochs: int | None = None,
    steps_per_epoch: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    forward: Forward = call,
    wrap: Wrap | None = None,
) -> Attached:
    """Put *tricks* on *model*, in place, for a loop of your own whose body stays as it is.

    inputs            one batch as the model takes it, to plan with
    targets, loss     of that batch, and the function of (outputs, targets), for tricks that check them
    epochs            the length of the run, together with `steps_per_epoch`, in updates of the optimizer;
    steps             or its length in updates alone. Schedules that span the run need one of the two
    seed              of everything that tricks draw; by default torch's own, ``torch.initial_seed()``
    wrap              what goes around the model after surgery: ``torch.compile``, DistributedDataParallel,
                      ``fully_shard``; the loop then calls ``run.model``

    The loop then says ``run.watch(optimizer)`` before its first step, ``run.epoch_end(...)`` after each epoch, and
    closes the run; tricks that act on batches need ``run.batch(x, y)``, those that act on validation
    ``run.evaluating()``. What is missing is an error in the first step at the latest, with the line to write. No global
    generator is touched. Raises `ConfigError`, `DataError` or `NoEffectError`; the model then stays as it was.

    >>> net, x, y = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(8, 4), torch.arange(8) % 2
    >>> with attach(net, ["dropout", "cosine_annealing"], x, epochs=2, steps_per_epoch=1) as run:
    ...     optimizer = run.watch(torch.optim.SGD(net.parameters(), lr=0.1))
    ...     for epoch in range(2):
    ...         loss = nn.functional.cross_entropy(net(x), y)
    ...         loss.backward()
    ...         optimizer.step()
    ...         optimizer.zero_grad()
    ...         stop = run.epoch_end(train_loss=loss)
    >>> [round(lr, 3) for lr in run.state.history["lr"]]
    [0.1, 0.05]
    """
    check_model(model)
    for name, value in (("epochs", epochs), ("steps_per_epoch", steps_per_epoch), ("steps", steps)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")
    run = Attached(model, tricks, seed=torch.initial_seed() if seed is None else seed, forward=forward, wrap=wrap)
    run._steps_per_epoch = steps_per_epoch
    run._open(
        Batch.of(inputs, targets),
        loss=loss,
        max_epochs=epochs,
        batches_per_epoch=steps_per_epoch,
        max_steps=steps,
    )
    return run


def apply(
    model: nn.Module,
    tricks: Any,
    inputs: Any,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    seed: int | None = None,
    forward: Forward = call,
) -> nn.Module:
    """Put the surgery of *tricks* on *model*, in place, for use in any loop; returns the same model.

    *inputs* is one batch as the model takes it. A model that has tricks on gets these besides. An *optimizer* that
    exists is repaired; without one, build it afterwards. Draws come from *seed*, by default torch's own.
    Raises `ConfigError` for a trick that needs a training loop; on any error the model stays as it was.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> _ = apply(net, ["layer_norm"], torch.zeros(3, 4))
    >>> [name for name in net.state_dict() if "trickbox" in name]
    ['0.trickbox.layer_norm.weight', '0.trickbox.layer_norm.bias']
    """
    check_model(model)
    run = Run(model, tricks, seed=torch.initial_seed() if seed is None else seed, forward=forward, wrap=None)
    for member in run._box.members:
        if others := [hook for hook in hooks_of(member.trick) if hook != "init"]:
            raise ConfigError(f"{member.name} acts in {', '.join(others)} and needs a loop: use attach, fit or Session")
    put_optimizer_back, take_back = keep_groups(optimizer), _remembered(model)
    try:
        run._begin(Batch(inputs, None, 0), has_loop=False)
        optimizes = run.state.parameter_options and optimizer is None
        if run.state.scales or run.state.batches_per_update > 1 or optimizes:
            raise ConfigError(
                "a trick here sets how parameters are optimized and needs a loop: use attach, fit or Session"
            )
        if optimizer is not None:
            for parameter in repair(optimizer, run.state, run._before).values():
                optimizer.param_groups[0]["params"].append(parameter)
    except BaseException:
        put_optimizer_back()
        take_back()
        raise
    return model


def explain(model: nn.Module, inputs: Any, tricks: Any, *, seed: int = 0, forward: Forward = call) -> str:
    """Say what *tricks* would do to *model*: hooks, order and why, every site, parameters added. Changes nothing.

    >>> print(explain(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(5, 2), ["dropout"]))
    Hooks, and who acts there in this order
      init          dropout
    ...
    """
    _check_looked_at(model)
    run, batch = Run(model, tricks, seed=seed, forward=forward, wrap=None), Batch(inputs, None, 0)
    take_back = _remembered(model)
    try:
        surgery = plan_surgery(model, batch, forward)
        before = sum(p.numel() for p in model.parameters())
        run._begin(batch, surgery=surgery, has_loop=False)
        lines = [run._box.order(), draw(surgery), *left_over(surgery)]
        after = sum(p.numel() for p in model.parameters())
    finally:
        take_back()
    return "\n".join([*lines, f"Parameters: {before} before, {after} after"])


def sites(model: nn.Module, inputs: Any, *, functions: bool = False, forward: Forward = call) -> Sites:
    """Say what can be named in ``at=``: every call of a module, its class, output and part. Changes nothing.

    With *functions* also every function that a module calls in its own forward, such as ``block:add``.

    >>> sites(nn.Sequential(nn.ReLU(), nn.Linear(3, 2)), torch.zeros(5, 3))
    label    class       output  part
    (model)  Sequential  (5, 2)
    0        ReLU        (5, 3)
    1        Linear      (5, 2)  head
    """
    _check_looked_at(model)
    return table(plan_surgery(model, Batch(inputs, None, 0), forward), functions)


def _check_looked_at(model: Any) -> None:
    """Raise `ConfigError` for what surgery cannot edit, and for what cannot be looked at without changing it."""
    check_model(model)
    if any(map(is_lazy, (*model.parameters(), *model.buffers()))):
        raise ConfigError("model has lazy layers, which one look would initialize; run it once on a batch before")


def _remembered(model: nn.Module) -> Callable[[], None]:
    """Remember what tricks have done to *model*; what is returned takes back, bit for bit, all that they do later."""
    grads = [(parameter, parameter.grad) for parameter in model.parameters()]
    found: Ledger | None = model.__dict__.get(LEDGER)
    before = found.copy() if found else Ledger()

    def take_back() -> None:
        made = ledger(model).edits
        while made and made[-1] not in before.edits:
            made.pop().undo(model)
        del model.__dict__[LEDGER]
        model.__dict__.update({LEDGER: before} if found else {})
        for parameter, grad in grads:
            parameter.grad = grad

    return take_back


def _innermost(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer itself, inside the wrappers that frameworks put around one."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"watch: an optimizer must be a torch.optim.Optimizer, got {optimizer!r}")
    return optimizer
