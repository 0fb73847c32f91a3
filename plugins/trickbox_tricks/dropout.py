"""Dropout: silence random elements or whole channels in training, at chosen places of a model that has no dropout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
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
    at_depth,
    attend,
    attend_with_heads,
    attentions,
    behind_norm,
    by_depth,
    choice,
    hookimpl,
    interval,
    places,
    side,
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
    """A dropout layer whose masks are functions of numbers; *kind* is ``element``, ``channel`` or ``locked``.

    Locked masks stay the same over the time of a sequence, whose axis is *time* (Gal & Ghahramani 2016).
    """

    def __init__(self, p: float, kind: str, draws: Draws, time: int = 1) -> None:
        super().__init__(p)
        self.kind = kind
        self.draws = draws
        self.time = time

    def forward(self, x: Tensor) -> Tensor:
        """Drop in training; in eval mode and at rate 0, *x* itself, and nothing is drawn."""
        return self.drop(x, mask_shape(x.shape, self.kind, self.time)) if self.drops() else x

    def drops(self) -> bool:
        """Whether it does anything now."""
        return self.training and self.p > 0

    def drop(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """*x* under a new mask of *shape*."""
        return x * self.draws.bernoulli(shape, 1 - self.p, x).div_(1 - self.p)

    def extra_repr(self) -> str:
        """The rate and the kind."""
        return f"p={self.p}, {self.kind}"


def mask_shape(shape: Sequence[int], kind: str, time: int) -> Sequence[int]:
    """The shape of a mask: one value for each element, for each channel, or for each element but over *time*.

    >>> [mask_shape((4, 5, 6), kind, time=1) for kind in ("element", "channel", "locked")]
    [(4, 5, 6), (4, 5, 1), (4, 1, 6)]
    """
    if kind == "element":
        return shape
    if kind == "channel":
        return (*shape[:2], *[1] * (len(shape) - 2))
    return (*shape[:time], 1, *shape[time + 1 :])


class FunctionDropout(StreamDropout):
    """Instead of a function such as ``F.dropout``, whose own rate no longer counts."""

    def forward(self, function: Callable[..., Tensor], x: Tensor, *rest: Any, **settings: Any) -> Tensor:  # type: ignore[override]
        """*x*, in training with elements dropped."""
        return super().forward(x)


class AttentionDropout(StreamDropout):
    """Instead of a function that makes the probabilities of an attention inside: the same, with these dropped."""

    def forward(self, function: Callable[..., Any], *args: Any, **settings: Any) -> Any:  # type: ignore[override]
        """What *function* gives; in training worked out step by step."""
        if not self.drops():
            return function(*args, **settings)
        if function is F.scaled_dot_product_attention:
            return attend(*args, probabilities=super().forward, **settings)
        # Where another trick is at work inside, it takes the place of torch's function.
        inside = attend_with_heads if function is F.multi_head_attention_forward else function
        return inside(*args, probabilities=super().forward, **settings)


class LayersDropout(StreamDropout):
    """Instead of the function of a recurrent layer: its layers one by one, with locked masks between them."""

    def forward(self, function: Callable[..., Any], x: Tensor, *rest: Any) -> Any:  # type: ignore[override]
        """The sequence and the last states, as *function* gives them."""
        if not self.drops():
            return function(x, *rest)
        packed = not isinstance(rest[2], bool)
        sizes, (state, weights, bias, layers, _, training, both, *tail) = rest[: int(packed)], rest[int(packed) :]
        several, directions, states, ends = len(weights) // layers, 2 if both else 1, _parts(state), []
        for layer in range(layers):
            if layer:
                x = self._between(x, *sizes, *tail)
            begin = [part[layer * directions : (layer + 1) * directions] for part in states]
            own = begin[0] if isinstance(state, Tensor) else begin
            weight = weights[layer * several : (layer + 1) * several]
            x, *end = function(x, *sizes, own, weight, bias, 1, 0.0, training, both, *tail)
            ends.append(end)
        return (x, *map(torch.cat, zip(*ends, strict=True)))

    def _between(self, x: Tensor, how: Tensor | bool) -> Tensor:
        """A sequence with a locked mask: batch first, time first, or packed with so many samples at each time."""
        if isinstance(how, bool):
            return self.drop(x, mask_shape(x.shape, "locked", int(how)))
        mask = self.drop(x.new_ones(int(how[0]), x.shape[1]), (int(how[0]), x.shape[1]))
        return x * torch.cat([mask[:samples] for samples in how.tolist()])


def _parts(state: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return (state,) if isinstance(state, Tensor) else state


ADJUSTABLE = (StreamDropout, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
FUNCTIONS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout")
PLACES = ("auto", "after_layer", "after_pool", "before_head", "attention")
INSTEAD: dict[str, type[StreamDropout]] = {
    **dict.fromkeys(FUNCTIONS, FunctionDropout),
    **dict.fromkeys(("scaled_dot_product_attention", "multi_head_attention_forward"), AttentionDropout),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), LayersDropout),
}
"""Functions in whose place a dropout does the work, because what it drops is made inside."""


@trick
class Dropout:
    """Drop random activations in training, so that no feature relies on one other feature.

    p            the rate, in [0, 1), or a function that gives one for a depth, from 0.0 for the stem to 1.0 for the
                 head; `conv` and `dense` give convolutions (and pools) and other layers their own
    kind         ``element``, or ``channel``: whole channels of what convolutions and pools put out
    where        ``auto``: what suits the model, see below.
                 ``after_layer``: on the output of every weight layer but the head, which makes the outputs; on that of
                 the norm that follows it, since a norm behind a dropout learns the wrong variance (Li 2018).
                 ``after_pool``: on the output of every pool module, and of every dense layer but the head.
                 ``before_head``: on the input of the head.
                 ``attention``: on the probabilities of every attention
    at, not_at   the modules and functions on whose output it acts instead of all that, and those on whose it does not.
                 Of a function that makes the probabilities of an attention inside, it acts on these; of the function of
                 a recurrent layer, such as ``rnn:lstm``, between the layers
    side         ``input``: on the input of what `at` names

    By itself it acts where the field puts it. In a model with residual branches of dense layers, such as a transformer:
    on the end of every branch, never on q, k and v or on the skip path (Vaswani et al. 2017). With branches of
    convolutions: before the head alone (He et al. 2016). In a model that brings earlier maps back by concatenation, as
    a U-Net: on the layers of the lowest resolution (Ronneberger et al. 2015). In all others: after every layer.
    Embeddings of the inputs are layers too, and so are recurrent ones, inside which it acts between their layers; their
    masks stay the same over time (Gal & Ghahramani 2016).

    A dropout acts on the layer's output, in front of the activation; for ReLU and its kin that equals a dropout behind
    it, for GELU or tanh it does not. Where the model has a dropout module already, between the place and the next
    weight layer, that module or function is replaced by one of this rate and kind, and none is added; a rate of 0
    leaves it. Raises `ConfigError` for a place that is not there, `NoEffectError` without places, or when at each is a
    dropout that cannot be changed, as alpha dropouts cannot.
    Cost: one draw and one product an element. Attention whose probabilities are dropped holds them in memory in
    training, as fused kernels do not; recurrent layers run one by one there.
    Source: Srivastava et al. 2014; Tompson et al. 2015 for channels.

    >>> import trickbox
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> trickbox.apply(net, [Dropout(0.3)], torch.zeros(4, 2))[0].trickbox.dropout
    StreamDropout(p=0.3, element)
    """

    family: ClassVar = "dropout"
    after: ClassVar = ("transfer", "normalization", "residual")
    off: ClassVar = {"p": 0.0}
    tunes: ClassVar = ("p",)

    p: float | Callable[[float], float] = field(default=0.1, validator=by_depth("[0, 1)"))
    conv: float | None = field(default=None, validator=validators.optional(interval("[0, 1)")))
    dense: float | None = field(default=None, validator=validators.optional(interval("[0, 1)")))
    kind: str = field(default="element", validator=choice("element", "channel"))
    where: str = field(
        default="auto", validator=choice("auto", "after_layer", "after_pool", "before_head", "attention")
    )
    at: Places | None = field(default=None, validator=places())
    not_at: Places | None = field(default=None, validator=places())
    side: str = field(default="output", validator=side())

    @hookimpl
    def init(self, state: State) -> None:
        """Attach, or adjust what is there."""
        surgery = state.surgery
        before, after = self._sites(surgery)
        acted = [site for site in before if self._act(state, site, dropout_before(surgery, site.event), before=True)]
        for site in after:
            existing = None if site.function in INSTEAD else dropout_after(surgery, site.event)
            acted += [site] if self._act(state, site, existing, before=False) else []
        surgery.require(acted, "a place whose dropout it may set")

    def _act(self, state: State, site: Site, existing: Event | None, before: bool) -> bool:
        """Drop at one site, behind it or *before* it; False, with a note, where that cannot be done."""
        surgery = state.surgery
        rate = self._rate(surgery, site)
        if existing is not None:
            return rate == 0 or _adjust(state, site, existing, rate, self._kind(site))
        if site.function in INSTEAD and not before:
            return _instead(state, site, rate)
        time = None if before else _time(surgery, site)
        new = StreamDropout(rate, self._kind(site) if time is None else "locked", state.draws(site), time or 0)
        if before:
            surgery.insert_before(site, new, Rank.DROPOUT)
        else:
            surgery.insert(behind_norm(surgery.model, surgery.tape, site), new, Rank.DROPOUT)
        return True

    def _sites(self, surgery: Surgery) -> tuple[list[Site], list[Site]]:
        """The sites on whose input, and those on whose output it acts."""
        everything = [*surgery.sites(nn.Module), *surgery.functions()]
        if self.at is not None:
            chosen = surgery.choose([], everything, self.at, self.not_at)
            return (chosen, []) if self.side == "input" else ([], chosen)
        before, after = _suitable(surgery) if self.where == "auto" else self._named(surgery)
        kept = surgery.choose([*before, *after], everything, None, self.not_at)
        return [site for site in before if site in kept], [site for site in after if site in kept]

    def _named(self, surgery: Surgery) -> tuple[list[Site], list[Site]]:
        if self.where == "before_head":
            return [surgery.head()], []
        if self.where == "after_layer":
            return [], surgery.require(_layers(surgery), "weight layers before the head")
        if self.where == "attention":
            found = attentions(surgery.model, surgery.tape)
            if not found:
                surgery.remark("it has no attention")
            return [], surgery.require(found, "functions that make the probabilities of an attention")
        functional = sorted({e.name for e in surgery.tape.events if not e.is_module and "pool" in e.name})
        hint = f" ({', '.join(functional)} is called as a function; use where='after_layer')" if functional else ""
        pools = surgery.require(surgery.sites(*POOLS), f"pool modules{hint}")
        return [], [*pools, *(site for site in _layers(surgery) if not _is_spatial(site))]

    def _rate(self, surgery: Surgery, site: Site) -> float:
        own = self.conv if _is_spatial(site) else self.dense
        if own is not None:
            return own
        if callable(self.p):  # depths take time, and are not found for nothing
            return at_depth(self, "p", surgery.depths.share(site.path))
        return self.p

    def _kind(self, site: Site) -> str:
        return self.kind if _is_spatial(site) else "element"


def _time(surgery: Surgery, site: Site) -> int | None:
    """The axis of time in the sequences that a recurrent layer puts out, where its sequences are what is used."""
    layer, used = site.module, surgery.tape.used(site.event)
    if site.function or not isinstance(layer, nn.RNNBase) or used or len(site.output_shape) != 3:
        return None
    return int(layer.batch_first)


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
    """All that makes features: weight layers, embeddings, recurrent layers and their insides, in order of execution."""
    anatomy = surgery.anatomy
    deep = [site for site in surgery.functions() if isinstance(site.module, nn.RNNBase) and site.module.num_layers > 1]
    layers = [*anatomy.embeddings, *deep, *anatomy.recurrent, *anatomy.hidden]
    return sorted(layers, key=lambda site: site.event.number)


def _is_spatial(site: Site) -> bool:
    return isinstance(site.module, (*CONVOLUTIONS, *POOLS))


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


def _adjust(state: State, site: Site, existing: Event, p: float, kind: str) -> bool:
    """Put a dropout in the place of one that the model has; False, with a note, where that cannot be done."""
    surgery, place = state.surgery, state.surgery.site_of(existing)
    if place.function in FUNCTIONS:
        return _instead(state, place, p)
    if place.function or not isinstance(place.module, ADJUSTABLE):
        surgery.skip(site, f"a {existing.name} follows, which only the model's own code can change")
        return False
    if isinstance(place.module, StreamDropout) and place.module.draws.clock is state.clock:
        return _serves(surgery, site, place, place.module, p)
    surgery.convert(place, StreamDropout(p, kind, state.draws(site, place.calls)))
    return True


def _instead(state: State, site: Site, p: float) -> bool:
    """Let a dropout do the work of a function; False, with a note, where one of another rate does already."""
    there = state.surgery.replacement(site)
    if isinstance(there, StreamDropout):
        return _serves(state.surgery, site, site, there, p)
    draws = state.draws(site, max(site.module.num_layers - 1, 1) if isinstance(site.module, nn.RNNBase) else 1)
    state.surgery.insert_instead(site, INSTEAD[site.function](p, "element", draws), Rank.DROPOUT)
    return True


def _serves(surgery: Surgery, site: Site, place: Site, there: StreamDropout, p: float) -> bool:
    """Whether a dropout that serves another layer already has this rate; with a note where not."""
    if there.p != p:
        surgery.skip(site, f"its dropout {place.label} serves another layer too, with rate {there.p}")
    return there.p == p
