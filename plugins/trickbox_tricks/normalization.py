"""Normalization: norms behind the layers of a model that has none, and another kind in the place of its own norms."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, ClassVar

from attrs import field, validators

from trickbox.authoring import (
    CONVOLUTIONS,
    NORM_KINDS,
    MakeNorm,
    Places,
    Rank,
    Site,
    State,
    Surgery,
    choice,
    exchange_norm,
    flag,
    hookimpl,
    integer,
    interval,
    norm_after,
    norm_before,
    norm_for,
    places,
    side,
    trick,
)


def normalize(surgery: Surgery, trick: Any, make: MakeNorm, dense: bool) -> None:
    """Put a norm where the places and the side of *trick*, and *dense*, say, or where it suits the model.

    Where a norm of another kind stands already, it is replaced, with its gain, shift, eps and mode; one of the same
    kind stays. Raises `ConfigError` for a place that is not there, `NoEffectError` where no norm came of it.
    """
    sites = surgery.choose(_suitable(surgery, dense), surgery.anatomy.layers, trick.at, trick.not_at)
    sites = surgery.require(sites, "weight layers before the head")
    beside = norm_before if trick.side == "input" else norm_after
    planned = [(site, beside(surgery.model, surgery.tape, site.event)) for site in sites]
    if trick.at is None:
        planned = [(site, norm) for site, norm in planned if norm is not None or _may_have_one(surgery, site)]
    acted = [site for site, norm in planned if _normalize_one(surgery, trick, site, norm, make)]
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


def _normalize_one(surgery: Surgery, trick: Any, site: Site, norm: Site | None, make: MakeNorm) -> bool:
    """Insert or exchange at one layer; False, with a note, where neither can be done."""
    shape = site.input_shape if trick.side == "input" else site.output_shape
    if norm is None:
        why = _insert(surgery, trick, site, shape, make)
    elif norm.attached:
        why = f"{norm.label} is a {type(norm.module).__name__} already"
    elif shape not in (norm.input_shape, norm.output_shape):
        beside = "precedes" if trick.side == "input" else "follows"
        why = f"{norm.label} {beside}, and normalizes its values in another shape; convert_norm exchanges that too"
    else:
        site, why = norm, exchange_norm(surgery, norm, make)
    if why is not None:
        surgery.skip(site, why)
    return why is None


def _insert(surgery: Surgery, trick: Any, site: Site, shape: tuple[int, ...], make: MakeNorm) -> str | None:
    layer = site.module
    spatial = isinstance(layer, CONVOLUTIONS)
    if spatial and len(shape) != len(layer.kernel_size) + 2:  # type: ignore[arg-type]
        return f"what has shape {shape} has no batch axis"
    made = make(shape, spatial)
    if isinstance(made, str):
        return made
    made.to(next(layer.parameters()).dtype)
    if trick.side == "input":
        surgery.insert_before(site, made, Rank.NORM, shared=trick.shared)
    else:
        surgery.insert(site, made, Rank.NORM, trick.shared)
    return None


def warn_of_small_batch(state: State) -> None:
    """Warn where the last batch of an epoch has fewer than half as many samples as the others.

    Its mean and variance are the noisiest, and eval mode begins with them: on 36 series a last batch of 4 cost 8 points
    of test accuracy.
    """
    last, full = state.smallest_batch, state.batch.size
    if last is not None and 2 * last < full:
        warnings.warn(
            f"{state.surgery.acting}: the last batch of an epoch has {last} samples and the others have {full}, but it "
            "counts as much in the running statistics; pass last_batch='balance' or 'drop', or another batch_size",
            stacklevel=2,
        )


@trick
class BatchNorm:
    """Normalize every channel over the batch, so that larger learning rates train stably.

    eps, momentum   as of `torch.nn.BatchNorm1d`: added to the variance, and the share of the new batch in the running
                    statistics, which eval mode uses
    dense           behind linear layers too; a model without convolutions gets it there anyway
    at, not_at      the layers behind which it acts instead, and those behind which it does not
    side            ``input``: in front of the layers that `at` names
    shared          one norm for all calls of a layer that is called several times, which else get one each

    Acts on the output of every convolution but the head, which makes the outputs, before its activation. A norm of
    another kind that follows is replaced, one of this kind stays; the keys of the model stay in either case, so that a
    plain state dict loads.
    Where the model's residual blocks have norms, none is added, and none ever on a skip path, or on a dense layer of a
    residual branch.
    A linear layer fed (N, T, C) and an output with one value a channel in the whole batch are skipped. It warns of a
    last batch of fewer than half as many samples as the others have.
    Raises `NoEffectError` where it could act nowhere. Cost: two passes over the activations, 2 C parameters a layer.
    Source: Ioffe & Szegedy 2015.

    >>> import torch, trickbox
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv1d(1, 3, 5), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    >>> trickbox.apply(net, [BatchNorm()], torch.zeros(4, 1, 8))[0].trickbox.batch_norm.num_features
    3
    """

    family: ClassVar = "normalization"
    after: ClassVar = ("transfer", "weight_standardization")
    conflicts: ClassVar = ("layer_norm", "group_norm", "instance_norm", "rms_norm", "convert_norm")
    tunes: ClassVar = ("momentum",)

    eps: float = field(default=1e-5, validator=interval("(0, inf)"))
    momentum: float = field(default=0.1, validator=interval("(0, 1]"))
    dense: bool = field(default=False, validator=flag())
    at: Places | None = field(default=None, validator=places())
    not_at: Places | None = field(default=None, validator=places())
    side: str = field(default="output", validator=side())
    shared: bool = field(default=False, validator=flag())

    @hookimpl
    def init(self, state: State) -> None:
        """Attach, or replace what is there."""
        make = partial(norm_for, "batch_norm", eps=self.eps, momentum=self.momentum)
        normalize(state.surgery, self, make, self.dense)
        warn_of_small_batch(state)


@trick
class LayerNorm:
    """Normalize every sample by itself, so that the batch size does not matter.

    Over the features of a linear layer; over channels and positions of a convolution, with one gain and shift a
    channel (a group norm of one group). All other settings, replacement and errors are as of `BatchNorm`; a linear
    layer fed (N, T, C) is normalized over C. Cost: two passes over the activations, 2 C parameters a layer.
    Source: Ba et al. 2016.

    >>> import torch, trickbox
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> trickbox.apply(net, [LayerNorm()], torch.zeros(4, 2))[0].trickbox.layer_norm.normalized_shape
    (3,)
    """

    family: ClassVar = "normalization"
    after: ClassVar = ("transfer", "weight_standardization")
    conflicts: ClassVar = ("batch_norm", "group_norm", "instance_norm", "rms_norm", "convert_norm")

    eps: float = field(default=1e-5, validator=interval("(0, inf)"))
    dense: bool = field(default=False, validator=flag())
    at: Places | None = field(default=None, validator=places())
    not_at: Places | None = field(default=None, validator=places())
    side: str = field(default="output", validator=side())
    shared: bool = field(default=False, validator=flag())

    @hookimpl
    def init(self, state: State) -> None:
        """Attach, or replace what is there."""
        normalize(state.surgery, self, partial(norm_for, "layer_norm", eps=self.eps), self.dense)


@trick
class GroupNorm:
    """Normalize groups of channels of every sample by themselves: batch norm's stand-in for small batches.

    groups   of every layer; by default as many as possible for a convolution, but at most 32, and of at least four
             channels each; and 1 for a linear layer, which has one value a channel only

    A layer whose channels are no multiple of `groups` is skipped. All other settings, replacement and errors are as of
    `BatchNorm`. Cost: two passes over the activations, 2 C parameters a layer. Source: Wu & He 2018.

    >>> import torch, trickbox
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv1d(1, 6, 5), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2))
    >>> trickbox.apply(net, [GroupNorm()], torch.zeros(4, 1, 8))[0].trickbox.group_norm.num_groups
    1
    """

    family: ClassVar = "normalization"
    after: ClassVar = ("transfer", "weight_standardization")
    conflicts: ClassVar = ("batch_norm", "layer_norm", "instance_norm", "rms_norm", "convert_norm")
    tunes: ClassVar = ("groups",)

    groups: int | None = field(default=None, validator=validators.optional(integer(1)))
    eps: float = field(default=1e-5, validator=interval("(0, inf)"))
    dense: bool = field(default=False, validator=flag())
    at: Places | None = field(default=None, validator=places())
    not_at: Places | None = field(default=None, validator=places())
    side: str = field(default="output", validator=side())
    shared: bool = field(default=False, validator=flag())

    @hookimpl
    def init(self, state: State) -> None:
        """Attach, or replace what is there."""
        make = partial(norm_for, "group_norm", eps=self.eps, groups=self.groups)
        normalize(state.surgery, self, make, self.dense)


@trick
class InstanceNorm:
    """Normalize every channel of every sample over its positions, which takes style and strength away.

    A group norm of one channel a group, with gain and shift and without running statistics. Behind convolutions alone:
    a feature of a linear layer has one value a sample. All settings, replacement and errors are as of `BatchNorm`.
    Cost: two passes over the activations, 2 C parameters a layer. Source: Ulyanov et al. 2016.

    >>> import torch, trickbox
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv1d(1, 6, 5), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2))
    >>> trickbox.apply(net, [InstanceNorm()], torch.zeros(4, 1, 8))[0].trickbox.instance_norm
    GroupNorm(6, 6, eps=1e-05, affine=True, bias=True)
    """

    family: ClassVar = "normalization"
    after: ClassVar = ("transfer", "weight_standardization")
    conflicts: ClassVar = ("batch_norm", "layer_norm", "group_norm", "rms_norm", "convert_norm")

    eps: float = field(default=1e-5, validator=interval("(0, inf)"))
    at: Places | None = field(default=None, validator=places())
    not_at: Places | None = field(default=None, validator=places())
    side: str = field(default="output", validator=side())
    shared: bool = field(default=False, validator=flag())

    @hookimpl
    def init(self, state: State) -> None:
        """Attach, or replace what is there."""
        normalize(state.surgery, self, partial(norm_for, "instance_norm", eps=self.eps), dense=False)


@trick
class RMSNorm:
    """Divide every sample by its root mean square: layer norm without the mean, and without the shift.

    Over the features of a linear layer; at each position over the channels of a convolution. A norm that it replaces
    keeps its shift. `eps`, added to the mean square, `dense`, places, replacement and errors are as of `BatchNorm`; a
    linear layer fed (N, T, C) is normalized over C. Cost: two passes over the activations, C parameters a layer.
    Source: Zhang & Sennrich 2019.

    >>> import torch, trickbox
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> trickbox.apply(net, [RMSNorm()], torch.zeros(4, 2))[0].trickbox.rms_norm.normalized_shape
    (3,)
    """

    family: ClassVar = "normalization"
    after: ClassVar = ("transfer", "weight_standardization")
    conflicts: ClassVar = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "convert_norm")

    eps: float = field(default=1e-6, validator=interval("(0, inf)"))
    dense: bool = field(default=False, validator=flag())
    at: Places | None = field(default=None, validator=places())
    not_at: Places | None = field(default=None, validator=places())
    side: str = field(default="output", validator=side())
    shared: bool = field(default=False, validator=flag())

    @hookimpl
    def init(self, state: State) -> None:
        """Attach, or replace what is there."""
        normalize(state.surgery, self, partial(norm_for, "rms_norm", eps=self.eps), self.dense)


@trick
class ConvertNorm:
    """Replace the norms that a model has by another kind, wherever they stand, and add none.

    to           ``batch_norm``, ``layer_norm``, ``group_norm``, ``instance_norm`` or ``rms_norm``, as the trick of this
                 name puts it by default
    at, not_at   the norms that are replaced instead of all, and those that are not

    Also in front of layers, as in transformers, which the tricks that insert norms leave alone. Gain, shift, eps, dtype
    and mode are taken over, and the keys of the model stay. A norm that is of this kind already stays, and so do one of
    a class that only its own code knows, such as torchvision's FrozenBatchNorm2d, and one that the new kind does not
    fit, such as batch norm (N, T, C).
    Raises `NoEffectError` where there is none to replace. Cost: that of the new norms.
    Source: the papers of the kinds; the exchange as in Wu & He 2018, Zhang & Sennrich 2019.

    >>> import torch, trickbox
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 2))
    >>> trickbox.apply(net, [ConvertNorm("rms_norm")], torch.zeros(4, 2))[1].normalized_shape
    (4,)
    """

    family: ClassVar = "normalization"
    after: ClassVar = ("transfer", "weight_standardization")
    conflicts: ClassVar = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm")

    to: str = field(validator=choice(*NORM_KINDS))
    at: Places | None = field(default=None, validator=places())
    not_at: Places | None = field(default=None, validator=places())

    @hookimpl
    def init(self, state: State) -> None:
        """Exchange every norm that can be."""
        surgery, make = state.surgery, partial(norm_for, self.to)
        norms = surgery.choose(surgery.anatomy.norms, surgery.anatomy.norms, self.at, self.not_at)
        if not surgery.anatomy.norms:
            surgery.remark("it has no norms")
        replaced = []
        for norm in surgery.require(norms, "norms of the model's own"):
            if (why := exchange_norm(surgery, norm, make)) is None:
                replaced.append(norm)
            else:
                surgery.skip(norm, why)
        surgery.require(replaced, "norms of another kind whose input this one can take")
        if self.to == "batch_norm":
            warn_of_small_batch(state)
