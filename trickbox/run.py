"""A run: tricks around a model, their state, and the one place where each hook is fired.

It owns neither loop nor data nor optimizer nor device nor global generator. A `Session` is a run that owns them too;
what `attach` gives is a run in a loop that somebody else drives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from trickbox import ranks
from trickbox.box import Box, Opened
from trickbox.checks import plan_surgery
from trickbox.errors import ConfigError
from trickbox.hooks import HOOKS, PHASES
from trickbox.metrics import Forward
from trickbox.optimization import put_groups_together
from trickbox.state import Batch, State
from trickbox.steps import Steps, closure_of, evaluates_closure
from trickbox.streams import Streams
from trickbox.surgery import (
    clock_of,
    edits_of,
    forget_trained,
    has_draws,
    parameter_users,
    recipes_of,
    remember,
    try_out,
    undo,
    undo_since,
)

Wrap = Callable[[nn.Module], Any]
"""What is put around the model after surgery: ``torch.compile``, DistributedDataParallel, ``fully_shard``."""

_TIME = 28
"""Bits of the clock that count the batches of an epoch; those above count the epochs."""


class Run:
    """The tricks of one run on one model. *core* answers the phases where the run does their work itself."""

    def __init__(
        self,
        model: nn.Module,
        tricks: Any,
        *,
        seed: int,
        forward: Forward,
        wrap: Wrap | None,
        core: object | None = None,
    ) -> None:
        self._box = Box(tricks, core)
        self._model = model
        self._seed = seed
        self._forward = forward
        self._wrap = wrap
        self._earlier = edits_of(model) if isinstance(model, nn.Module) else 0
        """How many edits earlier runs have made on the model."""
        self._update = Opened()
        self._phases: set[str] = set()
        """The phases that the loop has opened for the tricks."""
        self._passes: Callable[[], Any] | None = None
        """How the run makes the passes of an update once more, where it makes them at all."""

    @property
    def state(self) -> State:
        """What the run knows now. Raises `ConfigError` before the run has begun."""
        if not hasattr(self, "_state"):
            raise ConfigError("the run has not begun yet; use it in a with statement")
        return self._state

    @property
    def model(self) -> Any:
        """The model as the loop calls it: inside what `wrap` has put around it."""
        return self._wrapped

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Let the tricks that wrap a phase act around the block, which does the work of that phase itself.

        Raises `ConfigError` for a trick that would do the work in the place of the block, or that changes its result,
        which a block does not hand over: then write ``loss = run.around("compute_loss", lambda: ...)``.
        """
        with self._opened(name) as result:
            yield
        if result[0] is not True:
            raise ConfigError(
                f"a trick changes the result of {name!r}, which a block does not hand over; write the work as a "
                f"function: result = run.around({name!r}, work)"
            )

    def around(self, name: str, work: Callable[[], Any]) -> Any:
        """Do *work*, that of a phase, with the tricks that wrap the phase around it; its result, as they leave it.

        What `phase` cannot do: hand a result, such as the loss, through the tricks. Raises `ConfigError` for a trick
        that would do the work in the place of *work*.
        """
        with self._opened(name) as result:
            result[0] = work()
        return result[0]

    @contextmanager
    def _opened(self, name: str) -> Iterator[list[Any]]:
        """A phase whose work is done inside the block; the result, in a list of one, goes through the tricks."""
        if name not in PHASES:
            raise ConfigError(f"a phase is one of {', '.join(PHASES)}, got {name!r}")
        self._phases.add(name)
        refuse_answers(name, self._answers[name])
        opened, result = Opened(), [True]
        try:
            opened.enter(self._wrappers[name], self.state)
            try:
                yield result
            except BaseException as error:
                opened.leave(None, error)
                raise
            result[0] = opened.leave(result[0])
        except Exception as error:
            self._explain(error)
            raise

    # -- beginning and end ---------------------------------------------------------------------------------------------

    def _begin(self, sample: Batch, **facts: Any) -> None:
        """Plan on *sample*, let every trick edit the model, and wrap it. Undoes everything where that fails."""
        self._check_names()
        forget_trained(self._model)
        before, self._earlier = {id(parameter) for parameter in self._model.parameters()}, edits_of(self._model)
        surgery = facts.pop("surgery", None) or plan_surgery(self._model, sample, self._forward)
        device = next((p.device for p in self._model.parameters()), torch.device("cpu"))
        streams = Streams(self._seed, device, ranks.rank())
        self._state = State(
            model=self._model,
            device=device,
            streams=streams,
            surgery=surgery,
            batch=sample,
            clock=clock_of(self._model),
            **facts,
        )
        try:
            self._box.init(self._state)
            try_out(surgery)
            self._wrapped = self._model if self._wrap is None else self._wrap(self._model)
            if not callable(self._wrapped):
                raise ConfigError(f"wrap must give what the loop calls, got {self._wrapped!r}")
        except BaseException as error:
            self._explain(error)
            self._take_back()
            raise
        if edits_of(self._model):
            users = parameter_users(self._model, surgery.tape)
            remember(self._model, self._box.recipe(), {name for name, paths in users.items() if len(paths) > 1})
        self._before = before
        self._steps = Steps(self._state, self._before_step, self._after_step)
        self._draws = has_draws(self._model)
        self._calls = {hook: self._box.compiled(hook) for hook in HOOKS}
        self._wrappers = {phase: self._box.wrappers(phase) for phase in PHASES}
        self._answers = {phase: self._box.answers(phase) for phase in PHASES}

    def _unfollow(self) -> None:
        """Leave the optimizers alone again."""
        if hasattr(self, "_steps"):
            self._steps.release()
            put_groups_together(self._state)

    def _check_names(self) -> None:
        """Raise `ConfigError` for a trick that is on the model already: both would draw the same."""
        earlier = {config["name"] for recipe in recipes_of(self._model) for config in recipe}
        if again := [member.name for member in self._box.members if member.name in earlier]:
            raise ConfigError(
                f"{again[0]} is on the model already; call trickbox.undo(model) first, leave it out, or give the "
                f"second one a name of its own: ('{again[0]}_2', ...)"
            )

    def _take_back(self) -> None:
        """Undo what this run did to the model: all, or what follows the edits of earlier ones."""
        if self._earlier:
            undo_since(self._model, self._earlier)
        else:
            undo(self._model)

    def _end(self, first: BaseException | None) -> None:
        """Fire `fit_end` for every trick, whatever another one raises; the first error of the run is the one raised."""
        errors = []
        for function in self._box.each("fit_end"):
            try:
                self._guarded(function)
            except BaseException as error:
                errors.append(error)
        self._unfollow()
        forget_trained(self._model)
        if errors and first is None:
            raise errors[0]
        for later in errors:
            assert first is not None
            first.add_note(f"then fit_end failed too: {type(later).__name__}: {later}")

    def _move(self, epoch: int, index: int) -> None:
        """Move everything that is drawn to a batch of an epoch."""
        state = self._state
        state.epoch, state.batch_index = epoch, index
        state.streams.move(epoch, index)
        if self._draws:
            state.clock.set((epoch << _TIME) + index)

    def _write_row(self) -> None:
        """Write down the epoch that has ended; the learning rate is that of its last update."""
        state = self._state
        lr = {} if self._steps.lr is None else {"lr": float(self._steps.lr)}
        state.history.rows.append({"epoch": state.epoch, "step": state.step, **state.metrics, **lr})

    def _fire(self, moment: str) -> None:
        function = self._calls[moment]
        if function is not None:
            self._guarded(function)

    def _guarded(self, function: Callable[[State], Any]) -> Any:
        try:
            return function(self._state)
        except Exception as error:
            self._explain(error)
            raise

    def _explain(self, error: BaseException) -> None:
        blamed = self._box.blame(error)
        if blamed is not None and hasattr(self, "_state"):
            note = f"raised in {blamed}, epoch {self._state.epoch}, step {self._state.step}"
            if note not in getattr(error, "__notes__", ()):
                error.add_note(note)

    # -- the optimizer's own steps -------------------------------------------------------------------------------------

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        """Begin the phase `update` around a step that the loop takes by itself."""
        try:
            refuse_answers("update", self._answers["update"])
            wrappers = self._wrappers["update"]
            changed = self._closure_first(optimizer, args, kwargs) if wrappers else None
            self._update = Opened()
            self._update.enter(wrappers, self._state)
        except Exception as error:
            self._explain(error)
            raise
        return changed

    def _after_step(self, made: bool) -> None:
        """End the phase `update` around a step that the loop has taken by itself."""
        try:
            self._update.leave(made)
        except Exception as error:
            self._explain(error)
            raise
        finally:
            self._state.again = self._passes

    def _closure_first(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        """Run the closure of a step now, since tricks act on the gradients that it makes; the step gets its loss."""
        closure = closure_of(args, kwargs)
        if closure is None or evaluates_closure(optimizer):
            return None
        state = self._state

        def again() -> Any:
            state.clock.set((state.epoch << _TIME) + state.batch_index)
            with torch.enable_grad():
                found = closure()
            return found.detach() if isinstance(found, torch.Tensor) else found

        loss = again()
        state.again = again
        return (args[0], lambda: loss), {}


def refuse_answers(phase: str, tricks: list[str]) -> None:
    """Raise `ConfigError` for *tricks* that do the work of a phase themselves, where the loop does it."""
    if tricks:
        raise ConfigError(
            f"{tricks[0]} does the work of {phase!r} itself, but your loop does it already; use Session or fit"
        )
