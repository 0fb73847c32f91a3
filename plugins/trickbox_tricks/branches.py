"""Tricks on residual branches: drop whole branches in training, or let them begin small."""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from typing import ClassVar

import torch
from attrs import field
from torch import Tensor, nn

from trickbox.authoring import (
    Branch,
    Draws,
    Places,
    Rank,
    Site,
    State,
    Surgery,
    at_depth,
    by_depth,
    choice,
    flag,
    hookimpl,
    interval,
    is_stochastic_depth,
    places,
    tensors,
    trick,
)

FOLDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
"""Layers whose first axis of weight and bias is that of the features which they put out."""


def drop_rows(x: Tensor, p: float, generator: torch.Generator | None = None) -> Tensor:
    """Zero whole samples (rows of the first axis) with probability *p* in [0, 1) and divide the others by 1 - p.

    Bit-equal to `torchvision.ops.stochastic_depth` in mode ``row`` on the CPU under the same seed. Cost: one draw a
    sample, one product an element. Source: Huang et al. 2016.

    >>> sorted({tuple(row.tolist()) for row in drop_rows(torch.ones(30, 2), 0.5)})
    [(0.0, 0.0), (2.0, 2.0)]
    """
    mask = x.new_empty(x.shape[:1] + (1,) * (x.ndim - 1))
    return x * mask.bernoulli_(1 - p, generator=generator).div_(1 - p)


def shares(blocks: int) -> list[float]:
    """How far along each of so many blocks in a row lies, from 0.0 for the first to 1.0 for the last.

    >>> shares(3), shares(1)
    ([0.0, 0.5, 1.0], [1.0])
    """
    return [n / (blocks - 1) for n in range(blocks)] if blocks > 1 else [1.0]


class RowDrop(nn.modules.dropout._DropoutNd):
    """`drop_rows` whose masks are functions of numbers."""

    def __init__(self, p: float, draws: Draws) -> None:
        super().__init__(p)
        self.draws = draws

    def forward(self, x: Tensor) -> Tensor:
        """Drop in training; in eval mode and at rate 0, *x* itself, and nothing is drawn."""
        if not self.training or self.p == 0:
            return x
        shape = x.shape[:1] + (1,) * (x.ndim - 1)
        return x * self.draws.bernoulli(shape, 1 - self.p, x).div_(1 - self.p)

    def extra_repr(self) -> str:
        """The rate."""
        return f"p={self.p:.3g}"


class Gain(nn.Module):
    """A learned factor of a *shape* that spreads over what it is multiplied with."""

    def __init__(self, shape: tuple[int, ...], init: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full(shape, init))

    def forward(self, x: Tensor) -> Tensor:
        """*x* times the factor."""
        return x * self.weight

    def fold_into(self, layer: nn.Module) -> bool:
        """Scale the weight and the bias of *layer*; False where it is no layer or norm that puts these features out."""
        own = [p for p in (layer._parameters.get(name) for name in ("weight", "bias")) if p is not None]
        if not isinstance(layer, FOLDS) or not own:
            return False
        gain = self.weight.detach().flatten()
        with torch.no_grad():
            for parameter in own:
                parameter.mul_(gain.reshape(-1, *[1] * (parameter.ndim - 1)))
        return True

    def extra_repr(self) -> str:
        """The shape of the factor."""
        return f"{tuple(self.weight.shape)}"


@trick
class StochasticDepth:
    """Skip whole residual branches in training, sample by sample, so that the net learns as shorter ones too.

    p            the rate of the last block, in [0, 1); or, without any `rule`, a function that gives the rate of each
                 block, from 0.0 for the first to 1.0 for the last
    rule         ``linear``: from 0 in the first block to `p` in the last; ``constant``: `p` everywhere
    at, not_at   the branches on which it acts, and those on which it does not: named by their block, by the module that
                 makes what is added, or by the sum, such as ``layers.*:add[1]``

    It acts on what is added, behind everything else in the branch, with one rate for all branches of a block; also on
    the shortcuts that Residual adds. Where the model has a stochastic depth of its own in a branch (DropPath or
    StochasticDepth by name), that one is replaced. What is kept is divided by its share, so that nothing changes in
    eval mode. Raises `NoEffectError` where the model has no residual branches, or none whose first axis is that of the
    samples. Cost: one draw a sample and one product an element of each branch. Source: Huang et al. 2016; the linear
    rule from 0 on, as in timm and torchvision.

    >>> import trickbox
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    >>> trickbox.apply(net, ["residual", StochasticDepth(0.2)], torch.zeros(4, 2))[1].trickbox.stochastic_depth
    RowDrop(p=0.2)
    """

    family: ClassVar = "stochastic depth"
    after: ClassVar = ("transfer", "normalization", "residual", "dropout", "gate")
    off: ClassVar = {"p": 0.0}
    tunes: ClassVar = ("p",)

    p: float | Callable[[float], float] = field(default=0.1, validator=by_depth("[0, 1)"))
    rule: str = field(default="linear", validator=choice("linear", "constant"))
    at: Places | None = field(default=None, validator=places())
    not_at: Places | None = field(default=None, validator=places())

    @hookimpl
    def init(self, state: State) -> None:
        """Attach to every branch, or replace what is there."""
        surgery = state.surgery
        found = _branches(surgery, self.at, self.not_at)
        blocks = list(dict.fromkeys(branch.block for branch in found))
        rates = dict(zip(blocks, map(self._rate, shares(len(blocks))), strict=True))
        acted = [branch for branch in found if _drop(state, branch, rates[branch.block], any(rates.values()))]
        surgery.require([branch.place for branch in acted], "residual branches whose samples it can drop")

    def _rate(self, share: float) -> float:
        """The rate of a block that lies so far along."""
        p = at_depth(self, "p", share)
        return p * share if self.rule == "linear" and not callable(self.p) else p


def _branches(surgery: Surgery, at: Places | None, not_at: Places | None) -> list[Branch]:
    found = surgery.branches(at, not_at)
    if not found and not surgery.branches(None, None):
        joined = "joins by concatenation, and " if surgery.anatomy.concatenations else ""
        surgery.remark(f"it {joined}adds no branch to a skip path")
    surgery.require([branch.place for branch in found], "residual branches")
    return found


def _drop(state: State, branch: Branch, p: float, replace: bool) -> bool:
    """Drop one branch; False, with a note, where its first axis is not that of the samples."""
    surgery = state.surgery
    samples = tuple(next(tensors(surgery.inputs)).shape[:1])
    if branch.shape[:1] != samples:
        surgery.skip(branch.place, f"the first axis of {branch.shape} is not that of the samples, {samples}")
        return False
    own = _own(surgery, branch) if replace else None
    if own is None:
        surgery.insert_in(branch, RowDrop(p, state.draws(branch.place)), Rank.STOCHASTIC_DEPTH)
    elif not isinstance(own.module, RowDrop):  # one for several branches is replaced once
        surgery.convert(own, RowDrop(p, state.draws(own, own.calls)))
    return True


def _own(surgery: Surgery, branch: Branch) -> Site | None:
    """The stochastic depth that the model has between the last layer of a branch and its sum."""
    total = next((site.event.number for site in branch.sites if site.function), 0)
    for event in takewhile(lambda later: later.number < total, surgery.tape.following(branch.end.event)):
        site = surgery.site_of(event)
        if not site.function and is_stochastic_depth(site.module):
            return site
    return None


@trick
class LayerScale:
    """Let residual branches begin small: a learned factor for each feature of what a branch adds.

    init_value   the factor in the beginning; the smaller, the deeper the net: 0.1 up to 18 blocks, 1e-5 up to 24, 1e-6
                 beyond (Touvron et al. 2021)
    at, not_at   the branches on which it acts, and those on which it does not: named by their block, by the module that
                 makes what is added, or by the sum, such as ``layers.*:add[1]``
    shared       one factor for all calls of a block that is called several times, which else get one each

    It acts on what is added, also by the shortcuts that Residual makes around plain layers. Raises `NoEffectError`
    where the model has no residual branches, or none in which the axis of the features is known.
    Cost: one product an element of each branch. Source: Touvron et al. 2021 (CaiT).

    >>> import trickbox
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    >>> trickbox.apply(net, ["residual", LayerScale()], torch.zeros(4, 2))[1].trickbox.layer_scale
    Gain((3,))
    """

    family: ClassVar = "gate"
    after: ClassVar = ("transfer", "normalization", "residual", "dropout")
    tunes: ClassVar = ("init_value",)

    init_value: float = field(default=1e-4, validator=interval("(0, inf)"))
    at: Places | None = field(default=None, validator=places())
    not_at: Places | None = field(default=None, validator=places())
    shared: bool = field(default=False, validator=flag())

    @hookimpl
    def init(self, state: State) -> None:
        """Attach to every branch."""
        surgery = state.surgery
        found = _branches(surgery, self.at, self.not_at)
        acted = [branch for branch in found if _scale(surgery, branch, self.init_value, self.shared)]
        surgery.require([branch.place for branch in acted], "residual branches whose features lie on a known axis")


def _scale(surgery: Surgery, branch: Branch, init: float, shared: bool) -> bool:
    """Scale the features of one branch; False, with a note, where they cannot be told."""
    axis = branch.channels
    if axis is None:
        surgery.skip(branch.place, f"which axis of {branch.shape} holds the features is unknown")
        return False
    shape = (branch.shape[axis],) + (1,) * (len(branch.shape) - 1 - axis)
    surgery.insert_in(branch, _like(branch, Gain(shape, init)), Rank.GATE, shared)
    return True


def _like(branch: Branch, gain: Gain) -> Gain:
    return gain.to(next(branch.end.module.parameters()).dtype)


@trick
class ReZero:
    """Let residual branches begin at nothing: one learned factor for what a branch adds, zero in the beginning.

    at, not_at   the branches on which it acts, and those on which it does not: named by their block, by the module that
                 makes what is added, or by the sum, such as ``layers.*:add[1]``
    shared       one factor for all calls of a block that is called several times, which else get one each

    The net begins as its trunk alone, however deep it is. It acts on what is added, also by the shortcuts that
    Residual makes around plain layers: then the layer is the branch. Raises `NoEffectError` where the model has no
    residual branches. Cost: one product an element of each branch. Source: Bachlechner et al. 2020; SkipInit, De &
    Smith 2020.

    >>> import trickbox
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    >>> trickbox.apply(net, ["residual", ReZero()], torch.zeros(4, 2))[1].trickbox.re_zero.weight
    Parameter containing:
    tensor(0., requires_grad=True)
    """

    family: ClassVar = "gate"
    after: ClassVar = ("transfer", "normalization", "residual", "dropout")
    conflicts: ClassVar = ("layer_scale",)

    at: Places | None = field(default=None, validator=places())
    not_at: Places | None = field(default=None, validator=places())
    shared: bool = field(default=False, validator=flag())

    @hookimpl
    def init(self, state: State) -> None:
        """Attach to every branch."""
        for branch in _branches(state.surgery, self.at, self.not_at):
            state.surgery.insert_in(branch, _like(branch, Gain((), 0.0)), Rank.GATE, self.shared)
