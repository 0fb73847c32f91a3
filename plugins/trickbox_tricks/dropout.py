"""Dropout: silence random elements or whole channels in training, at chosen places of a model that has no dropout."""

from __future__ import annotations

from typing import ClassVar

import torch
from attrs import field, validators
from torch import Tensor, nn

from trickbox.authoring import (
    CONVOLUTIONS,
    POOLS,
    Draws,
    Event,
    Places,
    Rank,
    Site,
    State,
    Surgery,
    choice,
    hookimpl,
    interval,
    norm_after,
    places,
    trick,
)


def element_dropout(x: Tensor, p: float, generator: torch.Generator | None = None) -> Tensor:
    """Zero each element with probability *p* in [0, 1) and divide the others by 1 - p, so that the mean stays.

    Bit-equal to `torch.nn.functional.dropout` on the CPU under the same seed. Cost: one draw and one product an
    element. Source: Srivastava et al. 2014.

    >>> sorted(set(element_dropout(torch.ones(8, 8), 0.2).flatten().tolist()))
    [0.0, 1.25]
    """
    return x * torch.empty_like(x).bernoulli_(1 - p, generator=generator).div_(1 - p)


def channel_dropout(x: Tensor, p: float, generator: torch.Generator | None = None) -> Tensor:
    """Zero whole channels of *x* (N, C, ...) with probability *p* in [0, 1) and divide the others by 1 - p.

    For series and images, whose neighbors are too alike for single zeros to hide anything. Bit-equal to
    `torch.nn.functional.dropout1d`, `dropout2d` and `dropout3d` on the CPU under the same seed. Cost: one draw a
    channel, one product an element. Source: Tompson et al. 2015.

    >>> channels = channel_dropout(torch.ones(1, 30, 4), 0.5)[0]
    >>> sorted({tuple(channel.tolist()) for channel in channels})
    [(0.0, 0.0, 0.0, 0.0), (2.0, 2.0, 2.0, 2.0)]
    """
    mask = x.new_empty(x.shape[:2] + (1,) * (x.ndim - 2))
    return x * mask.bernoulli_(1 - p, generator=generator).div_(1 - p)


class StreamDropout(nn.modules.dropout._DropoutNd):
    """A dropout layer whose masks are functions of numbers; *kind* is ``element`` or ``channel``."""

    def __init__(self, p: float, kind: str, draws: Draws) -> None:
        super().__init__(p)
        self.kind = kind
        self.draws = draws

    def forward(self, x: Tensor) -> Tensor:
        """Drop in training; in eval mode and at rate 0, *x* itself, and nothing is drawn."""
        if not self.training or self.p == 0:
            return x
        shape = x.shape if self.kind == "element" else x.shape[:2] + (1,) * (x.ndim - 2)
        return x * self.draws.bernoulli(shape, 1 - self.p, x).div_(1 - self.p)

    def extra_repr(self) -> str:
        """The rate and the kind."""
        return f"p={self.p}, {self.kind}"


ADJUSTABLE = (StreamDropout, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


@trick
class Dropout:
    """Drop random activations in training, so that no feature relies on one other feature.

    p            the rate, in [0, 1); `conv` and `dense` give convolutions (and pools) and other layers their own
    kind         ``element``, or ``channel``: whole channels of what convolutions and pools put out
    where        ``auto``: what suits the model, see below.
                 ``after_layer``: on the output of every weight layer but the head, which makes the outputs; on that of
                 the norm that follows it, since a norm behind a dropout learns the wrong variance (Li 2018).
                 ``after_pool``: on the output of every pool module, and of every dense layer but the head.
                 ``before_head``: on the input of the head
    at, not_at   the modules on whose output it acts instead of all that, and those on whose it does not

    By itself it acts where the field puts it. In a model with residual branches of dense layers, such as a transformer:
    on the end of every branch, never on q, k and v or on the skip path (Vaswani et al. 2017). With branches of
    convolutions: before the head alone (He et al. 2016). In a model that brings earlier maps back by concatenation, as
    a U-Net: on the layers of the lowest resolution (Ronneberger et al. 2015). In all others: after every layer.
    Embeddings of the inputs are layers too.

    A dropout acts on the layer's output, in front of the activation; for ReLU and its kin that equals a dropout behind
    it, for GELU or tanh it does not. Where the model has a dropout module already, between the place and the next
    weight layer, that module is replaced by one of this rate and kind, and none is added; a rate of 0 leaves it.
    Raises `ConfigError` for a place that is not there, `NoEffectError` without places, or when at each is a dropout
    that cannot be changed, as functional and alpha dropouts cannot.
    Cost: one draw and one product an element. Source: Srivastava et al. 2014; Tompson et al. 2015 for channels.

    >>> import trickbox
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> trickbox.apply(net, [Dropout(0.3)], torch.zeros(4, 2))[0].trickbox.dropout
    StreamDropout(p=0.3, element)
    """

    family: ClassVar = "dropout"
    after: ClassVar = ("transfer", "normalization", "residual")
    off: ClassVar = {"p": 0.0}
    tunes: ClassVar = ("p",)

    p: float = field(default=0.1, validator=interval("[0, 1)"))
    conv: float | None = field(default=None, validator=validators.optional(interval("[0, 1)")))
    dense: float | None = field(default=None, validator=validators.optional(interval("[0, 1)")))
    kind: str = field(default="element", validator=choice("element", "channel"))
    where: str = field(default="auto", validator=choice("auto", "after_layer", "after_pool", "before_head"))
    at: Places | None = field(default=None, validator=places())
    not_at: Places | None = field(default=None, validator=places())

    @hookimpl
    def init(self, state: State) -> None:
        """Attach, or adjust what is there."""
        surgery = state.surgery
        before, after = self._sites(surgery)
        planned = [(site, site, dropout_before(surgery, site.event)) for site in before]
        planned += [(site, _behind_norm(surgery, site), dropout_after(surgery, site.event)) for site in after]
        acted = []
        for site, place, existing in planned:
            calls = 1 if existing is None else surgery.tape.calls(existing.path)
            new = StreamDropout(self._rate(site), self._kind(site), state.draws(site, calls))
            if existing is None:
                (surgery.insert_before if site in before else surgery.insert)(place, new, Rank.DROPOUT)
            elif new.p > 0 and not _adjust(surgery, site, existing, new):
                continue
            acted.append(site)
        surgery.require(acted, "a place whose dropout it may set")

    def _sites(self, surgery: Surgery) -> tuple[list[Site], list[Site]]:
        """The sites on whose input, and those on whose output it acts."""
        modules = surgery.sites(nn.Module)
        if self.at is not None:
            return [], surgery.choose([], modules, self.at, self.not_at)
        before, after = _suitable(surgery) if self.where == "auto" else self._named(surgery)
        return tuple(surgery.choose(sites, modules, None, self.not_at) for sites in (before, after))  # type: ignore[return-value]

    def _named(self, surgery: Surgery) -> tuple[list[Site], list[Site]]:
        head = surgery.head()
        if self.where == "before_head":
            return [head], []
        if self.where == "after_layer":
            return [], surgery.require(_layers(surgery), "weight layers before the head")
        functional = sorted({e.name for e in surgery.tape.events if not e.is_module and "pool" in e.name})
        hint = f" ({', '.join(functional)} is called as a function; use where='after_layer')" if functional else ""
        pools = surgery.require(surgery.sites(*POOLS), f"pool modules{hint}")
        return [], [*pools, *(site for site in _layers(surgery) if not _is_spatial(site))]

    def _rate(self, site: Site) -> float:
        own = self.conv if _is_spatial(site) else self.dense
        return self.p if own is None else own

    def _kind(self, site: Site) -> str:
        return self.kind if _is_spatial(site) else "element"


def _suitable(surgery: Surgery) -> tuple[list[Site], list[Site]]:
    """The sites on whose input, and those on whose output a dropout suits this model."""
    anatomy = surgery.anatomy
    if anatomy.joins:
        surgery.remark(
            "it has residual branches: those of dense layers at their ends, those of convolutions not at all"
        )
        ends = [end for join in anatomy.joins if not join.spatial for end in join.ends]
        spatial = any(join.spatial for join in anatomy.joins)
        starts = anatomy.embeddings or ([] if spatial else anatomy.stem[-1:])
        return [surgery.head()] if spatial else [], [*starts, *ends]
    if anatomy.bottleneck:
        surgery.remark("it brings earlier maps back by concatenation: only at the lowest resolution")
        return [], anatomy.bottleneck
    return [], surgery.require(_layers(surgery), "weight layers before the head")


def _layers(surgery: Surgery) -> list[Site]:
    """All that makes features: weight layers, embeddings and recurrent layers, in the order of execution."""
    anatomy = surgery.anatomy
    layers = [*anatomy.embeddings, *anatomy.recurrent, *anatomy.hidden]
    return sorted(layers, key=lambda site: site.event.number)


def _is_spatial(site: Site) -> bool:
    return isinstance(site.module, (*CONVOLUTIONS, *POOLS))


def _behind_norm(surgery: Surgery, site: Site) -> Site:
    """The norm that follows *site*, unless something else uses its output too, such as the skip around a branch."""
    norm = norm_after(surgery.model, surgery.tape, site.event)
    follows = norm is not None and not norm.attached and len(surgery.tape.users(site.event)) == 1
    return norm if norm is not None and follows else site


def dropout_after(surgery: Surgery, event: Event) -> Event | None:
    """The first dropout, a module or a function, between *event* and the next weight layer."""
    return next((e for e in _until_weights(surgery, event) if "dropout" in e.name.lower()), None)


def dropout_before(surgery: Surgery, event: Event) -> Event | None:
    """The dropout, a module or a function, that nothing but operations on its output alone lies between and *event*."""
    joins = {join.event.number for join in surgery.anatomy.joins}
    for dropout in (e for e in surgery.tape.events if "dropout" in e.name.lower()):
        way = [later.number for later in _until_weights(surgery, dropout)]
        if way[-1:] == [event.number] and joins.isdisjoint(way):
            return dropout
    return None


def _until_weights(surgery: Surgery, event: Event) -> list[Event]:
    """The events after *event*, up to and including the next call that maps features by weights."""
    found = []
    for later in surgery.tape.following(event):
        found.append(later)
        if later.number in surgery.anatomy.maps:
            break
    return found


def _adjust(surgery: Surgery, site: Site, existing: Event, new: StreamDropout) -> bool:
    """Put *new* in the place of a dropout that the model has; False, with a note, where that cannot be done."""
    place = surgery.site_of(existing) if existing.is_module else None
    if place is None or not isinstance(place.module, ADJUSTABLE):
        surgery.skip(site, f"a {existing.name} follows, which only the model's own code can change")
        return False
    if isinstance(place.module, StreamDropout) and place.module.draws.clock is new.draws.clock:
        if place.module.p != new.p:
            surgery.skip(site, f"its dropout {place.path} serves another layer too, with rate {place.module.p}")
        return place.module.p == new.p
    surgery.convert(place, new)
    return True
