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


class Heads(nn.MultiheadAttention):
    """The attention of torch written out, with norms on queries and keys and the probabilities open."""

    def __init__(self, kind: type[nn.Module], **settings: Any) -> None:
        super().__init__(8, 2, batch_first=True, **settings)
        self.norms = kind(4), kind(4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self._project(x))
        out = F.scaled_dot_product_attention(self.norms[0](q), self.norms[1](k), v)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        return F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)


@pytest.mark.parametrize("weights", [False, True])
def test_it_acts_inside_the_attention_of_torch(weights: bool) -> None:
    model, expected = nn.MultiheadAttention(8, 2, batch_first=True), Heads(nn.LayerNorm)
    model.load_state_dict(expected.state_dict())
    inputs = (X, X, X, None, weights)
    tb.apply(model, [QKNorm()], inputs)
    torch.testing.assert_close(model(*inputs)[0], expected(X))
    names = [name for name, _ in model.named_parameters() if ".queries." in name or ".keys." in name]
    assert len(names) == 4
    model(*inputs)[0].square().sum().backward()
    assert all(model.get_parameter(name).grad is not None for name in names)


def test_torchs_own_block_takes_no_short_way_around_it() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    tb.apply(model, [QKNorm()], X)
    before = model(X)
    with torch.no_grad():
        model.self_attn.in_proj_weight[:16] *= 50
        model.self_attn.in_proj_bias[:16] *= 50
        torch.testing.assert_close(model(X), before, rtol=1e-2, atol=1e-2)  # eps counts in the small ones


def test_inside_the_attention_of_torch_dropped_probabilities_are_those_of_normed_queries() -> None:
    outputs, x = [], torch.randn(3, 5, 8)
    for tricks in ([QKNorm(), Dropout(0.5, where="attention")], [Dropout(0.5, where="attention"), QKNorm()]):
        torch.manual_seed(0)
        model = nn.MultiheadAttention(8, 2, batch_first=True)
        tb.apply(model, tricks, (x, x, x), seed=3)
        with torch.no_grad():
            model.in_proj_weight[:16] *= 50
        outputs.append(model(x, x, x))
    torch.testing.assert_close(*outputs)
    zeros, weights = (outputs[0][1] == 0).double().mean(), outputs[0][1]
    assert 0.1 < zeros < 0.5  # the mean of two heads is zero in a quarter of the places
    assert weights.max() < 1.9  # without norms, scores of this size make one probability 1, and 2 when it is kept


def test_the_dropout_of_torchs_attention_stays() -> None:
    model = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)
    tb.apply(model, [QKNorm()], (X, X, X))
    assert (model(X, X, X)[1] == 0).any()
    assert not torch.equal(model(X, X, X, need_weights=False)[0], model(X, X, X, need_weights=False)[0])
    assert not (model.eval()(X, X, X)[1] == 0).any()


def test_one_attention_can_be_named() -> None:
    model, x = specimen("gpt")
    tb.apply(model, [QKNorm(at="blocks.1.*:scaled_dot_product_attention")], x)
    assert {name.partition(".trickbox")[0] for name, _ in model.named_parameters() if "trickbox" in name} == {
        "blocks.1.attn"
    }


@pytest.mark.parametrize(
    ("name", "why"),
    [
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
