"""Taking tricks off without losing what they have learned: into the model's own weights, or into a plain copy.

What is attached to a layer goes into its parameters where that can be done. The core knows how for batch norms of
torch, and that dropouts, and whatever else draws, act in training only. Any other module may have a method
``fold_into(layer) -> bool``: it changes the parameters of *layer* so that in eval mode the layer alone does what both
did, or changes nothing and gives False. Of a module that stands in the place of a layer, *layer* is that one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trickbox.errors import SurgeryError
from trickbox.surgery.attach import (
    CHILD,
    Attachments,
    Slot,
    attachments,
    run_after,
    run_before,
    stand_in,
    take_off,
    unhook,
)
from trickbox.surgery.draws import Draws
from trickbox.surgery.ledger import (
    LEDGER,
    Added,
    Converted,
    Counting,
    Edit,
    Written,
    is_tricked,
    ledger,
    replace_module,
    undo_since,
)
from trickbox.surgery.places import MODEL
from trickbox.surgery.sites import DROPOUTS, WEIGHT_LAYERS

BLOCKS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
"""The modules of torch that may use the weights of their layers without calling these."""


def strip(model: nn.Module) -> nn.Module:
    """Fold into *model*, in place, what tricks have learned, and take them off; returns the same model.

    Its class and keys are those that it had, and its outputs in eval mode stay, to about 1e-5 of their size in float32.
    Batch norms that a trick put behind a layer go into its weight and bias, adapters such as those of LoRA into its
    weight; what acts in training only, such as dropout, goes away, and what was frozen trains again.
    Raises `SurgeryError` that names all that cannot be folded, such as a layer norm or a shortcut; then nothing has
    changed. Harmless on a model that has no tricks. An optimizer must be built anew. Cost: two passes over the weights
    that are folded, and the memory of one layer.

    >>> import trickbox
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> _ = trickbox.apply(net, ["batch_norm", "dropout"], torch.randn(16, 4))
    >>> list(strip(net).state_dict())
    ['0.weight', '0.bias', '2.weight', '2.bias']
    """
    if not has_tricks(model):
        return model
    left = [why for path, host in _hosts(model).items() for why in _fold(model, path, host, in_place=False).values()]
    left += [f"{edit.path}: {why}" for edit in _exchanged(model) if (why := _fold_face(model, edit, in_place=False))]
    if left:
        raise SurgeryError(f"strip: {'; '.join(left)}. Nothing was changed; trickbox.bake makes a plain copy of it all")
    _fold_faces(model)
    for path, host in _hosts(model).items():
        _fold(model, path, host, in_place=True)
    _take_back(model, lambda edit: isinstance(edit, Written))
    return model


def bake(model: nn.Module) -> nn.Module:
    """A plain copy of *model* in eval mode that computes the same, for `torch.export`, ONNX and `torch.jit.trace`.

    What `strip` can fold is folded, also where a layer needs a bias for it. What is left stands beside its layer in a
    `WithTricks`, so keys change. Only where something acts on a function inside a forward, on one of several calls of a
    module, or inside one of torch's own blocks, everything that is left stays attached as it was, by hooks, which all
    three follow. Nothing is shared with *model*, which keeps its tricks. Cost: a copy of the model.

    >>> import trickbox
    >>> net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 4)
    >>> plain = bake(trickbox.apply(net, ["layer_norm", "dropout"], x))
    >>> torch.equal(torch.export.export(plain, (x,)).module()(x), net.eval()(x))
    True
    """
    baked = copy.deepcopy(model).eval()
    if not has_tricks(baked):
        return baked
    _fold_faces(baked)
    hosts = _hosts(baked)
    left = {path: _fold(baked, path, host, in_place=True, new_bias=True) for path, host in hosts.items()}
    exchanged = _exchanged(baked)
    hooks = any(left[path] and _needs_hooks(baked, host, left[path]) for path, host in hosts.items())
    stays = (Written, Added, Counting) if hooks else (Written, Added)
    _take_back(baked, lambda edit: isinstance(edit, stays) or edit in exchanged)
    for path, host in hosts.items():
        for slot in [slot for slot in _attached(host).slots if slot.name not in left[path] and slot.name != "stash"]:
            take_off(host, slot)
    for host in () if hooks else hosts.values():
        baked = _written_out(baked, host)
    return baked


class WithTricks(nn.Module):
    """A layer and what tricks have put around it, as one module without hooks; other names are those of the layer."""

    def __init__(self, layer: nn.Module, tricks: Attachments) -> None:
        super().__init__()
        self.layer = layer
        self.tricks = tricks

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer puts out, as the tricks change it."""
        args, kwargs = self.tricks.before(args, kwargs)
        return self.tricks.after(args, kwargs, self.layer(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__["_modules"]
        return modules[name] if name in modules else getattr(modules["layer"], name)


# -- folding -----------------------------------------------------------------------------------------------------------


def fold_batch_norm(layer: nn.Module, norm: nn.modules.batchnorm._BatchNorm, new_bias: bool = False) -> str:
    """Put *norm*, in eval mode, into weight and bias of the *layer* before it; the reason where that cannot be done.

    >>> layer, norm, x = nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3).eval(), torch.randn(4, 2, 8)
    >>> expected = norm(layer(x))
    >>> fold_batch_norm(layer, norm), torch.allclose(layer(x), expected, atol=1e-6)
    ('', True)
    """
    weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
    if type(layer) not in WEIGHT_LAYERS or weight is None:
        return f"stands behind a {type(layer).__name__}, and only torch's own layers with a plain weight can take it"
    if norm.running_mean is None or norm.running_var is None:
        return "has no statistics of its own, so it depends on the batch"
    transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
    if transposed and layer.groups != 1:
        return "stands behind a transposed convolution in groups"
    if bias is None and not new_bias:
        return "needs a bias, which its layer has not"
    with torch.no_grad():
        scale = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
        shift = (0 if bias is None else bias) - norm.running_mean
        shift = shift * scale + (0 if norm.bias is None else norm.bias)
        weight.copy_(weight * scale.view(-1, *[1] * (weight.ndim - 1 - transposed)))
        if bias is None:
            layer.bias = nn.Parameter(shift.to(weight.dtype))
        else:
            bias.copy_(shift)
    return ""


def _fold(model: nn.Module, path: str, host: nn.Module, in_place: bool, new_bias: bool = False) -> dict[str, str]:
    """Fold what is attached to *host* into it, or else into a copy; what is left, by name, and why."""
    found, left = _attached(host), dict[str, str]()
    layer, shares = host, _shares(model, path)
    if not in_place:
        behind = (edit.original for edit in _exchanged(model) if model.get_submodule(edit.path) is host)
        layer = _bare(next(behind, host))
    for name in dict.fromkeys(slot.name for slot in found.slots if slot.name in found._modules):
        child, slots = found._modules[name], [slot for slot in found.slots if slot.name == name]
        assert child is not None
        if _acts_in_training_only(child):
            continue
        if not _is_whole(slots, found.calls):
            why = "acts on a part of what the layer does"
        elif left or shares:
            why = "stands behind what cannot be folded" if left else "would change a weight that serves elsewhere too"
        else:
            why = _fold_child(layer, child, slots[0].way, new_bias)
        if why:
            left[name] = f"{path or MODEL}: {name} ({type(child).__name__}) {why}"
    return left


def _fold_child(layer: nn.Module, child: nn.Module, way: str, new_bias: bool) -> str:
    if isinstance(child, nn.modules.batchnorm._BatchNorm) and way == "after":
        return fold_batch_norm(layer, child, new_bias)
    fold: Callable[[nn.Module], bool] | None = getattr(child, "fold_into", None)
    return "" if fold is not None and fold(layer) else "cannot be folded"


def _fold_faces(model: nn.Module) -> None:
    """Bring back the layers in whose place something stands, with what that does folded in, where this can be done."""
    for edit in _exchanged(model):
        face = model.get_submodule(edit.path)
        if _fold_face(model, edit, in_place=True):
            continue
        edit.undo(model)
        stand_in(face, edit.original)
        ledger(model).edits.remove(edit)
        for added in (other for other in ledger(model).edits if isinstance(other, Added) and other.host is face):
            added.host = edit.original


def _fold_face(model: nn.Module, edit: Converted, in_place: bool) -> str:
    """Fold what stands in the place of a layer into it, or else into a copy; the reason where that cannot be done."""
    fold: Callable[[nn.Module], bool] | None = getattr(model.get_submodule(edit.path), "fold_into", None)
    if fold is None:
        return f"a {type(edit.original).__name__} was replaced for good"
    if _shares(model, edit.path):
        return "folding would change a weight that serves elsewhere too"
    return "" if fold(edit.original if in_place else _bare(edit.original)) else "it cannot be folded"


def _shares(model: nn.Module, path: str) -> bool:
    """Whether a parameter of the module at *path* serves elsewhere too."""
    own = model.get_submodule(path)._parameters
    return any(f"{path}.{name}".lstrip(".") in ledger(model).shared for name in own)


def _acts_in_training_only(module: nn.Module) -> bool:
    """Whether a module drops something: what draws does so in training alone."""
    return isinstance(module, DROPOUTS) or any(isinstance(value, Draws) for value in vars(module).values())


def _is_whole(slots: list[Slot], calls: int) -> bool:
    """Whether a child acts on what its host puts out, at every one of its *calls*."""
    plain = all(slot.way in ("after", "add") and slot.stash is None and not slot.function for slot in slots)
    return plain and {slot.call for slot in slots} == set(range(calls))


def _bare(layer: nn.Module) -> nn.Module:
    """A copy of *layer* with parameters of its own, to try on what cannot be taken back."""
    made: nn.Module = object.__new__(type(layer))  # a class that computes its weight forbids copy.copy
    own = layer._parameters.items()
    copies = {name: None if p is None else nn.Parameter(p.detach().clone()) for name, p in own}
    made.__dict__.update({**vars(layer), "_parameters": copies})
    return made


# -- taking off --------------------------------------------------------------------------------------------------------


def has_tricks(model: nn.Module) -> bool:
    """Whether *model* has tricks on. Raises `SurgeryError` where only a part of it has."""
    if is_tricked(model):
        return True
    if inner := next((path for path, module in model.named_modules() if is_tricked(module)), None):
        raise SurgeryError(f"tricks were put on a part of this {type(model).__name__}; pass that part, {inner!r}")
    return False


def _hosts(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that have something attached, by path."""
    return {path: module for path, module in model.named_modules() if attachments(module) is not None}


def _attached(host: nn.Module) -> Attachments:
    found = attachments(host)
    assert found is not None
    return found


def _exchanged(model: nn.Module) -> list[Converted]:
    """The layers that tricks replaced by something that also acts in eval mode."""
    converted = [edit for edit in ledger(model).edits if isinstance(edit, Converted)]
    return [edit for edit in converted if not _acts_in_training_only(model.get_submodule(edit.path))]


def _take_back(model: nn.Module, stays: Callable[[Edit], bool]) -> None:
    """Undo the edits of *model* but those that stay, and forget all."""
    ledger(model).edits = [edit for edit in ledger(model).edits if not stays(edit)]
    undo_since(model, 0)
    del model.__dict__[LEDGER]


def _needs_hooks(model: nn.Module, host: nn.Module, left: dict[str, str]) -> bool:
    """Whether what is left on *host* acts inside its forward, or on one of several calls, or beside a fused kernel.

    The blocks of torch, such as `nn.TransformerEncoderLayer`, call their layers only where these have hooks.
    """
    found = _attached(host)
    parents = [module for module in model.modules() if any(child is host for child in module.children())]
    fused = any(isinstance(parent, BLOCKS) for parent in parents)
    return fused or found.calls > 1 or any(slot.function for slot in found.slots if slot.name in left)


def _written_out(model: nn.Module, host: nn.Module) -> nn.Module:
    """*model* with a `WithTricks` in the place of *host*, where anything is left on that."""
    found = attachments(host)
    if found is None:
        return model
    del host._modules[CHILD]
    unhook(host, (run_before, run_after))
    made = WithTricks(host, found).train(host.training)
    if host is model:
        return made
    replace_module(model, host, made)
    return model
