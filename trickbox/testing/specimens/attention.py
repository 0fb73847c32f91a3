"""Attention, torch's own and by hand, and mixers. Hidden states are (N, T, C)."""
# What a module returns is Any to a type checker.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY, LENGTH, WIDTH, HEADS = 50, 12, 16, 4


def split_heads(x: Tensor) -> Tensor:
    """(N, T, C) to (N, heads, T, C / heads)."""
    return x.view(*x.shape[:2], HEADS, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(N, heads, T, C / heads) to (N, T, C)."""
    return x.transpose(1, 2).flatten(2)


def feed_forward() -> nn.Sequential:
    """Two linear layers, four times as wide in between."""
    return nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))


class SelfAttention(nn.Module):
    """Queries, keys and values from one layer."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part) for part in self.qkv(x).chunk(3, dim=-1))
        return self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)))


class PreNormBlock(nn.Module):
    """Norms in front of the attention and of the two linear layers."""

    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.attn = SelfAttention(causal)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = feed_forward()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches behind a class token, which the head reads. Shapes: (N, 3, 16, 16) to (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_proj = nn.Conv2d(3, WIDTH, kernel_size=4, stride=4)
        self.class_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embedding = nn.Parameter(torch.empty(1, 17, WIDTH).normal_(std=0.02))
        self.layers = nn.Sequential(PreNormBlock(), PreNormBlock())
        self.ln = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.ln(self.layers(x + self.pos_embedding))
        return self.head(x[:, 0])


class MixerBlock(nn.Module):
    """Two linear layers over the patches, then two over the channels."""

    def __init__(self, patches: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.token_mix = nn.Sequential(nn.Linear(patches, 2 * patches), nn.GELU(), nn.Linear(2 * patches, patches))
        self.norm2 = nn.LayerNorm(WIDTH)
        self.channel_mix = feed_forward()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mix(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mix(self.norm2(x))


class Mixer(nn.Module):
    """Patches mixed without attention. Shapes: (N, 3, 16, 16) to (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, WIDTH, kernel_size=4, stride=4)
        self.blocks = nn.ModuleList([MixerBlock(patches=16) for _ in range(2)])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=1))


class EncoderClassifier(nn.Module):
    """Torch's own encoder, which in eval mode calls none of its layers' modules. Shapes: tokens (N, 12) to (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Parameter(torch.empty(LENGTH, WIDTH).normal_(std=0.02))
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, dim_feedforward=2 * WIDTH, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2)
        self.fc = nn.Linear(WIDTH, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.encoder(self.embedding(tokens) + self.positions)
        return self.fc(x.mean(dim=1))


class Seq2Seq(nn.Module):
    """Torch's own encoder and decoder. Shapes: tokens (N, 12) and (N, 8) to (N, 8, 50)."""

    def __init__(self) -> None:
        super().__init__()
        self.src_embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.tgt_embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Parameter(torch.empty(LENGTH, WIDTH).normal_(std=0.02))
        self.transformer = nn.Transformer(WIDTH, HEADS, 1, 1, dim_feedforward=2 * WIDTH, batch_first=True)
        self.generator = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        length = tgt.size(1)
        mask = torch.ones(length, length, dtype=torch.bool, device=tgt.device).triu(1)
        source = self.src_embedding(src) + self.positions[: src.size(1)]
        target = self.tgt_embedding(tgt) + self.positions[:length]
        return self.generator(self.transformer(source, target, tgt_mask=mask))


class TimeSeriesTransformer(nn.Module):
    """Post-norm blocks by hand around torch's attention, which uses its projection as a function.

    Shapes: (N, 10, 5) to (N, 3).
    """

    def __init__(self) -> None:
        super().__init__()
        self.input_proj = nn.Linear(5, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.norm1 = nn.LayerNorm(WIDTH)
        self.ffn = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Dropout(0.1), nn.Linear(2 * WIDTH, WIDTH))
        self.norm2 = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.input_proj(x)
        attended, _ = self.attention(x, x, x, need_weights=False)
        x = self.norm1(x + attended)
        x = self.norm2(x + self.ffn(x))
        return self.head(x.mean(dim=1))
