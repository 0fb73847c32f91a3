"""Tricks on attention: queries and keys of one length, so that no score grows without bound."""

from __future__ import annotations

from typing import Any, ClassVar

from attrs import field
from torch import Tensor, nn

from trickbox.authoring import (
    Places,
    Rank,
    Site,
    State,
    Surgery,
    attend_with_heads,
    attentions,
    choice,
    flag,
    hookimpl,
    places,
    product_of,
    trick,
)

NORMS: dict[str, type[nn.Module]] = {"layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm}
FACTORS = {"scaled_dot_product_attention": (0, 1), "matmul": (0, 1), "bmm": (0, 1), "baddbmm": (1, 2)}
"""Which inputs of a product are the queries and the keys; not those of einsum, whose axes only its text tells."""


class TurnedNorm(nn.Module):
    """A norm over the last axis but one, where keys lie that are transposed for the product."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """*x*, normed over its last axis but one."""
        return self.norm(x.transpose(-2, -1)).transpose(-2, -1)  # type: ignore[no-any-return]


class HeadsNorm(nn.Module):
    """Instead of the function of an `nn.MultiheadAttention`: the same, with queries and keys normed."""

    def __init__(self, queries: nn.Module, keys: nn.Module) -> None:
        super().__init__()
        self.queries = queries
        self.keys = keys

    def forward(self, function: Any, *args: Any, **settings: Any) -> tuple[Tensor, Tensor | None]:
        """What *function* gives, of queries and keys that are normed."""
        return attend_with_heads(*args, queries=self.queries, keys=self.keys, **settings)


@trick
class QKNorm:
    """Norm queries and keys, head by head, before they are multiplied: attention stays soft at any learning rate.

    kind         ``layer_norm`` or ``rms_norm``, each with a learned gain that all heads share
    at, not_at   the attentions on which it acts, and those on which it does not: the functions that make the
                 probabilities, such as ``blocks.*.attn:scaled_dot_product_attention``, or ``:softmax``
    shared       one pair of norms for all calls of a module that is called several times, which else get one each

    It acts on what goes into the product, so behind rotary positions where a model has them, and inside
    `nn.MultiheadAttention`, whose function then runs step by step. Where a model norms its heads already, it does so
    only if `at` says so. Raises `NoEffectError` where no attention is found whose product can be reached; the axes of
    an einsum are not known. Cost: two norms an attention.
    Source: Henry et al. 2020; as a layer norm, Dehghani et al. 2023.

    >>> import torch, trickbox
    >>> from trickbox.testing.zoo import specimen
    >>> model, tokens = specimen("gpt")
    >>> _ = trickbox.apply(model, [QKNorm("rms_norm")], tokens)
    >>> [name for name, _ in model.named_parameters() if "trickbox" in name][:1]
    ['blocks.0.attn.trickbox.qk_norm_scaled_dot_product_attention.weight']
    """

    family: ClassVar = "attention"
    after: ClassVar = ("transfer", "normalization", "residual", "dropout")
    tunes: ClassVar = ("kind",)

    kind: str = field(default="layer_norm", validator=choice(*NORMS))
    at: Places | None = field(default=None, validator=places())
    not_at: Places | None = field(default=None, validator=places())
    shared: bool = field(default=False, validator=flag())

    @hookimpl
    def init(self, state: State) -> None:
        """Attach to the queries and keys of every attention."""
        surgery = state.surgery
        found = attentions(surgery.model, surgery.tape)
        if not found:
            surgery.remark("it has no attention")
        chosen = surgery.choose(found, found, self.at, self.not_at)
        acted = [site for site in chosen if _norm(surgery, site, NORMS[self.kind], self.shared, self.at is None)]
        surgery.require(acted, "attentions whose queries and keys can be reached")


def _own(surgery: Surgery, product: Site) -> Site | None:
    """A norm of the model's own from which nothing that maps features leads to the product of an attention."""
    maps = surgery.anatomy.maps
    for norm in surgery.anatomy.norms:
        for later in surgery.tape.following(norm.event):
            if later.number == product.event.number:
                return norm
            if later.number in maps:
                break
    return None


def _norm(surgery: Surgery, attention: Site, kind: type[nn.Module], shared: bool, spare: bool) -> bool:
    """Norm the queries and keys of one attention; False, with a note, where they cannot be reached.

    Those that have norms of their own are left alone, to *spare* them.
    """
    like = next((p for p in surgery.model.parameters() if p.is_floating_point()), None)
    dtype = None if like is None else like.dtype
    if attention.function == "multi_head_attention_forward":
        heads = [kind(attention.module.head_dim, dtype=dtype) for _ in range(2)]
        surgery.insert_instead(attention, HeadsNorm(*heads), Rank.NORM, shared)
        return True
    product = product_of(surgery.model, surgery.tape, attention)
    if product is None or product.function not in FACTORS:
        where = "einsum, whose axes are not known" if product is not None else "its module, out of sight"
        surgery.skip(attention, f"queries and keys are multiplied in {where}")
        return False
    queries, keys = FACTORS[product.function]
    own = _own(surgery, product) if spare else None
    if own is not None:
        surgery.skip(attention, f"its queries and keys have norms of their own already, such as {own.label}")
        return False
    norms = [kind(product.event.input_shapes[queries][-1], dtype=dtype) for _ in range(2)]
    turned = product.function != "scaled_dot_product_attention"
    surgery.insert_before(product, norms[0], Rank.NORM, queries, shared)
    surgery.insert_before(product, TurnedNorm(norms[1]) if turned else norms[1], Rank.NORM, keys, shared)
    return True
