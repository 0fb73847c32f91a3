"""Keeping what tricks have made of a model apart from it: `save` writes it down, `load` builds it on a plain model.

A folder holds two files, as those of PEFT do: ``tricks.safetensors`` with the tensors, under the names that they have
in the model, and ``tricks.json`` with the recipe, by which tricks are put on again, and the digest of the first file.
"""

from __future__ import annotations

import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trickbox.catalog import origin, resolve, unwrap
from trickbox.checks import check_model, check_untouched
from trickbox.errors import ConfigError, SurgeryError, near
from trickbox.files import write_whole
from trickbox.metrics import Forward
from trickbox.nest import call
from trickbox.run import Run
from trickbox.state import Batch
from trickbox.surgery.bake import has_tricks
from trickbox.surgery.ledger import Converted, Frozen, Ledger, Written, ledger, seal, undo

FORMAT = 1
TENSORS, RECIPE = "tricks.safetensors", "tricks.json"
TOLD = ("name", "class", "distribution")
"""What the recipe says of a trick besides its JSON form."""


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write what tricks have made of *model* into the folder *path*: what they added and exchanged, and the recipe.

    Where tricks froze the model, as LoRA and Freeze do, also what still trains, such as the head, and what tricks wrote
    into the frozen part; frozen weights themselves are not written. Where they did not, the model's own weights are
    yours to save: all keys of ``model.state_dict()`` without ``.trickbox.`` in them.
    Raises `SurgeryError` for a model without tricks, `ConfigError` for a trick that JSON cannot hold, such as with a
    predicate in ``at=``, or that is not registered, and without safetensors. A file that is there is replaced as a
    whole, or not at all. Cost: a copy of what is written.
    """
    if not has_tricks(model) or not ledger(model).recipes:
        raise SurgeryError(f"save: tricks have built nothing on this {type(model).__name__}; save its state_dict")
    recipes = [[_checked(config) for config in recipe] for recipe in ledger(model).recipes]
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in _learned(model).items()}
    data: bytes = _safetensors().save(tensors)
    about = {"format": FORMAT, "trickbox": version("trickbox"), "model": type(model).__name__, "tricks": recipes}
    write_whole(Path(path) / TENSORS, data)
    write_whole(Path(path) / RECIPE, json.dumps({**about, "sha256": hashlib.sha256(data).hexdigest()}, indent=2))


def load(model: nn.Module, path: str | os.PathLike[str], inputs: Any, *, forward: Forward = call) -> nn.Module:
    """Put on *model*, in place, what `save` wrote into the folder *path*; returns the same model.

    *model* is as the saved one was before its tricks: the same architecture, with the weights that it had where they
    were frozen. *inputs* is one batch as the model takes it. Tricks write nothing into the model's own weights again,
    but for what was saved. `trickbox.undo` takes all of it back.
    Raises `ConfigError` for files that are missing, damaged, of a newer format or of another model, and names the
    tensors; the model's weights then stay as they were. Cost: that of `trickbox.apply`, and one pass over the tensors.

    >>> import tempfile, trickbox
    >>> net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 4)
    >>> plain = {name: value.clone() for name, value in net.state_dict().items()}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(trickbox.apply(net, ["layer_norm"], x), folder)
    ...     other = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    ...     _ = other.load_state_dict(plain)
    ...     _ = load(other, folder, x)
    >>> torch.equal(net(x), other(x))
    True
    """
    check_model(model)
    check_untouched(model)
    recipes, tensors = _read(Path(path))
    try:
        for recipe in recipes:
            run = Run(model, recipe, seed=torch.initial_seed(), forward=forward, wrap=None)
            run._begin(Batch(inputs, None, 0), has_loop=False)
        _take_back_written(model)
        _fill(model, tensors, Path(path))
    except BaseException:
        undo(model)
        raise
    return model


# -- what is saved -----------------------------------------------------------------------------------------------------


def _learned(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that are saved, by name; one that has several names once."""
    found, seen = ledger(model), set[int]()
    freezes = any(isinstance(edit, Frozen) for edit in found.edits)
    learned = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if _is_added(found, name) or (freezes and (name in found.written or _goes_on(model, name, tensor))):
            if id(tensor) not in seen:
                learned[name] = tensor
            seen.add(id(tensor))
    return learned


def _is_added(found: Ledger, name: str) -> bool:
    """Whether a tensor is one that a trick added, or lies in a layer that a trick has put in."""
    put_in = (f"{edit.path}." for edit in found.edits if isinstance(edit, Converted))
    return ".trickbox." in f".{name}" or name.startswith(tuple(put_in))


def _goes_on(model: nn.Module, name: str, tensor: Tensor) -> bool:
    """Whether training changes a tensor of the model's own: a parameter, or a buffer beside one, or a statistic."""
    if isinstance(tensor, nn.Parameter):
        return tensor.requires_grad
    path = name.rpartition(".")[0]
    kept = {path for edit in ledger(model).edits if isinstance(edit, Frozen) for path in edit.kept}
    owner = model.get_submodule(path)
    statistics = getattr(owner, "running_mean", None) is not None and path not in kept
    return statistics or any(parameter.requires_grad for parameter in owner.parameters(recurse=False))


def _checked(config: dict[str, Any]) -> dict[str, Any]:
    """A trick of the recipe as JSON gives it back. Raises `ConfigError` where that would be another one."""
    try:
        found: dict[str, Any] = json.loads(json.dumps(config))
        path = origin(resolve(unwrap(_spec(found))[0]))["class"]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"save: {config['name']} cannot be written down as JSON: {error}") from error
    if path != config["class"]:
        raise ConfigError(f"save: {config['name']} is a {config['class']}, but its name means {path}; register it")
    return found


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ConfigError("tricks are kept as safetensors, which is missing: pip install 'trickbox[save]'") from error
    return safetensors.torch


# -- what is loaded ----------------------------------------------------------------------------------------------------


def _read(folder: Path) -> tuple[list[list[Any]], dict[str, Tensor]]:
    """The recipes, as `Run` takes them, and the tensors on the CPU."""
    for name in (RECIPE, TENSORS):
        if not (folder / name).is_file():
            raise ConfigError(f"load: there is no {folder / name}; give the folder that trickbox.save wrote")
    data = (folder / TENSORS).read_bytes()
    try:
        about = json.loads((folder / RECIPE).read_text())
        known, digest, recipes = about["format"], about["sha256"], about["tricks"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"load: {folder / RECIPE} is no recipe of trickbox: {error!r}") from error
    if known != FORMAT:
        raise ConfigError(f"load: {folder} has format {known}; trickbox {version('trickbox')} reads format {FORMAT}")
    if hashlib.sha256(data).hexdigest() != digest:
        raise ConfigError(f"load: the two files in {folder} do not belong together; saving was interrupted, save again")
    named = [[(config["name"], _spec(config)) for config in recipe] for recipe in recipes]
    return named, _safetensors().load(data)


def _spec(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in TOLD}


def _take_back_written(model: nn.Module) -> None:
    """Give the model's own weights back what the recipe has overwritten: what belongs there is loaded, or is there."""
    found = ledger(model)
    for edit in reversed(found.edits):
        if isinstance(edit, Written):
            edit.undo(model)
    found.edits = [edit for edit in found.edits if not isinstance(edit, Written)]


def _fill(model: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    """Write *tensors* into the model, or raise `ConfigError` where they are not those of this one."""
    found, own = ledger(model), model.state_dict(keep_vars=True)
    missing = [f"{name} is missing" for name in own if _is_added(found, name) and name not in tensors]
    unknown = [f"{name} is not in the model.{near(name, own)}" for name in sorted(tensors) if name not in own]
    shapes = [
        f"{name} has shape {tuple(tensors[name].shape)}, the model's {tuple(value.shape)}"
        for name, value in own.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if faults := [*missing, *unknown, *shapes]:
        more = f" and {len(faults) - 6} more" if len(faults) > 6 else ""
        raise ConfigError(f"load: {folder} is of another model: {'; '.join(faults[:6])}{more}")
    with torch.no_grad():
        for name, value in tensors.items():
            if not _is_added(found, name):
                found.edits.append(Written(name, own[name].detach().clone(), keep=True))
            own[name].copy_(value)
    seal(model)
