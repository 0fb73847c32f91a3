"""Normalization: batch, layer and group norm behind the layers of a model that has none, or of another kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

from attrs import field, validators
from torch import nn

from trickbox.authoring import (
    CONVOLUTIONS,
    Places,
    Rank,
    Site,
    State,
    Surgery,
    flag,
    hookimpl,
    integer,
    interval,
    norm_after,
    places,
    trick,
)

Make = Callable[[nn.Module, tuple[int, ...]], nn.Module | str]
"""From a layer and the shape of its output to the norm that belongs there, or to the reason why none does."""


def batch_norm_for(layer: nn.Module, shape: tuple[int, ...], eps: float, momentum: float) -> nn.Module | str:
    """The batch norm for outputs of *shape*, (N, C) of a linear layer or (N, C, ...) of a convolution, or why none.

    >>> batch_norm_for(nn.Conv2d(3, 8, 3), (4, 8, 5, 5), eps=1e-5, momentum=0.1).num_features
    8
    """
    if reason := _misfit(layer, shape):
        return reason
    if math.prod(shape) == shape[1]:
        return "one value a channel in a whole batch has no variance"
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    return kinds[len(shape)](shape[1], eps=eps, momentum=momentum)


def group_norm_for(layer: nn.Module, shape: tuple[int, ...], eps: float, groups: int | None) -> nn.Module | str:
    """The group norm for outputs of *shape*, (N, C) or (N, C, ...), or why none.

    >>> group_norm_for(nn.Conv1d(3, 48, 3), (4, 48, 5), eps=1e-5, groups=None).num_groups
    12
    """
    if reason := _misfit(layer, shape):
        return reason
    if groups is None:
        groups = default_groups(shape[1]) if isinstance(layer, CONVOLUTIONS) else 1
    if shape[1] % groups:
        return f"{shape[1]} channels are not a multiple of {groups} groups"
    if math.prod(shape[1:]) == groups:
        return "one value a group has no variance"
    return nn.GroupNorm(groups, shape[1], eps=eps)


def default_groups(channels: int) -> int:
    """As many groups as possible, but at most 32, and of at least four channels each.

    Fewer channels a group come close to instance norm, which takes the strength of every feature away.

    >>> [default_groups(channels) for channels in (3, 16, 32, 48, 256)]
    [1, 4, 8, 12, 32]
    """
    fitting = (groups for groups in range(1, 33) if channels % groups == 0 and channels // groups >= 4)
    return max(fitting, default=1)


def layer_norm_for(layer: nn.Module, shape: tuple[int, ...], eps: float) -> nn.Module | str:
    """The layer norm for outputs of *shape*, or why none.

    Over the features (the last axis) of a linear layer; over channels and positions of a convolution, with one gain
    and shift a channel, which is a group norm of one group.

    >>> layer_norm_for(nn.Linear(3, 8), (4, 7, 8), eps=1e-5)
    LayerNorm((8,), eps=1e-05, elementwise_affine=True, bias=True)
    """
    if isinstance(layer, CONVOLUTIONS):
        return group_norm_for(layer, shape, eps, 1)
    return nn.LayerNorm(shape[-1], eps=eps) if shape[-1] > 1 else "one feature has no variance"


def _misfit(layer: nn.Module, shape: tuple[int, ...]) -> str | None:
    """Why channels are not the second axis of *shape*, where they are not."""
    if not isinstance(layer, CONVOLUTIONS):
        return None if len(shape) == 2 else f"the features of {shape} are its last axis, where only LayerNorm acts"
    batched = len(shape) == len(layer.kernel_size) + 2
    return None if batched else f"an output of shape {shape} has no batch axis"


def normalize(surgery: Surgery, trick: Any, make: Make) -> None:
    """Put a norm where the settings `at`, `not_at` and `dense` of *trick* say, or where it suits the model.

    Where a norm of another kind stands already, it is replaced, with its gain, shift, eps and mode; one of the same
    kind stays. Raises `ConfigError` for a place that is not there, `NoEffectError` where no norm came of it.
    """
    sites = surgery.choose(_suitable(surgery, trick.dense), surgery.anatomy.layers, trick.at, trick.not_at)
    sites = surgery.require(sites, "weight layers before the head")
    planned = [(site, norm_after(surgery.model, surgery.tape, site.event)) for site in sites]
    if trick.at is None:
        planned = [(site, norm) for site, norm in planned if norm is not None or _may_have_one(surgery, site)]
    acted = [site for site, norm in planned if _normalize_one(surgery, site, norm, make)]
    surgery.require(acted, "layers whose output this norm can take and that have no such norm yet")


def _suitable(surgery: Surgery, dense: bool) -> list[Site]:
    """The convolutions but for the heads, with *dense* all layers; in a model without convolutions its dense layers."""
    layers = surgery.anatomy.hidden
    if surgery.anatomy.recurrent:
        surgery.remark("its recurrent layers take no norm")
    convolutions = [site for site in layers if isinstance(site.module, CONVOLUTIONS)]
    return layers if dense or not convolutions else convolutions


def _may_have_one(surgery: Surgery, site: Site) -> bool:
    """Whether a layer that no norm follows may get one; with a note where the model's blocks say no.

    Where a model is normalized, it is so at the places that its author chose; no norm belongs on a skip path, or on one
    of the layers that make q, k and v.
    """
    anatomy = surgery.anatomy
    inside = [norm for norm in anatomy.norms if anatomy.block_of(norm) is not None]
    if anatomy.norms:
        who, whose = ("the model's blocks have", "their") if inside else ("the model has", "its")
        surgery.skip(site, f"{who} norms of {whose} own already, such as {(inside or anatomy.norms)[0].label}")
    elif site in anatomy.skips:
        surgery.skip(site, "it lies on a skip path")
    elif not isinstance(site.module, CONVOLUTIONS) and anatomy.block_of(site) is not None:
        surgery.skip(site, "it belongs to a residual branch of dense layers, which norms precede; name it in at=")
    else:
        return True
    return False


def _normalize_one(surgery: Surgery, site: Site, norm: Site | None, make: Make) -> bool:
    """Attach or replace at one site; False, with a note, where neither can be done."""
    made = make(site.module, site.output_shape)
    if isinstance(made, str):
        surgery.skip(site, made)
    elif norm is None:
        surgery.insert(site, made.to(next(site.module.parameters()).dtype), Rank.NORM)
        return True
    elif norm.attached or _kind(norm.module) == _kind(made):
        surgery.skip(site, f"{norm.label} follows, a {type(norm.module).__name__} already")
    elif surgery.model.get_submodule(norm.path) is not norm.module:
        return True  # shared, and replaced for an earlier site
    elif norm.input_shape != site.output_shape:
        surgery.skip(site, f"{norm.label} follows, and normalizes its output in another shape")
    elif (why := take_over(norm.module, made)) is not None:
        surgery.skip(site, why)
    else:
        surgery.convert(norm, made)
        return True
    return False


def _kind(norm: nn.Module) -> str:
    if isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return "batch"
    if isinstance(norm, nn.LayerNorm) or (isinstance(norm, nn.GroupNorm) and norm.num_groups == 1):
        return "layer"
    return "group" if isinstance(norm, nn.GroupNorm) else type(norm).__name__


def take_over(old: nn.Module, new: nn.Module) -> str | None:
    """Give *new* the gain, shift, eps and dtype of the norm *old*, or say why it cannot take them.

    A checkpoint of the old norm then loads into the new one: statistics that it has not are passed over, and those
    that only it has keep their values.

    >>> old, new = nn.BatchNorm1d(4, eps=1e-3), nn.GroupNorm(2, 4)
    >>> take_over(old, new), new.eps, new.load_state_dict(old.state_dict())
    (None, 0.001, <All keys matched successfully>)
    """
    for name in ("weight", "bias"):
        mine, theirs = getattr(new, name), getattr(old, name, None)
        if theirs is not None and theirs.shape != mine.shape:
            return f"its norm has a {name} of shape {tuple(theirs.shape)}, this one of {tuple(mine.shape)}"
    for name in ("weight", "bias"):
        theirs = getattr(old, name, None)
        own = None if theirs is None else nn.Parameter(theirs.detach().clone(), requires_grad=theirs.requires_grad)
        new.register_parameter(name, own)
    if isinstance(eps := getattr(old, "eps", None), float):
        new.eps = eps  # type: ignore[assignment]
    new.register_load_state_dict_pre_hook(pass_over_statistics)  # type: ignore[no-untyped-call]
    return None


def pass_over_statistics(norm: nn.Module, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Pre-hook of ``load_state_dict``: batch statistics of a checkpoint that *norm* has not, or the other way round."""
    own = norm.state_dict()
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        if name not in own:
            state_dict.pop(prefix + name, None)
        else:
            state_dict.setdefault(prefix + name, own[name])


@trick
class BatchNorm:
    """Normalize every channel over the batch, so that larger learning rates train stably.

    eps, momentum   as of `torch.nn.BatchNorm1d`: added to the variance, and the share of the new batch in the running
                    statistics, which eval mode uses
    dense           behind linear layers too; a model without convolutions gets it there anyway
    at, not_at      the layers behind which it acts instead, and those behind which it does not

    Acts on the output of every convolution but the head, which makes the outputs, before its activation; each call of a
    shared layer gets a norm of its own. A norm of another kind that follows is replaced, one of this kind stays.
    Where the model's residual blocks have norms, none is added, and none ever on a skip path, or on a dense layer of a
    residual branch.
    A linear layer fed (N, T, C) and an output with one value a channel in the whole batch are skipped.
    Raises `NoEffectError` where it could act nowhere. Cost: two passes over the activations, 2 C parameters a layer.
    Source: Ioffe & Szegedy 2015.

    >>> import torch, trickbox
    >>> net = nn.Sequential(nn.Conv1d(1, 3, 5), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    >>> trickbox.apply(net, [BatchNorm()], torch.zeros(4, 1, 8))[0].trickbox.batch_norm.num_features
    3
    """

    family: ClassVar = "normalization"
    after: ClassVar = ("transfer",)
    conflicts: ClassVar = ("layer_norm", "group_norm")
    tunes: ClassVar = ("momentum",)

    eps: float = field(default=1e-5, validator=interval("(0, inf)"))
    momentum: float = field(default=0.1, validator=interval("(0, 1]"))
    dense: bool = field(default=False, validator=flag())
    at: Places | None = field(default=None, validator=places())
    not_at: Places | None = field(default=None, validator=places())

    @hookimpl
    def init(self, state: State) -> None:
        """Attach, or replace what is there."""
        normalize(state.surgery, self, lambda layer, shape: batch_norm_for(layer, shape, self.eps, self.momentum))


@trick
class LayerNorm:
    """Normalize every sample by itself, so that the batch size does not matter.

    Over the features of a linear layer; over channels and positions of a convolution, with one gain and shift a
    channel (a group norm of one group). `eps`, `dense`, places, replacement and errors are as of `BatchNorm`; a linear
    layer fed (N, T, C) is normalized over C. Cost: two passes over the activations, 2 C parameters a layer.
    Source: Ba et al. 2016.

    >>> import torch, trickbox
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> trickbox.apply(net, [LayerNorm()], torch.zeros(4, 2))[0].trickbox.layer_norm.normalized_shape
    (3,)
    """

    family: ClassVar = "normalization"
    after: ClassVar = ("transfer",)
    conflicts: ClassVar = ("batch_norm", "group_norm")

    eps: float = field(default=1e-5, validator=interval("(0, inf)"))
    dense: bool = field(default=False, validator=flag())
    at: Places | None = field(default=None, validator=places())
    not_at: Places | None = field(default=None, validator=places())

    @hookimpl
    def init(self, state: State) -> None:
        """Attach, or replace what is there."""
        normalize(state.surgery, self, lambda layer, shape: layer_norm_for(layer, shape, self.eps))


@trick
class GroupNorm:
    """Normalize groups of channels of every sample by themselves: batch norm's stand-in for small batches.

    groups   of every layer; by default those of `default_groups` for a convolution, and 1 for a linear layer, which has
             one value a channel only

    A layer whose channels are no multiple of `groups` is skipped. `eps`, `dense`, places, replacement and errors are as
    of `BatchNorm`. Cost: two passes over the activations, 2 C parameters a layer. Source: Wu & He 2018.

    >>> import torch, trickbox
    >>> net = nn.Sequential(nn.Conv1d(1, 6, 5), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2))
    >>> trickbox.apply(net, [GroupNorm()], torch.zeros(4, 1, 8))[0].trickbox.group_norm.num_groups
    1
    """

    family: ClassVar = "normalization"
    after: ClassVar = ("transfer",)
    conflicts: ClassVar = ("batch_norm", "layer_norm")
    tunes: ClassVar = ("groups",)

    groups: int | None = field(default=None, validator=validators.optional(integer(1)))
    eps: float = field(default=1e-5, validator=interval("(0, inf)"))
    dense: bool = field(default=False, validator=flag())
    at: Places | None = field(default=None, validator=places())
    not_at: Places | None = field(default=None, validator=places())

    @hookimpl
    def init(self, state: State) -> None:
        """Attach, or replace what is there."""
        normalize(state.surgery, self, lambda layer, shape: group_norm_for(layer, shape, self.eps, self.groups))
