"""The norm that suits an output, and one norm in the place of another, for which the keys of a state dict stay."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trickbox.streams import forked
from trickbox.surgery.edits import Surgery
from trickbox.surgery.sites import NORMS, Site
from trickbox.surgery.tape import Shape, evaluating

MakeNorm = Callable[[Shape, bool], nn.Module | str]
"""From the shape of an output, and whether its channels are the second axis with positions behind it, to the norm that
belongs there, or to the reason why none does."""

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class ShiftedRMSNorm(nn.RMSNorm):
    """RMS norm over the last axis, or over the second where that holds channels; with a shift if it takes one over.

    >>> norm = ShiftedRMSNorm(2, eps=1e-6, spatial=True)
    >>> norm(torch.tensor([[[3.0], [4.0]]])).square().mean().round(decimals=3)
    tensor(1., grad_fn=<RoundBackward1>)
    """

    bias: Tensor | None
    eps: float

    def __init__(self, features: int, eps: float, spatial: bool) -> None:
        super().__init__(features, eps=eps)
        self.spatial = spatial
        self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """*x* over the root of its mean square, times the gain; the layout stays."""
        if not self.spatial:
            out = super().forward(x)
            return out if self.bias is None else out + self.bias
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # in half precision squares overflow
        out = (wide * torch.rsqrt(wide.square().mean(1, keepdim=True) + self.eps)).to(x.dtype)
        gain, shift = (p if p is None else p.view(-1, *[1] * (x.ndim - 2)) for p in (self.weight, self.bias))
        out = out if gain is None else out * gain
        return out if shift is None else out + shift


def batch_norm_for(shape: Shape, spatial: bool, eps: float = 1e-5, momentum: float = 0.1) -> nn.Module | str:
    """The batch norm for outputs of *shape*, (N, C) or with positions (N, C, ...), or why none.

    >>> batch_norm_for((4, 8, 5, 5), spatial=True).num_features
    8
    """
    if not spatial and len(shape) != 2:
        return _features_are_last(shape)
    if math.prod(shape) == shape[1]:
        return "one value a channel in a whole batch has no variance"
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    return kinds[len(shape)](shape[1], eps=eps, momentum=momentum)


def group_norm_for(shape: Shape, spatial: bool, eps: float = 1e-5, groups: int | None = None) -> nn.Module | str:
    """The group norm for outputs of *shape*, (N, C) or with positions (N, C, ...), or why none.

    Without *groups*, `default_groups` of channels with positions, and 1 of features, which have one value a channel.

    >>> group_norm_for((4, 48, 5), spatial=True).num_groups
    12
    """
    if not spatial and len(shape) != 2:
        return _features_are_last(shape)
    if groups is None:
        groups = default_groups(shape[1]) if spatial else 1
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


def layer_norm_for(shape: Shape, spatial: bool, eps: float = 1e-5) -> nn.Module | str:
    """The layer norm for outputs of *shape*, or why none.

    Over the features, which are the last axis; with positions over them and the channels, with one gain and shift a
    channel, which is a group norm of one group.

    >>> layer_norm_for((4, 7, 8), spatial=False)
    LayerNorm((8,), eps=1e-05, elementwise_affine=True, bias=True)
    """
    if spatial:
        return group_norm_for(shape, spatial, eps, 1)
    return nn.LayerNorm(shape[-1], eps=eps) if shape[-1] > 1 else "one feature has no variance"


def instance_norm_for(shape: Shape, spatial: bool, eps: float = 1e-5) -> nn.Module | str:
    """The instance norm for outputs of *shape* (N, C, ...), which is a group norm of one channel a group, or why none.

    >>> instance_norm_for((4, 8, 5), spatial=True)
    GroupNorm(8, 8, eps=1e-05, affine=True, bias=True)
    """
    if not spatial:
        return "only what convolutions put out has positions, over which it works"
    if math.prod(shape[2:]) == 1:
        return "one value a channel in a sample has no variance"
    return nn.GroupNorm(shape[1], shape[1], eps=eps)


def rms_norm_for(shape: Shape, spatial: bool, eps: float = 1e-6) -> nn.Module | str:
    """The RMS norm for outputs of *shape*, over the features or, at each position, over the channels, or why none.

    >>> rms_norm_for((4, 7, 8), spatial=False)
    ShiftedRMSNorm((8,), eps=1e-06, elementwise_affine=True)
    """
    features = shape[1] if spatial else shape[-1]
    return ShiftedRMSNorm(features, eps, spatial) if features > 1 else "of one feature only the sign would be left"


_MAKERS: dict[str, Callable[..., nn.Module | str]] = {
    "batch_norm": batch_norm_for,
    "layer_norm": layer_norm_for,
    "group_norm": group_norm_for,
    "instance_norm": instance_norm_for,
    "rms_norm": rms_norm_for,
}
NORM_KINDS = tuple(_MAKERS)


def norm_for(kind: str, shape: Shape, spatial: bool, **settings: Any) -> nn.Module | str:
    """The norm of a *kind* of `NORM_KINDS` for outputs of *shape*, or the reason why none belongs there.

    *spatial* says that channels are the second axis, with positions behind it; else features are the last axis.

    >>> norm_for("group_norm", (4, 6), spatial=False, eps=1e-3)
    GroupNorm(1, 6, eps=0.001, affine=True, bias=True)
    """
    return _MAKERS[kind](shape, spatial, **settings)


def _features_are_last(shape: Shape) -> str:
    return f"the features of {shape} are its last axis, where only layer_norm and rms_norm act"


def exchange_norm(surgery: Surgery, norm: Site, make: MakeNorm) -> str | None:
    """Replace the norm at *norm*, everywhere it is used, by what *make* gives; or say why it stays.

    Gain, shift, eps, dtype, mode and hooks are taken over, and the keys of the model's state dict stay (`take_over`).
    A norm of a class that only its own code knows stays, and so does one of the same kind.
    """
    old, shape = norm.module, norm.input_shape
    if surgery.model.get_submodule(norm.path) is not old:
        return None  # shared, and replaced at an earlier call
    if not _is_torchs(old, shape):
        return f"it is a {type(old).__name__}, a class whose work only its own code knows"
    made = make(shape, _is_spatial(old, shape))
    if isinstance(made, str):
        return made
    if kind_of(made) == kind_of(old):
        return f"it is a {type(old).__name__} already"
    made.to(next((p.dtype for p in (*old.parameters(recurse=False), *surgery.model.parameters())), torch.float32))
    if (why := take_over(old, made)) is not None:
        return why
    if any(isinstance(m, nn.TransformerEncoderLayer) and old in m.children() for m in surgery.model.modules()):
        made.register_forward_pre_hook(stay_called)
    surgery.convert(norm, made)
    return None


def stay_called(norm: nn.Module, args: tuple[Any, ...]) -> None:
    """Forward pre-hook that does nothing: beside a hook, torch's encoder layer calls its norms in eval mode too.

    Without one it works out layer norms by itself there, whatever stands in their place.
    """


def kind_of(norm: nn.Module) -> str:
    """The kind of a norm, by what it does: a group norm of one group is a layer norm.

    >>> [kind_of(norm) for norm in (nn.GroupNorm(1, 4), nn.GroupNorm(4, 4), nn.SyncBatchNorm(4))]
    ['layer_norm', 'instance_norm', 'batch_norm']
    """
    if isinstance(norm, nn.GroupNorm):
        return {norm.num_channels: "instance_norm", 1: "layer_norm"}.get(norm.num_groups, "group_norm")
    kinds: dict[str, type] = {
        "batch_norm": nn.modules.batchnorm._BatchNorm,
        "instance_norm": nn.modules.instancenorm._InstanceNorm,
        "layer_norm": nn.LayerNorm,
        "rms_norm": nn.RMSNorm,
    }
    return next((kind for kind, cls in kinds.items() if isinstance(norm, cls)), type(norm).__name__)


def _is_spatial(norm: nn.Module, shape: Shape) -> bool:
    """Whether the channels of a norm's input are its second axis, with positions behind it."""
    if isinstance(norm, (nn.LayerNorm, nn.RMSNorm)):
        return len(norm.normalized_shape) > 1 or getattr(norm, "spatial", False)
    return len(shape) > 2


def _is_torchs(norm: nn.Module, shape: Shape) -> bool:
    """Whether *norm* is of a class of torch, or of one derived from it that does the same, tried out on noise."""
    torchs = (
        kind for kind in type(norm).__mro__ if kind.__module__.startswith("torch.nn.") and issubclass(kind, NORMS)
    )
    base: Any = next(torchs, None)
    if base is None or type(norm) in (base, ShiftedRMSNorm):
        return base is not None
    like = next(iter((*norm.parameters(), *norm.buffers())), torch.empty(0))
    with forked(), torch.no_grad(), evaluating(norm):
        noise = torch.randn(shape).to(like)
        try:
            return torch.allclose(norm.forward(noise), base.forward(norm, noise))
        except Exception:  # whatever it is, they do not do the same
            return False


def take_over(old: nn.Module, new: nn.Module) -> str | None:
    """Let *new* stand for the norm *old*: gain, shift, eps, and all keys; or say why it cannot.

    Gain, shift and statistics are the same objects, so that *old* comes back with what was trained. Statistics that
    *new* has no use for stay as they are: a state dict of either loads into the other. Those that only *new* has are
    saved under the name ``trickbox``, which a state dict of *old* need not have.

    >>> old, new = nn.BatchNorm1d(4, eps=1e-3), nn.GroupNorm(2, 4)
    >>> take_over(old, new), new.eps, new.load_state_dict(old.state_dict()), old.load_state_dict(new.state_dict())
    (None, 0.001, <All keys matched successfully>, <All keys matched successfully>)
    >>> old, new = nn.GroupNorm(2, 4), nn.BatchNorm1d(4)
    >>> take_over(old, new), list(new.state_dict())[1:3], new.load_state_dict(old.state_dict())
    (None, ['bias', 'trickbox.running_mean'], <All keys matched successfully>)
    """
    own: dict[str, Tensor | None] = {name: getattr(old, name, None) for name in ("weight", "bias")}
    for name, value in own.items():
        if value is not None and value.shape != new.weight.shape:
            shapes = tuple(value.shape), tuple(new.weight.shape)  # type: ignore[arg-type]
            return f"its norm has a {name} of shape {shapes[0]}, this one of {shapes[1]}"
    new._parameters.update(own)  # type: ignore[arg-type]
    if isinstance(eps := getattr(old, "eps", None), float):
        new.eps = eps  # type: ignore[assignment]
    foreign = save_apart in old._state_dict_hooks.values()  # of a batch norm that a trick has put there
    statistics = [] if foreign else list(old.buffers(recurse=False))
    if statistics:
        new._buffers = old._buffers
    if isinstance(new, nn.modules.batchnorm._BatchNorm) and not statistics:
        new.register_state_dict_post_hook(save_apart)  # type: ignore[no-untyped-call]
        new.register_load_state_dict_pre_hook(load_apart)  # type: ignore[no-untyped-call]
    new._modules.update(old._modules)
    return None


def save_apart(norm: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Hook of ``state_dict``: the statistics of *norm* lie under ``trickbox``, as no key of the model may be new."""
    for name in STATISTICS:
        state_dict[f"{prefix}trickbox.{name}"] = state_dict.pop(prefix + name)


def load_apart(norm: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Hook of ``load_state_dict``: back from there, or as they are where a plain state dict has none."""
    for name in STATISTICS:
        state_dict[prefix + name] = state_dict.pop(f"{prefix}trickbox.{name}", getattr(norm, name))
