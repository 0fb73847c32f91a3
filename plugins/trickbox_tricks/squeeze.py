"""Squeeze and excitation: channels weighed by a function of the means of all channels."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from attrs import field
from torch import Tensor, nn

from trickbox.authoring import (
    CONVOLUTIONS,
    DROPOUTS,
    Branch,
    Places,
    Rank,
    Site,
    State,
    Surgery,
    behind_norm,
    flag,
    hookimpl,
    integer,
    is_stochastic_depth,
    places,
    trick,
)


class SqueezeExcitation(nn.Module):
    """Multiply each channel of (N, C, ...) by a factor in (0, 1), worked out from the means over all positions.

    Bit-equal to `torchvision.ops.SqueezeExcitation` for images. Cost: one mean and one product an element.

    >>> SqueezeExcitation(8, reduced=2, axes=1)(torch.ones(4, 8, 5)).shape
    torch.Size([4, 8, 5])
    """

    def __init__(self, channels: int, reduced: int, axes: int) -> None:
        super().__init__()
        convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
        self.fc1 = convolution(channels, reduced, 1)
        self.fc2 = convolution(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """*x* times its factors."""
        pool = {3: F.adaptive_avg_pool1d, 4: F.adaptive_avg_pool2d, 5: F.adaptive_avg_pool3d}[x.ndim]
        return torch.sigmoid(self.fc2(F.relu(self.fc1(pool(x, 1))))) * x

    def extra_repr(self) -> str:
        """The numbers of channels."""
        return f"{self.fc1.in_channels}, {self.fc1.out_channels}"


@trick
class SqueezeExcite:
    """Let each residual block weigh its channels by what it sees in the whole series or image.

    reduction    how many channels share one hidden unit of the gate
    at, not_at   the branches on which it acts, and those on which it does not, named by their block, by the module that
                 makes what is added, or by the sum; in a model without branches, the convolutions behind which it acts
    shared       one gate for all calls of a module that is called several times, which else get one each

    It acts on what a residual branch with convolutions adds, behind its last norm and in front of a dropout. In a plain
    net it acts behind the last convolution of each stage, which ends where the number of positions changes, and behind
    its norm, in front of the activation; not behind the last stage where the head's pooling follows, which leaves one
    mean a channel in any case. The factors come from a sigmoid and are about 1/2 at first.
    A model with gates of its own in its blocks gets none, nor does one that joins maps by concatenation, except where
    `at` says so. What is not (N, C, ...) with several positions is skipped.
    Raises `NoEffectError` where it could act nowhere. Cost: one mean and one product an element, and 2 C^2 / reduction
    parameters a place. Source: Hu et al. 2018; for series Karim et al. 2019.

    >>> import trickbox
    >>> net = nn.Sequential(nn.Conv1d(1, 32, 5), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2))
    >>> trickbox.apply(net, [SqueezeExcite()], torch.zeros(4, 1, 8))[0].trickbox.squeeze_excite.fc1
    Conv1d(32, 2, kernel_size=(1,), stride=(1,))
    """

    family: ClassVar = "gate"
    after: ClassVar = ("transfer", "normalization", "residual")
    tunes: ClassVar = ("reduction",)

    reduction: int = field(default=16, validator=integer(1))
    at: Places | None = field(default=None, validator=places())
    not_at: Places | None = field(default=None, validator=places())
    shared: bool = field(default=False, validator=flag())

    @hookimpl
    def init(self, state: State) -> None:
        """Attach to every branch, or to every stage."""
        surgery = state.surgery
        if surgery.branches(None, None):
            acted = [branch.place for branch in self._branches(surgery) if self._on_branch(state, branch)]
        else:
            acted = [site for site in self._stages(surgery) if self._behind(state, site)]
        surgery.require(acted, "residual branches with convolutions, or stages of convolutions")

    def _branches(self, surgery: Surgery) -> list[Branch]:
        found = surgery.branches(self.at, self.not_at)
        gates = [gate for gate in surgery.anatomy.gates if surgery.anatomy.block_of(gate) is not None]
        if gates and self.at is None:
            surgery.remark(f"its blocks have gates of their own already, such as {gates[0].label}")
            return []
        if found and self.at is None and not any(branch.spatial for branch in found):
            surgery.remark("its residual branches have no convolutions")
        return [branch for branch in found if branch.spatial or self.at is not None]

    def _stages(self, surgery: Surgery) -> list[Site]:
        anatomy = surgery.anatomy
        convolutions = [site for site in anatomy.hidden if isinstance(site.module, CONVOLUTIONS)]
        default = stage_ends(surgery, convolutions)
        if not convolutions:
            surgery.remark("it has no convolutions")
        elif anatomy.gates and self.at is None:
            surgery.remark(f"it has gates of its own already, such as {anatomy.gates[0].label}")
            default = []
        elif anatomy.concatenations and self.at is None:
            surgery.remark("it joins maps by concatenation, so that a convolution ends no stage")
            default = []
        return surgery.choose(default, anatomy.layers, self.at, self.not_at)

    def _on_branch(self, state: State, branch: Branch) -> bool:
        surgery, place = state.surgery, branch.place
        made = self._made(state, place, branch.shape, branch.channels)
        if made is None:
            return False
        if isinstance(place.module, DROPOUTS) or is_stochastic_depth(place.module):
            # Behind it the means of training would not be those of eval.
            surgery.insert_before(place, made, Rank.SQUEEZE, shared=self.shared)
        else:
            surgery.insert_in(branch, made, Rank.SQUEEZE, self.shared)
        return True

    def _behind(self, state: State, site: Site) -> bool:
        place = behind_norm(state.surgery.model, state.surgery.tape, site)
        made = self._made(state, place, place.output_shape, 1 if isinstance(site.module, CONVOLUTIONS) else None)
        if made is not None:
            state.surgery.insert(place, made, Rank.SQUEEZE, self.shared)
        return made is not None

    def _made(self, state: State, site: Site, shape: tuple[int, ...], channels: int | None) -> nn.Module | None:
        """The gate for what is made at a site; None, with a note, where none fits."""
        if channels != 1 or not 3 <= len(shape) <= 5 or math.prod(shape[2:]) == 1:
            state.surgery.skip(site, f"{shape} has no positions behind its channels, over which means could be taken")
            return None
        # Parameters of a gate belong to the place where it acts.
        with state.streams.forked("init", f"{site.label}.trickbox.squeeze_excite"):
            made = SqueezeExcitation(shape[1], max(1, shape[1] // self.reduction), len(shape) - 2)
        return made.to(next(state.model.parameters()).dtype)


def stage_ends(surgery: Surgery, layers: list[Site]) -> list[Site]:
    """Those of *layers* behind which the number of positions changes; the last too, unless its means are the features.

    With a note for the last one where they are.
    """
    ends = [one for one, other in pairwise(layers) if one.output_shape[2:] != other.output_shape[2:]]
    for last in layers[-1:]:
        maps = surgery.anatomy.maps
        later = next((e for e in surgery.tape.following(last.event) if e.number in maps), None)
        if later is not None and math.prod(later.input_shapes[0][1:]) == last.output_shape[1]:
            surgery.skip(last, "the head's pooling follows, which leaves one mean a channel in any case")
        else:
            ends.append(last)
    return ends
