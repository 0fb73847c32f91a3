"""Attention: which calls of a model weigh values by probabilities, and the same calls with the probabilities open."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trickbox.surgery.sites import Site, functions_of, site_of, sites_of
from trickbox.surgery.tape import Event, Tape

FUSED = ("scaled_dot_product_attention", "multi_head_attention_forward")
"""Functions that make the probabilities inside."""
_PRODUCTS = ("matmul", "bmm", "einsum", "baddbmm")
_PASSED = ("dropout", "to", "float", "half", "bfloat16", "type", "type_as", "contiguous", "identity")
"""Names between the probabilities and the values, in lower case."""

Change = Callable[[Tensor], Tensor]


def same(x: Tensor) -> Tensor:
    """*x* itself: nothing changes."""
    return x


def attentions(model: nn.Module, tape: Tape) -> list[Site]:
    """The calls that make the probabilities of an attention, in the order of execution.

    A function that is `FUSED`, or a softmax, function or module, over the product of queries and keys.

    >>> from trickbox.surgery.tape import record
    >>> net = nn.MultiheadAttention(4, 2)
    >>> x = torch.zeros(3, 1, 4)
    >>> [site.label for site in attentions(net, record(net, (x, x, x)))]
    ['(model):multi_head_attention_forward']
    """
    sites, made = functions_of(model, tape), _makers(tape)
    found = [site for site in sites if site.function in FUSED or _is_softmax(tape, site.event, made)]
    found += [s for s in sites_of(model, tape, (nn.Softmax,)) if not s.attached and _is_softmax(tape, s.event, made)]
    return sorted(found, key=lambda site: site.event.number)


def product_of(model: nn.Module, tape: Tape, attention: Site) -> Site | None:
    """The function that multiplies the queries and keys of an attention; None where that happens out of sight."""
    if attention.function == "scaled_dot_product_attention":
        return attention
    event = None if attention.function in FUSED else _product(attention.event, _makers(tape))
    return None if event is None else site_of(model, tape, event)


def _makers(tape: Tape) -> dict[int, Event]:
    """What made each tensor."""
    return {tensor: event for event in tape.events if not tape.holds_others(event) for tensor in event.outputs}


def _is_softmax(tape: Tape, event: Event, made: dict[int, Event]) -> bool:
    """Whether a softmax turns a product into the weights of another product."""
    return event.name.lower() == "softmax" and _weighs(tape, event) and _product(event, made) is not None


def _weighs(tape: Tape, event: Event) -> bool:
    for later in tape.following(event):
        if not tape.holds_others(later) and later.name.lower() not in _PASSED:
            return later.name in _PRODUCTS
    return False


def _product(event: Event, made: dict[int, Event]) -> Event | None:
    """The product that the scores of a softmax come from, through scaling and masks, not through modules."""
    while event.inputs and event.inputs[0] in made:
        event = made[event.inputs[0]]
        if event.name in _PRODUCTS or event.is_module:
            return None if event.is_module else event
    return None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    probabilities: Change,
) -> Tensor:
    """`F.scaled_dot_product_attention` with the *probabilities* changed; its own dropout is left out.

    Cost: the matrix of probabilities is held in memory, (..., L, S), as no fused kernel does.

    >>> q, k, v = torch.randn(3, 2, 5, 4)
    >>> torch.allclose(attend(q, k, v, probabilities=lambda p: p), F.scaled_dot_product_attention(q, k, v), atol=1e-6)
    True
    """
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        masked = attn_mask.dtype is torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if masked else scores + attn_mask
    return probabilities(scores.softmax(-1)) @ value


def attend_with_heads(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    width: int,
    heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    *,
    queries: Change = same,
    keys: Change = same,
    probabilities: Change | None = None,
    need_weights: bool = True,
    average_attn_weights: bool = True,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    is_causal: bool = False,
    **weights: Any,
) -> tuple[Tensor, Tensor | None]:
    """`F.multi_head_attention_forward` with *queries*, *keys* (..., heads, L, D) and the *probabilities* changed.

    Its own dropout is left out where the probabilities are changed. Without static keys, which `nn.MultiheadAttention`
    never has; as there, a causal mask must be in `attn_mask`, whatever `is_causal` hints at.
    """
    names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    projections = [weights[name] for name in names] if use_separate_proj_weight else in_proj_weight.chunk(3)  # type: ignore[union-attr]
    biases = [None] * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), projections, biases, strict=True))
    k, v = _with_bias(k, bias_k), _with_bias(v, bias_v)
    q, k, v = (x.reshape(*x.shape[:-1], heads, -1).movedim(0, -2) for x in (q, k, v))
    q, k, more = queries(q), keys(k), int(bias_k is not None) + int(add_zero_attn)
    if add_zero_attn:
        k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
    mask, own = _mask(attn_mask, key_padding_mask, q, more), dropout_p if training else 0.0
    kept: list[Tensor] = []

    def keep(drawn: Tensor) -> Tensor:
        kept.append(probabilities(drawn) if probabilities is not None else F.dropout(drawn, own))
        return kept[0]

    if probabilities is None and not need_weights:
        mixed = F.scaled_dot_product_attention(q, k, v, mask, own)
    else:
        mixed = attend(q, k, v, mask, probabilities=keep)
    output = F.linear(mixed.movedim(-2, 0).flatten(-2), out_proj_weight, out_proj_bias)
    return output, _shown(kept[0], average_attn_weights) if need_weights else None


def _with_bias(x: Tensor, bias: Tensor | None) -> Tensor:
    """Keys or values (L, N, E) or (L, E) with one more that is learned."""
    return x if bias is None else torch.cat([x, bias.expand(1, x.shape[1], -1) if x.ndim == 3 else bias[0]])


def _shown(probabilities: Tensor, averaged: bool) -> Tensor:
    return probabilities.mean(-3) if averaged else probabilities


def _mask(attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor, more: int) -> Tensor | None:
    """Both masks of a multi-head attention as one that is added to the scores, with *more* keys that none hides."""
    mask = None if attn_mask is None else _added(attn_mask, q)
    if mask is not None and mask.ndim == 3 and q.ndim == 4:
        mask = mask.reshape(*q.shape[:2], *mask.shape[1:])
    if key_padding_mask is not None:
        padding = _added(key_padding_mask, q)[..., None, None, :]
        mask = padding if mask is None else mask + padding
    return mask if mask is None else F.pad(mask, (0, more))


def _added(mask: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf) if mask.dtype is torch.bool else mask
