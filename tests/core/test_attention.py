"""Attention with its probabilities open: equal to torch's own, and found wherever a model has one."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trickbox.surgery import Surgery, attend, attend_with_heads, attentions
from trickbox.testing.zoo import ZOO, specimen

FOUND = {
    "vit": "layers.0.attn:scaled_dot_product_attention layers.1.attn:scaled_dot_product_attention",
    "transformer_encoder": "encoder.layers.0.self_attn:multi_head_attention_forward "
    "encoder.layers.1.self_attn:multi_head_attention_forward",
    "encoder_decoder": "transformer.encoder.layers.0.self_attn:multi_head_attention_forward "
    "transformer.decoder.layers.0.self_attn:multi_head_attention_forward "
    "transformer.decoder.layers.0.multihead_attn:multi_head_attention_forward",
    "multihead_attention": "attention:multi_head_attention_forward",
    "gpt": "blocks.0.attn:scaled_dot_product_attention blocks.1.attn:scaled_dot_product_attention",
    "gpt2": "h.0.attn:softmax h.1.attn:softmax",
    "bert": "layer.0.attention.self:scaled_dot_product_attention layer.1.attention.self:scaled_dot_product_attention",
    "llama": "layers.0.self_attn:scaled_dot_product_attention layers.1.self_attn:scaled_dot_product_attention",
}
"""By hand; all other models of the zoo have none, those with softmax gates among them."""


@pytest.mark.parametrize("name", ZOO)
def test_the_attentions_of_a_model_are_found(name: str) -> None:
    surgery = Surgery.on(*specimen(name))
    assert [site.label for site in attentions(surgery.model, surgery.tape)] == FOUND.get(name, "").split()


def test_a_softmax_module_in_an_attention_is_found_and_one_over_classes_is_not() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.softmax, self.out, self.classes = (
                nn.Linear(4, 12),
                nn.Softmax(-1),
                nn.Linear(4, 2),
                nn.Softmax(-1),
            )

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            scores = (torch.bmm(q, k.transpose(1, 2)) / 2).masked_fill(torch.zeros(5, 5).bool(), 0)
            return self.classes(self.out(torch.bmm(self.softmax(scores), v)))

    surgery = Surgery.on(Attention(), torch.randn(3, 5, 4))
    assert [site.label for site in attentions(surgery.model, surgery.tape)] == ["softmax"]


def test_a_softmax_that_weighs_experts_is_no_attention() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.experts = nn.Linear(4, 3), nn.ModuleList(nn.Linear(4, 2) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            weights = (self.gate(x) / 2).softmax(-1)
            return torch.einsum("ne,end->nd", weights, torch.stack([expert(x) for expert in self.experts]))

    surgery = Surgery.on(Experts(), torch.randn(5, 4))
    assert attentions(surgery.model, surgery.tape) == []


def same(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize("mask", [None, "bool", "float"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", [4, 2])
def test_the_function_is_that_of_torch(mask: str | None, causal: bool, heads: int) -> None:
    if mask and causal:
        pytest.skip("torch takes one of the two")
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 4, 5, 8), torch.randn(3, heads, 6, 8), torch.randn(3, heads, 6, 7)
    masks = {None: None, "bool": torch.rand(5, 6) < 0.7, "float": torch.randn(5, 6)}
    settings = {"attn_mask": masks[mask], "is_causal": causal, "enable_gqa": heads == 2, "scale": 0.3}
    torch.testing.assert_close(
        attend(q, k, v, **settings, probabilities=same), F.scaled_dot_product_attention(q, k, v, **settings)
    )


def test_probabilities_can_be_changed_and_the_functions_own_dropout_is_left_out() -> None:
    q, k, v = torch.randn(3, 2, 5, 4)
    seen = []
    out = attend(q, k, v, dropout_p=0.9, probabilities=lambda p: seen.append(p) or p * 2)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v) * 2)
    torch.testing.assert_close(seen[0].sum(-1), torch.ones(2, 5))


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("mask", [None, "bool", "float", "per head"])
def test_many_heads_are_those_of_torch(monkeypatch: pytest.MonkeyPatch, batched: bool, mask: str | None) -> None:
    torch.manual_seed(0)
    masks = {"bool": torch.rand(5, 4) < 0.3, "float": torch.randn(5, 4)}
    masks["bool"][:, 0] = False
    masks["per head"] = torch.randn((3 if batched else 1) * 2, 5, 4)
    for width, first, bias, padded, shown, averaged in itertools.product([None, 6], *[[False, True]] * 5):
        layer = nn.MultiheadAttention(8, 2, bias=bias, batch_first=first, kdim=width, vdim=width)
        inputs = torch.randn(5, 3, 8), torch.randn(4, 3, width or 8), torch.randn(4, 3, width or 8)
        inputs = tuple((x.transpose(0, 1) if first else x) if batched else x[:, 0] for x in inputs)
        padding = torch.tensor([[False] * 3 + [True]] * 3)
        settings = {
            "attn_mask": masks.get(mask or ""),
            "key_padding_mask": (padding if batched else padding[0]) if padded else None,
            "need_weights": shown,
            "average_attn_weights": averaged,
        }
        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")
            expected = layer(*inputs, **settings)
            patch.setattr(F, "multi_head_attention_forward", ours)
            found = layer(*inputs, **settings)
        torch.testing.assert_close(found[0], expected[0])
        assert (found[1] is None) == (expected[1] is None)
        if shown:
            torch.testing.assert_close(found[1], expected[1])


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_keys_that_torch_adds_are_added(monkeypatch: pytest.MonkeyPatch, batched: bool, masked: bool) -> None:
    for biased, zero in itertools.product([False, True], repeat=2):
        layer = nn.MultiheadAttention(8, 2, add_bias_kv=biased, add_zero_attn=zero)
        x = torch.randn(5, 3, 8) if batched else torch.randn(5, 8)
        padding = torch.tensor([[False] * 4 + [True]] * 3)
        settings = {
            "attn_mask": torch.rand(5, 5) < 0.3 if masked else None,
            "key_padding_mask": (padding if batched else padding[0]) if masked else None,
        }
        if masked:
            settings["attn_mask"][:, 0] = False
        expected = layer(x, x, x, **settings)
        with monkeypatch.context() as patch:
            patch.setattr(F, "multi_head_attention_forward", ours)
            torch.testing.assert_close(layer(x, x, x, **settings), expected)


def ours(*args, **settings):
    return attend_with_heads(*args, probabilities=same, **settings)
