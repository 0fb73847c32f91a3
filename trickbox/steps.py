"""Following the steps of optimizers, through the hooks that torch fires around each: scale, count, tell."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from attrs import define, field
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from trickbox.errors import ConfigError
from trickbox.state import State

_FILE = torch.optim.Optimizer.profile_hook_step.__code__.co_filename


@define(eq=False)
class Scaling:
    """Around one step of an optimizer: every group gets its own values times all factors, then its own back.

    Factors are those of tricks for all groups, and before them the multiples of single parameters' rates.
    """

    own: list[tuple[dict[str, Any], str, Any]] = field(factory=list)

    def write(self, optimizer: torch.optim.Optimizer, state: State) -> None:
        """Write what each group says now times the product of all factors, also into groups that came late."""
        self.put_back()  # a step that raised never came to its end
        for group in optimizer.param_groups if state.rates else ():
            rate = state.rates.get(id(next(iter(group["params"]), None)))  # all in a group have the same
            if rate is not None:
                self.own.append((group, "lr", _own(group, "lr")))
                _write(group, "lr", rate)
        for name, factors in state.scales.items():
            # Sorted, because a product of floats depends on its order and the order of tricks must not matter.
            product = math.prod(sorted(factor(state) for factor in factors))
            written: set[int] = set()
            for group in optimizer.param_groups:
                self.own.append((group, name, _own(group, name)))
                if id(group.get(name)) not in written:  # one tensor may be the rate of several groups
                    _write(group, name, product)
                if isinstance(group.get(name), Tensor):
                    written.add(id(group[name]))

    def put_back(self) -> None:
        """Give every group its own values back."""
        for group, name, value in reversed(self.own):
            _restore(group, name, value)
        self.own.clear()


@define(eq=False)
class Steps:
    """Around each step of the optimizers that it follows: what tricks scale, and how many steps were really made.

    `before` is called with (optimizer, args, kwargs) of a step, before its groups are scaled, and may give others
    instead, as a hook of torch may; `after` with whether the step was made. Cost: two microseconds a step.
    """

    state: State
    before: Callable[[torch.optim.Optimizer, Any, Any], Any]
    after: Callable[[bool], None]
    made: dict[torch.optim.Optimizer, int] = field(factory=dict, init=False)
    """The steps that each optimizer has made."""
    ours: bool = field(default=False, init=False)
    """Whether the run takes the step that is taken now by itself, so that nobody need be told."""
    lr: Any = field(default=None, init=False)
    """The learning rate of the last step, in the first group."""
    _scaling: Scaling = field(factory=Scaling, init=False)
    _handles: list[RemovableHandle] = field(factory=list, init=False)
    _depth: int = field(default=0, init=False)
    _outermost: FrameType | None = field(default=None, init=False)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Act around every step of *optimizer* from now on."""
        self.made[optimizer] = 0
        enter: Callable[..., Any] = self._enter
        leave: Callable[..., Any] = self._leave
        if sum("step" in vars(kind) for kind in type(optimizer).__mro__) > 2:
            enter, leave = self._enter_outermost, self._leave_outermost
        self._handles.append(optimizer.register_step_pre_hook(_outside_graphs(enter)))
        self._handles.append(optimizer.register_step_post_hook(_outside_graphs(leave)))

    def release(self) -> None:
        """Leave all optimizers alone again."""
        for handle in self._handles:
            handle.remove()
        self.put_back()
        self.made.clear()

    def put_back(self) -> None:
        """Give every group its own values back, after a step that raised."""
        self._scaling.put_back()

    def _enter(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        state = self.state
        state.optimizer, state.step = optimizer, self.made[optimizer]
        changed = None if self.ours else self.before(optimizer, args, kwargs)
        if state.scales or state.rates:
            self._scaling.write(optimizer, state)
        lr = optimizer.param_groups[0]["lr"]
        self.lr = lr.clone() if isinstance(lr, Tensor) else lr
        return changed

    def _leave(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self.state.scales or self.state.rates:
            self._scaling.put_back()
        # Under a GradScaler a fused optimizer is stepped always, and skips by itself.
        skipped = getattr(optimizer, "found_inf", None)
        made = skipped is None or not bool(skipped)
        self.made[optimizer] += made
        self.state.step = self.made[optimizer]
        if not self.ours:
            self.after(made)

    def _enter_outermost(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        """`_enter`, where a class calls the step of its base class: torch then fires the hooks of both."""
        self._depth = self._depth + 1 if self._depth and _is_running(self._outermost) else 1
        if self._depth > 1:
            return None
        self._outermost = _frame_of_step()
        return self._enter(optimizer, args, kwargs)

    def _leave_outermost(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._outermost = None
            self._leave(optimizer, args, kwargs)


def _outside_graphs(hook: Callable[..., Any]) -> Callable[..., Any]:
    """*hook*, which a step that is compiled must not take into its graph, where its numbers would freeze."""
    outside: Any = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]

    def called(*step: Any) -> Any:
        return outside(*step) if torch.compiler.is_compiling() else hook(*step)

    return called


def drop_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Take the gradients off all parameters, as ``optimizer.zero_grad()`` does, at a fraction of its cost.

    An optimizer with a `zero_grad` of its own is left to that.
    """
    if getattr(optimizer.zero_grad, "__func__", None) is not torch.optim.Optimizer.zero_grad:
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def check_scales(optimizer: torch.optim.Optimizer, state: State) -> None:
    """Raise `ConfigError` where a trick scales what *optimizer* does not have."""
    for name in state.scales:
        for group in optimizer.param_groups:
            _own(group, name)


def closure_of(args: Any, kwargs: Any) -> Any:
    """The closure that a step of an optimizer was called with, or None."""
    return kwargs.get("closure", args[1] if len(args) > 1 else None)


def evaluates_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether *optimizer* computes its gradients by itself, as often as it likes, as LBFGS does."""
    return isinstance(optimizer, torch.optim.LBFGS)


def check_gradients(trick: str, optimizer: torch.optim.Optimizer | None, verb: str) -> None:
    """Raise `ConfigError`, naming *trick*, for an optimizer inside whose step nothing can *verb* the gradients."""
    if optimizer is not None and evaluates_closure(optimizer):
        raise ConfigError(
            f"{trick}: {type(optimizer).__name__} computes its gradients inside its step, where nothing can {verb} "
            "them; drop the trick, or use an optimizer such as torch.optim.Adam"
        )


def _own(group: dict[str, Any], name: str) -> Any:
    """What a group says now, a copy where it is a tensor. Raises `ConfigError` for what the optimizer does not have."""
    if name == "momentum" and "betas" in group:
        return group["betas"]
    if name not in group:
        raise ConfigError(
            f"a trick scales {name}, which this optimizer does not have; its options are {', '.join(group)}"
        )
    return group[name].clone() if isinstance(group[name], Tensor) else group[name]


def _write(group: dict[str, Any], name: str, factor: float) -> None:
    if name == "momentum" and "betas" in group:
        first, *others = group["betas"]
        group["betas"] = (first * factor, *others)
    elif isinstance(group[name], Tensor):
        group[name].mul_(factor)
    else:
        group[name] = group[name] * factor


def _restore(group: dict[str, Any], name: str, value: Any) -> None:
    if name == "momentum" and "betas" in group:
        group["betas"] = value
    elif isinstance(group[name], Tensor):
        group[name].copy_(value)
    else:
        group[name] = value


def _frame_of_step() -> FrameType | None:
    """The call of torch's own that fires the hooks of a step."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != _FILE:
        frame = frame.f_back
    return frame


def _is_running(frame: FrameType | None) -> bool:
    """Whether *frame* is among those that have called this function, and not the rest of a step that raised."""
    running: FrameType | None = sys._getframe(1)
    while running is not None and running is not frame:
        running = running.f_back
    return running is frame is not None
