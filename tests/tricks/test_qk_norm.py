"""QKNorm: equal to attention that is written with it, in each of the ways in which people write attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trickbox_tricks.attention import QKNorm
from trickbox_tricks.dropout import Dropout

import trickbox as tb
from trickbox.testing.zoo import specimen


class Attention(nn.Module):
    """Heads of width 4; `product` makes the weighted values of queries, keys and values (N, H, T, D)."""

    norms: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] = (lambda x: x, lambda x: x)

    def __init__(self, product: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.out, self.product = nn.Linear(8, 24), nn.Linear(8, 8), product

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        q, k = self.norms[0](q), self.norms[1](k)
        return self.out(self.product(q, k, v).transpose(1, 2).flatten(2))


def by_bmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    return torch.bmm(torch.bmm(q, k.transpose(1, 2)).div(2).softmax(-1), v).unflatten(0, (-1, 2))


def by_baddbmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    scores = torch.baddbmm(torch.zeros(1, 1, 1), q, k.mT, beta=0, alpha=0.5)
    return torch.bmm(F.softmax(scores, -1), v).unflatten(0, (-1, 2))


PRODUCTS = {
    "fused": F.scaled_dot_product_attention,
    "fused, by name": lambda q, k, v: F.scaled_dot_product_attention(value=v, query=q, key=k),
    "matmul": lambda q, k, v: F.dropout(torch.softmax(q @ k.transpose(-2, -1) / 2, -1), 0.0) @ v,
    "bmm": by_bmm,
    "baddbmm": by_baddbmm,
}
X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("product", ["fused", "matmul", "bmm", "baddbmm"])
def test_it_is_the_hand_written_attention(product: str, kind: str) -> None:
    model, expected = Attention(PRODUCTS[product]), Attention(PRODUCTS[product])
    tb.apply(model, [QKNorm(kind)], X)
    kinds: Any = {"layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm}[kind]
    expected.norms = (kinds(4), kinds(4))
    q, k = (p for name, p in model.named_parameters() if name.endswith("weight") and "trickbox" in name)
    with torch.no_grad():  # different gains, so that nothing is taken for the other
        for mine, theirs, gain in ((q, expected.norms[0], [1.0, 2, 3, 4]), (k, expected.norms[1], [0.5, 1, 0.2, 3])):
            mine.copy_(torch.tensor(gain))
            theirs.weight.copy_(mine)
    torch.testing.assert_close(model(X), expected(X), rtol=1e-5, atol=1e-6)
    if product == "fused":
        assert torch.equal(model(X), expected(X))
    model(X).square().sum().backward()
    expected(X).square().sum().backward()
    torch.testing.assert_close(q.grad, expected.norms[0].weight.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(k.grad, expected.norms[1].weight.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("product", ["fused", "matmul", "bmm"])
def test_scores_no_longer_depend_on_the_scale_of_queries_and_keys(product: str) -> None:
    model = Attention(PRODUCTS[product])
    tb.apply(model, [QKNorm("rms_norm")], X)
    before = model(X)
    with torch.no_grad():
        model.qkv.weight[:16] *= 50
        model.qkv.bias[:16] *= 50
    torch.testing.assert_close(model(X), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt", "gpt2", "bert", "llama", "vit"])
def test_every_attention_of_a_transformer_has_two(name: str) -> None:
    model, x = specimen(name)
    before = sum(p.numel() for p in model.parameters())
    tb.apply(model, [QKNorm()], x)
    assert sum(p.numel() for p in model.parameters()) - before == 2 * 2 * 2 * 4  # blocks, norms, gain and shift, width
    out = model(x)
    tb.undo(model)
    assert not any("trickbox" in key for key in model.state_dict())
    assert out is not None


def test_it_goes_together_with_dropped_probabilities_in_any_order() -> None:
    outputs = []
    for tricks in ([QKNorm(), Dropout(0.5, where="attention")], [Dropout(0.5, where="attention"), QKNorm()]):
        model, x = specimen("gpt")
        tb.apply(model, tricks, x, seed=3)
        outputs.append(model.train()(x))
    assert torch.equal(*outputs)
    assert not torch.equal(outputs[0], model.eval()(x))


def test_one_attention_can_be_named() -> None:
    model, x = specimen("gpt")
    tb.apply(model, [QKNorm(at="blocks.1.*:scaled_dot_product_attention")], x)
    assert {name.partition(".trickbox")[0] for name, _ in model.named_parameters() if "trickbox" in name} == {
        "blocks.1.attn"
    }


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("multihead_attention", "queries and keys are multiplied in its module, out of sight"),
        ("mlp", "looked for attentions whose queries and keys can be reached"),
        ("mixture_of_experts", "looked for attentions whose queries and keys can be reached"),
    ],
)
def test_without_a_product_it_is_an_error(name: str, why: str) -> None:
    model, x = specimen(name)
    with pytest.raises(tb.NoEffectError, match=why):
        tb.apply(model, [QKNorm()], x)


def test_einsum_is_skipped_with_the_reason() -> None:
    def by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.einsum("nhts,nhsd->nhtd", torch.einsum("nhtd,nhsd->nhts", q, k).softmax(-1), v)

    with pytest.raises(tb.NoEffectError, match="multiplied in einsum, whose axes are not known"):
        tb.apply(Attention(by_einsum), [QKNorm()], X)
