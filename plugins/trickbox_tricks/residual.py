"""Residual connections: shortcuts around the layers of a plain chain, added in front of the activation."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, takewhile
from typing import ClassVar

import torch.nn.functional as F
from attrs import field
from torch import Tensor, nn

from trickbox.authoring import (
    CONVOLUTIONS,
    Places,
    Site,
    State,
    Surgery,
    choice,
    hookimpl,
    integer,
    norm_after,
    places,
    trick,
)


def pool_shortcut(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Bring *x* (N, C, ...) to *shape* (C', ...), C' >= C, without parameters: mean over windows, then zero channels.

    Shortcut A of He et al. 2015, for any number of axes and any lengths. Cost: one pass over *x*.

    >>> import torch
    >>> pool_shortcut(torch.tensor([[[1.0, 3.0, 5.0, 7.0]]]), (2, 2))
    tensor([[[2., 6.],
             [0., 0.]]])
    """
    x = adaptive_mean(x, shape[1:])
    return F.pad(x, (0, 0) * (x.ndim - 2) + (0, shape[0] - x.shape[1]))


def adaptive_mean(x: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """The means of *x* (N, C, ...) over windows, so that as many positions remain as *lengths* says.

    >>> import torch
    >>> adaptive_mean(torch.zeros(2, 3, 7, 9), (4, 5)).shape
    torch.Size([2, 3, 4, 5])
    """
    pools = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
    return pools[len(lengths)](x, lengths)  # type: ignore[arg-type]


class PoolShortcut(nn.Module):
    """`pool_shortcut` to a fixed shape (C', ...)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        """The means over windows, and zero channels."""
        return pool_shortcut(x, self.shape)

    def extra_repr(self) -> str:
        """The shape without the batch."""
        return str(self.shape)


class Projection(nn.Module):
    """A 1x1 convolution without bias behind `adaptive_mean`, from `channels` to a fixed shape (C', ...)."""

    def __init__(self, channels: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.lengths = shape[1:]
        convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(self.lengths)]
        self.project = convolution(channels, shape[0], kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The means over windows, and their mixture at each position."""
        return self.project(adaptive_mean(x, self.lengths))  # type: ignore[no-any-return]


def shortcut_for(start: tuple[int, ...], last: Site, kind: str) -> nn.Module | str:
    """The shortcut from a tensor of shape *start* to the output of *last*, or the reason why there is none.

    The identity where the shapes are equal; else of the *kind* ``pool`` or ``projection``.
    """
    end = last.output_shape
    dense = not isinstance(last.module, CONVOLUTIONS)
    if start == end:
        return nn.Identity()
    if dense and any(p.ndim > 2 for p in last.module.parameters(recurse=False)):
        return f"{start} in and {end} out, and which axes a {type(last.module).__name__} mixes is unknown"
    if not dense and len(end) != len(last.module.kernel_size) + 2:  # type: ignore[arg-type]
        return f"an output of shape {end} has no batch axis"
    if kind == "projection":
        return nn.Linear(start[-1], end[-1], bias=False) if dense else Projection(start[1], end[1:])
    if not dense and end[1] >= start[1]:
        return PoolShortcut(end[1:])
    return f"{start} in and {end} out; shortcut='projection' can act here"


@trick
class Residual:
    """Add the input of a layer to its output, so that the layer need only learn what is missing.

    layers     how many consecutive convolutions, or linear layers, one shortcut spans
    order      ``post``: from the activated input to the output, in front of the activation, as in ResNet v1.
               ``pre``: from the output of the layer before, behind its norm, so that no activation lies on the way of
               the shortcuts through the net, as in ResNet v2 (He et al. 2016)
    shortcut   ``pool``: no parameters; means over windows to the output's length, zeros for new channels; where
               channels get fewer, or the features of a linear layer change, there is none.
               ``projection``: a 1x1 convolution behind the means, or a linear layer, without bias.
               Where the shapes are equal, both are the identity
    at, not_at the layers that may be spanned, and those that may not; of any other module that `at` names and that
               puts out the shape that goes in, such as a block, the whole gets one shortcut around it

    A model that has residual connections of its own gets none but `at` places that the user names. The head, the last
    weight layer, is never spanned, and neither is the first layer, but for ``projection`` with
    `layers` > 1. With a norm behind the last layer of a segment, the shortcut joins behind the norm. Layers that are no
    plain chain, whose input the model adds itself or changes in place are skipped. Shapes are strict: an input of
    another length than in the beginning is an error where lengths change, never a broadcast.
    Raises `NoEffectError` where no shortcut fits. Cost: one sum, and the shortcut itself. Source: He et al. 2015.

    >>> import torch, trickbox
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> trickbox.apply(net, [Residual()], torch.zeros(4, 2))[2].trickbox.residual
    Identity()
    """

    family: ClassVar = "residual"
    after: ClassVar = ("transfer", "normalization")
    tunes: ClassVar = ("layers", "shortcut", "order")

    layers: int = field(default=1, validator=integer(1))
    shortcut: str = field(default="pool", validator=choice("pool", "projection"))
    order: str = field(default="post", validator=choice("post", "pre"))
    at: Places | None = field(default=None, validator=places())
    not_at: Places | None = field(default=None, validator=places())

    @hookimpl
    def init(self, state: State) -> None:
        """Attach a shortcut to every segment."""
        surgery = state.surgery
        acted = [segment for segment in self._segments(surgery) if self._act(state, segment)]
        surgery.require(
            [segment[0] for segment in acted], f"chains of {self.layers} weight layers with a shortcut that fits"
        )

    def _layers(self, surgery: Surgery) -> list[Site]:
        anatomy = surgery.anatomy
        begin = 0 if self.layers > 1 and self.shortcut == "projection" else 1
        default = anatomy.hidden[begin:]
        if anatomy.joins:
            surgery.remark(f"it has residual connections already, {_named(anatomy.blocks)}")
            default = []
        elif anatomy.concatenations:
            surgery.remark("it has skips of its own already, by concatenation")
            default = []
        if anatomy.recurrent:
            surgery.remark("its recurrent layers are no chain that a shortcut fits")
        blocks = [site for site in surgery.sites(nn.Module) if _is_block(surgery, site)]
        return surgery.choose(default, [*anatomy.layers, *blocks], self.at, self.not_at)

    def _segments(self, surgery: Surgery) -> Iterator[list[Site]]:
        sites = self._layers(surgery)
        yield from ([site] for site in sites if _is_block(surgery, site))
        for run in runs([site for site in sites if not _is_block(surgery, site)]):
            whole = len(run) - len(run) % self.layers
            for site in run[whole:]:
                surgery.skip(site, f"no {self.layers} consecutive layers are left")
            yield from (run[i : i + self.layers] for i in range(0, whole, self.layers))

    def _act(self, state: State, segment: list[Site]) -> bool:
        surgery, first, last = state.surgery, segment[0], segment[-1]
        before = _before(surgery, first) if self.order == "pre" else None
        start = first.input_shape if before is None else before.output_shape
        # Parameters of a shortcut belong to the layer that it joins.
        with state.streams.forked("init", f"{last.label}.trickbox.residual"):
            why_not = objection(surgery, segment if before is None else [before, *segment])
            made = why_not or shortcut_for(start, last, self.shortcut)
        if isinstance(made, str):
            surgery.skip(first, made)
            return False
        made.to(next(last.module.parameters()).dtype)
        if before is None:
            surgery.shortcut(first, _with_norm(surgery, last), made)
        else:
            surgery.shortcut(_with_norm(surgery, before), _with_norm(surgery, last), made, of="output")
        return True


def _is_block(surgery: Surgery, site: Site) -> bool:
    """Whether a shortcut fits around a whole module that is no layer."""
    fits = bool(site.path) and site.input_shape == site.output_shape and len(site.event.outputs) == 1
    return fits and surgery.tape.holds_others(site.event)


def _before(surgery: Surgery, first: Site) -> Site | None:
    """The weight layer that runs before *first*, or None."""
    layers = surgery.anatomy.layers
    return layers[layers.index(first) - 1] if first in layers[1:] else None


def _with_norm(surgery: Surgery, layer: Site) -> Site:
    """The norm of the model's own that follows a layer, or the layer itself."""
    norm = norm_after(surgery.model, surgery.tape, layer.event)
    return layer if norm is None or norm.attached else norm


def runs(layers: list[Site]) -> list[list[Site]]:
    """*layers* cut where convolutions of other dimensions, or linear layers, begin."""
    found: list[list[Site]] = []
    for site in layers:
        if found and _dimensions(found[-1][-1]) == _dimensions(site):
            found[-1].append(site)
        else:
            found.append([site])
    return found


def objection(surgery: Surgery, segment: list[Site]) -> str | None:
    """Why no shortcut may span *segment*: no chain, an input changed in place, or a shortcut of the model's own."""
    tape, events = surgery.tape, [site.event for site in segment]
    weights = [site.event for site in surgery.anatomy.layers]
    for event, following in pairwise(events):
        if next((e for e in tape.following(event) if e in weights), None) != following:
            return f"{following.path} does not come next in a plain chain"
    start = events[0].inputs[0]
    between = tape.events[tape.events.index(events[0]) + 1 : tape.events.index(events[-1])]
    if any(start in event.outputs for event in between):
        return "its input is changed in place before the segment ends"
    joined = takewhile(lambda e: e not in weights, tape.following(events[-1]))
    if any(start in event.inputs for event in joined if not tape.holds_others(event)):
        return "the model joins the input to the output itself"
    return None


def _named(blocks: list[str]) -> str:
    """Where blocks are, in a few words."""
    first = blocks[0] or "the model itself"
    return f"at {first}" if len(blocks) == 1 else f"in {len(blocks)} blocks from {first} on"


def _dimensions(site: Site) -> int:
    return len(site.module.kernel_size) if isinstance(site.module, CONVOLUTIONS) else 0
