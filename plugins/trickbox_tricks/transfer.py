"""Transfer learning: start from weights that another model has learned, and freeze what need not change."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch
from attrs import field, validators
from torch import Tensor, nn

from trickbox.authoring import (
    DROPOUTS,
    NORMS,
    ConfigError,
    NoEffectError,
    Options,
    Places,
    Site,
    State,
    Surgery,
    choice,
    hookimpl,
    interval,
    near,
    places,
    text,
    trick,
)


def read_weights(source: str | Mapping[str, Any] | nn.Module) -> dict[str, Tensor]:
    """The tensors by name in a file, a mapping or a model; a file is read on the CPU and can run no code.

    In a mapping, an entry ``state_dict`` or ``model`` that is itself a mapping is meant instead.
    Raises `ConfigError` for a file that is not there or holds anything else.

    >>> sorted(read_weights(nn.Linear(2, 3)))
    ['bias', 'weight']
    """
    found: Any = source.state_dict() if isinstance(source, nn.Module) else source
    if isinstance(found, str):
        if not Path(found).is_file():
            raise ConfigError(f"transfer: weights: there is no file {found!r}; give the path of a saved state_dict")
        try:
            found = torch.load(found, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ConfigError(f"transfer: weights: {found!r} cannot be read as a state_dict: {error}") from error
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping):
        raise ConfigError(f"transfer: weights must be a state_dict, got a {type(found).__name__}")
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def match(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> tuple[list[str], dict[str, str]]:
    """The names that *given* can fill in *own*, and for every other name of *own* the reason why it cannot.

    >>> match({"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)}, {"a": torch.ones(2), "b": torch.ones(2)})
    (['a'], {'b': 'has shape (3,) here and (2,) there', 'c': 'is not there'})
    """
    fits, reasons = [], {}
    for name, tensor in own.items():
        if name not in given:
            reasons[name] = "is not there"
        elif given[name].shape != tensor.shape:
            reasons[name] = f"has shape {tuple(tensor.shape)} here and {tuple(given[name].shape)} there"
        else:
            fits.append(name)
    return fits, reasons


def _is_weights(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, (str, Mapping, nn.Module)):
        raise ConfigError(f"transfer: weights must be a path, a state_dict or a model, got {value!r}")


def _as_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


@trick
class Transfer:
    """Start from weights that another model has learned: all that agree in name and shape are loaded.

    weights       a path of a saved state_dict, a state_dict, or a model
    head          ``keep``: load the last weight layer too, where it fits; ``new``: draw it anew, by its own rule
    backbone_lr   a multiple, in (0, 1], of the learning rate for what is loaded, but for the head

    What is not there, or has another shape, keeps its values and is noted. Initialize never overwrites what is loaded,
    but it may draw a new head. Raises `ConfigError` for a file that cannot be read, `NoEffectError` when nothing
    agrees, both before any training. Cost: none in a step. Source: Yosinski et al. 2014; lower rates for a backbone,
    Howard & Ruder 2018.

    >>> import trickbox
    >>> teacher, net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)), nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    >>> _ = trickbox.apply(net, [Transfer(teacher)], torch.zeros(4, 2))
    >>> torch.equal(net[0].weight, teacher[0].weight)
    True
    """

    family: ClassVar = "transfer"
    tunes: ClassVar = ("backbone_lr",)

    weights: Any = field(converter=_as_text, validator=_is_weights)
    head: str = field(default="keep", validator=choice("keep", "new"))
    backbone_lr: float = field(default=1.0, validator=interval("(0, 1]"))

    @hookimpl
    def init(self, state: State) -> None:
        """Load, and report what was not loaded."""
        surgery = state.surgery
        own, given, head = state.model.state_dict(), read_weights(self.weights), _names_of(surgery.head())
        loaded, reasons = match(own, given)
        if self.head == "new":
            loaded = [name for name in loaded if name not in head]
        if not loaded:
            raise NoEffectError(
                f"{surgery.acting} acted nowhere: it looked for tensors of equal name and shape; the weights have "
                f"{', '.join(given) or 'none'}, the model has {', '.join(own)}"
            )
        for name in loaded:
            surgery.write(name, given[name])
        for name, reason in reasons.items():
            surgery.note(name, f"not loaded: it {reason}")
        if unused := sorted(given.keys() - own.keys()):
            surgery.note("weights", f"not in the model: {', '.join(unused)}")
        if self.head == "new":
            _draw_head(state)
        if self.backbone_lr < 1:
            for name, _ in state.model.named_parameters():
                if name in loaded and name not in head:
                    state.options(name, Options(lr=self.backbone_lr))


def _names_of(site: Site) -> list[str]:
    return [f"{site.path}.{name}".lstrip(".") for name in site.module.state_dict()]


def _draw_head(state: State) -> None:
    head = state.surgery.head()
    fresh = copy.deepcopy(head.module)
    with state.streams.forked("init", f"{head.path}.weight".lstrip(".")):
        fresh.reset_parameters()  # type: ignore[operator]
    for name, value in zip(_names_of(head), fresh.state_dict().values(), strict=True):
        state.surgery.write(name, value, keep=False)


@trick
class Freeze:
    """Train only the last part of a model: everything that runs before it keeps its weights, statistics and mode.

    until       the path of the first module that is trained, or a prefix such as ``layer4``; by default the head,
                which makes the outputs
    at, not_at  the modules that are frozen instead, wherever they run, and those that are not

    Norms and dropouts of the frozen part stay in eval mode, whatever ``model.train()`` says. Modules are frozen as they
    are called; parameters of the containers around `until` stay trainable, and so does a module that shares a
    parameter with the trained part, but not its other parts. Raises `ConfigError` for a path that is never run or for
    `until` beside `at`, `NoEffectError` when nothing trainable runs before it. Cost: negative, as no gradients are made
    there. Source: Yosinski et al. 2014.

    >>> import trickbox
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> [name for name, p in trickbox.apply(net, [Freeze()], torch.zeros(4, 2)).named_parameters() if p.requires_grad]
    ['2.weight', '2.bias']
    """

    family: ClassVar = "freezing"
    after: ClassVar = (
        "transfer",
        "initialization",
        "normalization",
        "dropout",
        "residual",
        "gate",
        "stochastic depth",
        "attention",
        "adapter",
    )
    tunes: ClassVar = ("until",)

    until: str | None = field(default=None, validator=validators.optional(text()))
    at: Places | None = field(default=None, validator=places())
    not_at: Places | None = field(default=None, validator=places())

    @hookimpl
    def init(self, state: State) -> None:
        """Freeze the outermost modules that run before the trained part."""
        surgery = state.surgery
        if self.at is not None and self.until is not None:
            raise ConfigError("freeze: until and at both say what is frozen; give one of them")
        calls = surgery.sites(nn.Module)
        heads = surgery.anatomy.heads if self.at is None and self.until is None else []
        if self.at is None:
            early, late = split(surgery, self.until)
        else:
            early, late = surgery.choose([], calls, self.at, self.not_at), []
        kept = {site.label for site in surgery.choose(calls, calls, None, self.not_at)}
        spared = [site for site in calls if site.label not in kept]
        trained = {id(p) for site in [*late, *heads] for p in site.module.parameters(recurse=False)}
        trained |= {id(p) for site in spared for p in site.module.parameters()}
        parts = [part for site in early for part in _apart(surgery, site, trained, calls)]
        where = " that run before the part that is trained" if self.at is None else ""
        surgery.require([site for site in parts if _freeze(surgery, site)], f"trainable modules{where}")


def _apart(surgery: Surgery, site: Site, trained: set[int], calls: list[Site]) -> list[Site]:
    """*site*, or where it holds parameters that stay *trained*, those of its parts that hold none."""
    if not any(id(p) in trained for p in site.module.parameters()):
        return [site]
    if any(id(p) in trained for p in site.module.parameters(recurse=False)):
        surgery.skip(site, "it shares a parameter with the part that is trained")
    inside = {s.path: s for s in calls if s.path != site.path and _is_in(s.path, site.path)}
    nearest = [s for s in inside.values() if not any(s.path != path and _is_in(s.path, path) for path in inside)]
    return [part for child in nearest for part in _apart(surgery, child, trained, calls)]


def _freeze(surgery: Surgery, site: Site) -> bool:
    """Freeze a module; False where it holds nothing that was trained, though its norms and dropouts come to rest."""
    trains = any(p.requires_grad for p in site.module.parameters())
    if trains or any(isinstance(module, (*NORMS, *DROPOUTS)) for module in site.module.modules()):
        surgery.freeze(site.path)
    return trains


def split(surgery: Surgery, until: str | None) -> tuple[list[Site], list[Site]]:
    """The outermost modules that run before *until* (None: the head), and all calls that are not inside these."""
    calls = surgery.sites(nn.Module)
    if until is None:
        first = surgery.require(surgery.anatomy.heads, "trainable modules that run before the head")[-1]
    else:
        found = next((site for site in calls if _is_in(site.path, until)), None)
        if found is None:
            paths = [site.path for site in calls if site.path]
            raise ConfigError(
                f"freeze: until: no module {until!r} is run, only {', '.join(paths)}.{near(until, paths)}"
            )
        first = found
    before = {s.path: s for s in calls[: calls.index(first)] if not _is_in(until or first.path, s.path)}
    early = [s for s in before.values() if not any(s.path != path and _is_in(s.path, path) for path in before)]
    late = [s for s in calls if not any(_is_in(s.path, site.path) for site in early)]
    return early, late


def _is_in(path: str, container: str) -> bool:
    return not container or f"{path}.".startswith(f"{container}.")
