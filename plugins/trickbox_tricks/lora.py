"""Low-rank adaptation: a model that has learned stays as it is, and small matrices beside its layers learn."""

from __future__ import annotations

from typing import ClassVar

import torch
from attrs import field, validators
from torch import Tensor, nn

from trickbox.authoring import (
    CONVOLUTIONS,
    ConfigError,
    Places,
    Rank,
    Site,
    State,
    Surgery,
    choice,
    hookimpl,
    integer,
    interval,
    parameter_users,
    places,
    trick,
)

PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""The classes that are known to do nothing but to apply their weight; of any other it is tried out."""


def low_rank(down: Tensor, up: Tensor, scale: float) -> Tensor:
    """What B A adds to a weight of (out, in, ...): *scale* times *up* (out, rank, ...) times *down* (rank, in, ...).

    >>> low_rank(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0], [10.0]]), 0.5)
    tensor([[ 0.5000,  1.0000,  1.5000],
            [ 5.0000, 10.0000, 15.0000]])
    """
    return scale * (up.flatten(1) @ down.flatten(1)).view(len(up), *down.shape[1:])


class Adapter(nn.Module):
    """``scale * up(down(x))``: what the change of a weight by *up* times *down* adds to the output of its layer."""

    def __init__(self, down: nn.Module, up: nn.Module, weight: str) -> None:
        super().__init__()
        self.down, self.up = down, up
        self.scale = 1.0
        self.weight = weight
        """The name of the weight in its layer."""
        self.transposed = False
        """Whether that weight is (in, out)."""

    def forward(self, x: Tensor) -> Tensor:
        """What is added to the output of the layer for the input *x*."""
        return self.up(self.down(x)) * self.scale  # type: ignore[no-any-return]

    def change(self) -> Tensor:
        """What is added to the weight, in its shape."""
        change = low_rank(self.down.weight, self.up.weight, self.scale)  # type: ignore[arg-type]
        return change.t() if self.transposed else change

    def fold_into(self, layer: nn.Module) -> bool:
        """Add the change to the weight of *layer*; False where it has none of its own any more."""
        weight = layer._parameters.get(self.weight)
        if weight is None or not weight.is_floating_point():
            return False
        with torch.no_grad():
            weight.add_(self.change())
        return True

    def extra_repr(self) -> str:
        """The factor."""
        return f"scale={self.scale:g}"


def adapter_for(site: Site, rank: int) -> Adapter | str:
    """The adapter for a layer, with nothing in *up*, or the reason why there is none."""
    layer = site.module
    weights = {name: p for name, p in layer._parameters.items() if p is not None and p.ndim > 1}
    if len(weights) != 1:
        return "its weight is computed, so nothing can be added to it"
    ((name, weight),) = weights.items()
    parts = _of_convolution(layer, rank) if isinstance(layer, CONVOLUTIONS) else _of_dense(site, rank)
    if isinstance(parts, str):
        return parts
    made = Adapter(*parts, name).to(weight.device, weight.dtype)
    if type(layer) not in PLAIN and not _stands_for(made, layer, torch.randn(site.input_shape).to(weight)):
        return f"what a {type(layer).__name__} puts out is more than its weight times its input"
    nn.init.zeros_(made.up.weight)  # type: ignore[arg-type]
    return made


def _of_dense(site: Site, rank: int) -> tuple[nn.Module, nn.Module]:
    down = nn.Linear(site.input_shape[-1], rank, bias=False)
    return down, nn.Linear(rank, site.output_shape[-1], bias=False)


def _of_convolution(layer: nn.Module, rank: int) -> tuple[nn.Module, nn.Module] | str:
    """A convolution like *layer* to *rank* channels, and one of single positions from there."""
    assert isinstance(layer, nn.modules.conv._ConvNd)
    if layer.transposed or layer.groups > 1:
        return "it is a transposed convolution, or one in groups"
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(layer.kernel_size)]
    alike = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
    return kind(layer.in_channels, rank, bias=False, **alike), kind(rank, layer.out_channels, 1, bias=False)


def _stands_for(adapter: Adapter, layer: nn.Module, x: Tensor) -> bool:
    """Whether *layer* with the change in its weight puts out what it puts out now, and the adapter's output."""
    shape = layer._parameters[adapter.weight].shape  # type: ignore[union-attr]
    for adapter.transposed in (False, True) if len(shape) == 2 else (False,):
        try:
            if adapter.change().shape == shape and _is_change(adapter, layer, x):
                return True
        except Exception:  # whatever it is, such as another input that the layer needs
            return False
    return False


@torch.no_grad()
def _is_change(adapter: Adapter, layer: nn.Module, x: Tensor) -> bool:
    forward, weight = type(layer).forward, layer._parameters[adapter.weight]
    assert weight is not None
    before, added = forward(layer, x), adapter(x)
    layer._parameters[adapter.weight] = nn.Parameter(weight + adapter.change())
    try:
        found = forward(layer, x)
    finally:
        layer._parameters[adapter.weight] = weight
    error = (found - before - added).norm() / added.norm()
    return found.shape == added.shape and bool(error < 10 * torch.finfo(x.dtype).eps ** 0.5)


@trick
class LoRA:
    """Train small matrices beside the layers of a model that has learned, and leave the model as it is.

    rank         of the change of each weight
    alpha        the change is alpha / rank * B A; None: as large as the rank, so that the factor is 1
    head         ``auto``: the layer that makes the outputs is trained too, as a new classifier must be, unless it puts
                 out one number for each row of an embedding, as in a language model; ``train``, ``freeze``
    at, not_at   the weight layers that get an adapter instead, and those that get none

    A layer W x + b becomes W x + b + alpha / rank * B A x. A (`down`) is drawn as torch draws a layer, B (`up`) begins
    at zero, so the model begins as what it was. Of a convolution, A has its kernel, stride and padding, and B is 1x1.
    It acts on every weight layer of residual blocks but those on skip paths, not on q and v alone: that is what reaches
    full fine-tuning (Dettmers et al. 2023). A model without such blocks gets it everywhere but at the head. A layer
    that is called several times has one adapter, since it has one weight.

    All other parameters of the model stop training, and so do the statistics of its batch norms; its dropouts go on.
    Layers of any class are taken whose output is their weight times their input, which is tried out. Left alone are
    layers that share their weight, whose weight is computed, and convolutions that are transposed or in groups.
    After training, `trickbox.strip` adds the change to the weights. Raises `ConfigError` for ``head="train"`` where the
    head shares its weight, `NoEffectError` without a place. Cost: two thin products a layer; gradients and optimizer
    state for rank * (in + out) numbers a layer only. Source: Hu et al. 2021; draws and convolutions as in PEFT.

    >>> import trickbox
    >>> net = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 2))
    >>> [name for name, p in trickbox.apply(net, [LoRA()], torch.zeros(4, 20)).named_parameters() if p.requires_grad]
    ['0.trickbox.lora.down.weight', '0.trickbox.lora.up.weight', '2.weight', '2.bias']
    """

    family: ClassVar = "adapter"
    after: ClassVar = ("transfer", "initialization", "normalization")
    conflicts: ClassVar = ("freezing",)
    tunes: ClassVar = ("rank",)

    rank: int = field(default=8, validator=integer(1))
    alpha: float | None = field(default=None, validator=validators.optional(interval("(0, inf)")))
    head: str = field(default="auto", validator=choice("auto", "train", "freeze"))
    at: Places | None = field(default=None, validator=places())
    not_at: Places | None = field(default=None, validator=places())

    @hookimpl
    def init(self, state: State) -> None:
        """Attach an adapter to every layer, and stop the training of everything else."""
        surgery = state.surgery
        users = parameter_users(surgery.model, surgery.tape)
        chosen = surgery.choose(_suitable(surgery), surgery.anatomy.layers, self.at, self.not_at)
        layers = {site.path: site for site in chosen}.values()
        acted = surgery.require([s for s in layers if self._adapt(state, s, users)], "weight layers that it can change")
        trained = self._heads(surgery, users) - {site.path for site in acted}
        for path, module in surgery.model.named_modules():
            if path not in trained and ".trickbox." not in f".{path}." and _learns(module):
                surgery.hold(path)

    def _adapt(self, state: State, site: Site, users: dict[str, set[str]]) -> bool:
        """Give all calls of a layer one adapter; False, with a note, where that cannot be done."""
        surgery = state.surgery
        if shared := _others(site, users):
            surgery.skip(site, f"it shares its weight with {', '.join(shared)}, which an adapter would not change")
            return False
        with state.streams.forked("init", f"{site.path}.trickbox.{surgery.acting}"):
            made = adapter_for(site, self.rank)
        if isinstance(made, str):
            surgery.skip(site, made)
            return False
        made.scale = 1.0 if self.alpha is None else self.alpha / self.rank
        for call in surgery.anatomy.layers:
            if call.path == site.path:
                surgery.add(call, made, Rank.ADAPTER)
        return True

    def _heads(self, surgery: Surgery, users: dict[str, set[str]]) -> set[str]:
        """The paths of the heads that are trained."""
        anatomy = surgery.anatomy
        shared = {site.path: others for site in anatomy.heads if (others := _others(site, users))}
        if self.head == "train" and shared:
            path, others = next(iter(shared.items()))
            raise ConfigError(f"lora: head: {path} shares its weight with {others[0]}; use head='auto', or 'freeze'")
        rows = {p.shape[0] for site in anatomy.embeddings for p in site.module.parameters(recurse=False)}
        words = {site.path for site in anatomy.heads if self.head == "auto" and site.output_shape[-1] in rows}
        return set() if self.head == "freeze" else {site.path for site in anatomy.heads} - words - set(shared)


def _suitable(surgery: Surgery) -> list[Site]:
    """The layers of residual blocks without those on skip paths; without blocks all but heads and gates."""
    anatomy = surgery.anatomy
    if any(isinstance(module, (nn.MultiheadAttention, nn.RNNBase)) for module in surgery.model.modules()):
        surgery.remark("torch's own attention and recurrent layers are one call each, and get no adapter")
    if not anatomy.joins:
        return anatomy.hidden
    surgery.remark("it has residual blocks: the layers in them, but for skip paths")
    return [s for s in anatomy.hidden if anatomy.block_of(s) is not None and s not in anatomy.skips]


def _others(site: Site, users: dict[str, set[str]]) -> list[str]:
    """The other modules that use a parameter of a layer."""
    names = (f"{site.path}.{name}".lstrip(".") for name, p in site.module._parameters.items() if p is not None)
    found = set().union(*(users[name] for name in names))
    return sorted(path or "(model)" for path in found - {site.path})


def _learns(module: nn.Module) -> bool:
    """Whether a module has parameters of its own that train, or statistics."""
    trains = any(p.requires_grad for p in module.parameters(recurse=False))
    return trains or getattr(module, "running_mean", None) is not None
