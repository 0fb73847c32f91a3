"""Weight standardization: convolutions whose weights have mean 0 and variance 1 for every output channel."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from attrs import field
from torch import Tensor, nn

from trickbox.authoring import Places, Site, State, Surgery, hookimpl, interval, places, trick


def standardized(weight: Tensor, eps: float = 1e-6) -> Tensor:
    """*weight* with mean 0 and variance 1 over all weights of each output channel; *eps* is added to the variance.

    Cost: two passes over the weight. Source: Qiao et al. 2019.

    >>> import torch
    >>> standardized(torch.tensor([[1.0, 3.0], [10.0, 50.0]])).round(decimals=3)
    tensor([[-1.,  1.],
            [-1.,  1.]])
    """
    rows = weight.reshape(1, weight.shape[0], -1)
    return F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=eps).reshape_as(weight)


class _Standardized(nn.modules.conv._ConvNd):
    """What the standardized convolutions have in common."""

    eps: float

    def forward(self, x: Tensor) -> Tensor:
        """The convolution with the standardized weight."""
        return self._conv_forward(x, standardized(self.weight, self.eps), self.bias)

    def fold_into(self, layer: nn.Module) -> bool:
        """Let a plain convolution have the standardized weight for good."""
        with torch.no_grad():
            layer.get_parameter("weight").copy_(standardized(self.weight, self.eps))
        return True


class StandardizedConv1d(_Standardized, nn.Conv1d):
    """A convolution over series that standardizes its weight before each use."""


class StandardizedConv2d(_Standardized, nn.Conv2d):
    """A convolution over images that standardizes its weight before each use."""


class StandardizedConv3d(_Standardized, nn.Conv3d):
    """A convolution over volumes that standardizes its weight before each use."""


KINDS: dict[type, type[_Standardized]] = {
    nn.Conv1d: StandardizedConv1d,
    nn.Conv2d: StandardizedConv2d,
    nn.Conv3d: StandardizedConv3d,
}


def standardized_twin(layer: nn.Module, eps: float) -> nn.Module:
    """A second face of *layer*, whose parameters, hooks and children are its own, that standardizes the weight.

    >>> layer = nn.Conv1d(2, 3, 5)
    >>> twin = standardized_twin(layer, eps=1e-6)
    >>> twin, twin.weight is layer.weight
    (StandardizedConv1d(2, 3, kernel_size=(5,), stride=(1,)), True)
    """
    kind = KINDS[type(layer)]
    twin = kind.__new__(kind)
    vars(twin).update(vars(layer), eps=eps)
    return twin


@trick
class WeightStandardization:
    """Let convolutions use their weights with mean 0 and variance 1 for every output channel: smoother training.

    eps          added to the variance, as in timm
    at, not_at   the convolutions on which it acts instead, and those on which it does not

    It is meant together with group norm, for batches too small for batch norm; the norm that follows sets the scale.
    The weight keeps its key and its values, and is standardized on each use.
    By itself it acts on every convolution but the head, in nets whose residual branches, if any, have convolutions. A
    transposed convolution, one of a class of its own, one whose weight is computed (parametrized), one of a single
    position and one with a single weight a channel are skipped.
    Raises `NoEffectError` where it could act nowhere. Cost: two passes over the weights a forward.
    Source: Qiao et al. 2019.

    >>> import torch, trickbox
    >>> net = nn.Sequential(nn.Conv1d(1, 3, 5), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    >>> trickbox.apply(net, [WeightStandardization()], torch.zeros(4, 1, 8))[0]
    StandardizedConv1d(1, 3, kernel_size=(5,), stride=(1,))
    """

    family: ClassVar = "normalization"
    after: ClassVar = ("transfer",)

    eps: float = field(default=1e-6, validator=interval("(0, inf)"))
    at: Places | None = field(default=None, validator=places())
    not_at: Places | None = field(default=None, validator=places())

    @hookimpl
    def init(self, state: State) -> None:
        """Replace each convolution by its twin, once, however often it is called."""
        surgery = state.surgery
        acted = [site for site in self._sites(surgery) if self._standardize(surgery, site)]
        surgery.require(acted, "convolutions before the head")

    def _sites(self, surgery: Surgery) -> list[Site]:
        anatomy = surgery.anatomy
        default = anatomy.hidden
        if anatomy.joins and not any(join.spatial for join in anatomy.joins):
            surgery.remark("its residual branches have no convolutions")
            default = []
        if not any(isinstance(site.module, nn.modules.conv._ConvNd) for site in anatomy.layers):
            surgery.remark("it has no convolutions")
        default = [site for site in default if isinstance(site.module, nn.modules.conv._ConvNd)]
        return surgery.choose(default, anatomy.layers, self.at, self.not_at)

    def _standardize(self, surgery: Surgery, site: Site) -> bool:
        if isinstance(surgery.model.get_submodule(site.path), _Standardized):
            return True  # at an earlier call
        if (why := objection(site)) is not None:
            surgery.skip(site, why)
            return False
        surgery.convert(site, standardized_twin(site.module, self.eps))
        return True


def objection(site: Site) -> str | None:
    """Why the weight of a layer is not standardized, where it is not."""
    layer, shape = site.module, site.output_shape
    weight = layer._parameters.get("weight")
    if weight is None:
        return "its weight is computed from other parameters (parametrized)"
    if type(layer) not in KINDS:
        return f"it is a {type(layer).__name__}, and only torch's convolutions, not transposed, are standardized"
    if weight[0].numel() == 1:
        return "one weight a channel has no variance"
    return "it has one position, where it is a linear layer" if set(shape[2:]) == {1} else None
