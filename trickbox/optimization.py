"""The optimizer of a run: built from a factory or taken as it is, its parameters in one canonical order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from trickbox.errors import ConfigError, near
from trickbox.state import Options, State
from trickbox.steps import check_scales

OptimizerFactory = Callable[[Any], torch.optim.Optimizer]


def build_optimizer(
    given: OptimizerFactory | torch.optim.Optimizer, state: State, before: set[int]
) -> torch.optim.Optimizer:
    """The optimizer for the model as the tricks left it; *before* are the ids of the parameters that it had then.

    A factory gets all parameters, in groups of equal options. An optimizer that exists is repaired: parameters that
    tricks added join the group of the layer that they belong to, and all others keep their state.
    Raises `ConfigError` for an optimizer of another model, or a factory that does not give one.
    """
    if isinstance(given, torch.optim.Optimizer):
        held = {id(parameter) for group in given.param_groups for parameter in group["params"]}
        if strangers := held - before:
            raise ConfigError(
                f"optimizer holds {len(strangers)} parameter tensors that are not of this model; build it from "
                f"model.parameters(), or pass a factory such as partial(torch.optim.Adam, lr=0.01)"
            )
        for parameter in repair(given, state, before).values():
            given.param_groups[0]["params"].append(parameter)
        return given
    if not callable(given):
        raise ConfigError(
            f"optimizer must be an optimizer or a function of the parameters, such as "
            f"partial(torch.optim.Adam, lr=0.01), got {given!r}"
        )
    parameters = canonical(state.model)
    if not parameters:
        raise ConfigError("the model has no parameters, so there is nothing to train")
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ConfigError("every parameter is frozen, so there is nothing to train; leave at least the head trainable")
    optimizer = given(_groups(parameters, state.parameter_options))
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"optimizer: the function must give a torch.optim.Optimizer, got {optimizer!r}")
    check_scales(optimizer, state)
    _set_rates(parameters, state)
    for group in optimizer.param_groups if state.rates else ():
        if isinstance(group["lr"], torch.Tensor):  # one, so far, for all groups
            group["lr"] = group["lr"].clone()
    return optimizer


def keep_groups(given: Any) -> Callable[[], None]:
    """A function that gives an optimizer that exists the parameters and the state back that it has now."""
    if not isinstance(given, torch.optim.Optimizer):
        return lambda: None
    members, state = [list(group["params"]) for group in given.param_groups], dict(given.state)

    def put_back() -> None:
        del given.param_groups[len(members) :]
        for group, parameters in zip(given.param_groups, members, strict=True):
            group["params"][:] = parameters
        given.state.update(state)

    return put_back


def canonical(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters by name: the model's own in its order, then what tricks added, by name."""
    named = list(model.named_parameters())
    own = [(name, p) for name, p in named if not _is_added(name)]
    return dict([*own, *sorted((pair for pair in named if _is_added(pair[0])), key=lambda pair: pair[0])])


def _is_added(name: str) -> bool:
    return ".trickbox." in f".{name}"


def _groups(parameters: dict[str, nn.Parameter], options: dict[str, Options]) -> list[Any]:
    _check_options(parameters, options)
    if not options:
        return list(parameters.values())
    groups: dict[Options, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(options.get(name, Options()), []).append(parameter)
    return [
        {"params": members} | ({} if option.weight_decay else {"weight_decay": 0.0})
        for option, members in groups.items()
    ]


def _set_rates(parameters: dict[str, nn.Parameter], state: State) -> None:
    """Let the steps of a loop multiply rates: what the loop or a schedule writes into the groups then holds for all."""
    if state.has_loop:
        options = state.parameter_options.items()
        state.rates.update({id(parameters[name]): option.lr for name, option in options if option.lr != 1})


def repair(optimizer: torch.optim.Optimizer, state: State, before: set[int]) -> dict[str, nn.Parameter]:
    """Fit an optimizer that exists to the model as the tricks left it; *before* are the ids of the earlier parameters.

    Parameters that are gone leave it, those that tricks added join the group of the layer that they belong to, single
    parameters with options of their own move to a copy of their group, and all others keep their state. Returns what
    tricks added to layers that this optimizer does not train.
    Raises `ConfigError` where a trick scales what the optimizer does not have.
    """
    check_scales(optimizer, state)
    held = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    parameters = canonical(state.model)
    present = {id(parameter) for parameter in parameters.values()}
    for group in optimizer.param_groups:
        for gone in [p for p in group["params"] if id(p) in before and id(p) not in present]:
            optimizer.state.pop(gone, None)
        group["params"][:] = [p for p in group["params"] if id(p) not in before or id(p) in present]
    left = {}
    for name, parameter in parameters.items():
        if id(parameter) not in before and id(parameter) not in held:
            neighbors = [held.get(id(p)) for p in _neighbors(name, parameters, state.surgery.converted())]
            home = next((group for group in neighbors if group is not None), None)
            if home is None:
                left[name] = parameter
            else:
                home["params"].append(parameter)
    _regroup(optimizer, parameters, state)
    return left


def put_groups_together(state: State) -> None:
    """Give the parameters that `repair` moved to groups of their own back to the groups that they came from."""
    for optimizer, group, members, copies in state.regrouped:
        group["params"] = members
        optimizer.param_groups[:] = [other for other in optimizer.param_groups if all(other is not c for c in copies)]
    state.regrouped.clear()


def _regroup(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], state: State) -> None:
    """Move the parameters that have options into copies of their groups, one copy for equal options."""
    options = state.parameter_options
    _check_options(parameters, options)
    if options and isinstance(optimizer, torch.optim.LBFGS):
        raise ConfigError("a trick sets options of single parameters, and LBFGS has the same for all; use another one")
    _set_rates(parameters, state)
    by_id = {id(parameters[name]): option for name, option in options.items()}
    for group in list(optimizer.param_groups):
        members = group["params"]
        moved: dict[Options, list[nn.Parameter]] = {}
        for parameter in members:
            if id(parameter) in by_id:
                moved.setdefault(by_id[id(parameter)], []).append(parameter)
        copies = [_copy(group, moved[option], option, state.has_loop) for option in moved]
        if copies:
            group["params"] = [p for p in members if id(p) not in by_id]
            optimizer.param_groups.extend(copies)
            state.regrouped.append((optimizer, group, members, copies))


def _copy(group: dict[str, Any], members: list[nn.Parameter], option: Options, has_loop: bool) -> dict[str, Any]:
    """A group like *group* for *members* and their options; where nothing follows the steps, with their rate."""
    decay = {} if option.weight_decay else {"weight_decay": 0.0}
    return {**group, "params": members, "lr": group["lr"] * (1 if has_loop else option.lr), **decay}


def _check_options(parameters: dict[str, nn.Parameter], options: dict[str, Options]) -> None:
    for name in options:
        if name not in parameters:
            raise ConfigError(f"options are set for {name!r}, which is no parameter.{near(name, parameters)}")


def _neighbors(
    name: str, parameters: dict[str, nn.Parameter], converted: list[tuple[str, nn.Module]]
) -> Iterator[nn.Parameter]:
    """The parameters of the layer that a new parameter was attached to, and of the layers that it replaces."""
    host = f".{name}".split(".trickbox.")[0][1:]
    yield from (p for other, p in parameters.items() if other.startswith(f"{host}."))
    for path, original in converted:
        if name.startswith(f"{path}."):
            yield from original.parameters()
