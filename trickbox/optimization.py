"""The optimizer of a run: built from a factory or taken as it is, its parameters in one canonical order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from trickbox.errors import ConfigError, near
from trickbox.state import Options, State

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
        _check_scales(given, state)
        _repair(given, state, before)
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
    optimizer = given(_groups(given, parameters, state.parameter_options))
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"optimizer: the function must give a torch.optim.Optimizer, got {optimizer!r}")
    _check_scales(optimizer, state)
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


def write_scales(state: State) -> None:
    """Write base value times the product of all factors into every parameter group, also into late ones."""
    assert state.optimizer is not None
    for name, factors in state.scales.items():
        # Sorted, because a product of floats depends on its order and the order of tricks must not matter.
        product = math.prod(sorted(factor(state) for factor in factors))
        for group in state.optimizer.param_groups:
            base = group.setdefault(f"base_{name}", _read(group, name))
            _write(group, name, base * product)


def restore_scales(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter group its own values back."""
    for group in optimizer.param_groups:
        for name in ("lr", "momentum", "weight_decay"):
            if f"base_{name}" in group:
                _write(group, name, group.pop(f"base_{name}"))


def _check_scales(optimizer: torch.optim.Optimizer, state: State) -> None:
    for name in state.scales:
        for group in optimizer.param_groups:
            _read(group, name)


def _read(group: dict[str, Any], name: str) -> float:
    if name == "momentum" and "betas" in group:
        return float(group["betas"][0])
    if name not in group:
        raise ConfigError(
            f"a trick scales {name}, which this optimizer does not have; its options are {', '.join(group)}"
        )
    return float(group[name])


def _write(group: dict[str, Any], name: str, value: float) -> None:
    if name == "momentum" and "betas" in group:
        group["betas"] = (value, *group["betas"][1:])
    elif isinstance(group[name], Tensor):
        group[name].fill_(value)
    else:
        group[name] = value


def _is_added(name: str) -> bool:
    return ".trickbox." in f".{name}"


def _groups(given: OptimizerFactory, parameters: dict[str, nn.Parameter], options: dict[str, Options]) -> list[Any]:
    for name in options:
        if name not in parameters:
            raise ConfigError(f"options are set for {name!r}, which is no parameter.{near(name, parameters)}")
    if not options:
        return list(parameters.values())
    groups: dict[Options, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(options.get(name, Options()), []).append(parameter)
    # The factory's own rate is known only from what it builds.
    rate = given([nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"]
    return [
        {"params": members, "lr": rate * option.lr} | ({} if option.weight_decay else {"weight_decay": 0.0})
        for option, members in groups.items()
    ]


def _repair(optimizer: torch.optim.Optimizer, state: State, before: set[int]) -> None:
    held = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    if strangers := held.keys() - before:
        raise ConfigError(
            f"optimizer holds {len(strangers)} parameter tensors that are not of this model; build it from "
            f"model.parameters(), or pass a factory such as partial(torch.optim.Adam, lr=0.01)"
        )
    if state.parameter_options:
        raise ConfigError("a trick sets options of single parameters; pass a factory as optimizer, not a built one")
    parameters = canonical(state.model)
    present = {id(parameter) for parameter in parameters.values()}
    for group in optimizer.param_groups:
        for gone in [parameter for parameter in group["params"] if id(parameter) not in present]:
            optimizer.state.pop(gone, None)
        group["params"][:] = [parameter for parameter in group["params"] if id(parameter) in present]
    for name, parameter in parameters.items():
        if id(parameter) not in before:
            neighbors = [held.get(id(p)) for p in _neighbors(name, parameters, state.surgery.converted())]
            group = next((group for group in neighbors if group is not None), optimizer.param_groups[0])
            group["params"].append(parameter)


def _neighbors(
    name: str, parameters: dict[str, nn.Parameter], converted: list[tuple[str, nn.Module]]
) -> Iterator[nn.Parameter]:
    """The parameters of the layer that a new parameter was attached to, and of the layers that it replaces."""
    host = f".{name}".split(".trickbox.")[0][1:]
    yield from (p for other, p in parameters.items() if other.startswith(f"{host}."))
    for path, original in converted:
        if name.startswith(f"{path}."):
            yield from original.parameters()
