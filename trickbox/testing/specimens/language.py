"""Language models and a text encoder. Hidden states are (N, T, C)."""
# What a module returns is Any to a type checker.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trickbox.testing.specimens.attention import LENGTH, VOCABULARY, WIDTH, PreNormBlock, merge_heads, split_heads


class GPT(nn.Module):
    """A language model without dropout. Shapes: tokens (N, 12) to (N, 12, 50)."""

    def __init__(self) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(VOCABULARY, WIDTH)
        self.pos_emb = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(PreNormBlock(causal=True), PreNormBlock(causal=True))
        self.ln_f = nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tok_emb(tokens) + self.pos_emb(positions)
        return self.lm_head(self.ln_f(self.blocks(x)))


class Conv1D(nn.Module):
    """A linear layer whose weight is stored as (inputs, outputs)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.empty(nx, nf).normal_(std=0.02))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        size_out = (*x.size()[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size_out)


class GPT2Attention(nn.Module):
    """Attention written out, with a dropout on its probabilities and one behind the projection."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(), persistent=False)
        self.c_attn = Conv1D(3 * WIDTH, WIDTH)
        self.c_proj = Conv1D(WIDTH, WIDTH)
        self.attn_dropout = nn.Dropout(0.1)
        self.resid_dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part) for part in self.c_attn(x).split(WIDTH, dim=2))
        weights = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(v.size(-1))
        weights = weights.masked_fill(~self.mask[: x.size(1), : x.size(1)], torch.finfo(weights.dtype).min)
        weights = self.attn_dropout(F.softmax(weights, dim=-1))
        return self.resid_dropout(self.c_proj(merge_heads(torch.matmul(weights, v))))


class GPT2MLP(nn.Module):
    """Two layers, the tanh form of GELU as a product and sums, and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.c_fc = Conv1D(4 * WIDTH, WIDTH)
        self.c_proj = Conv1D(WIDTH, 4 * WIDTH)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)
        x = 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))
        return self.dropout(self.c_proj(x))


class GPT2Block(nn.Module):
    """Norms in front of attention and layers; the residual comes second in each sum."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(WIDTH)
        self.attn = GPT2Attention()
        self.ln_2 = nn.LayerNorm(WIDTH)
        self.mlp = GPT2MLP()

    def forward(self, hidden_states: Tensor) -> Tensor:
        residual = hidden_states
        hidden_states = self.attn(self.ln_1(hidden_states)) + residual
        residual = hidden_states
        return residual + self.mlp(self.ln_2(hidden_states))


class GPT2(nn.Module):
    """A language model whose head is its token embedding. Shapes: tokens (N, 12) to (N, 12, 50)."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(VOCABULARY, WIDTH)
        self.wpe = nn.Embedding(LENGTH, WIDTH)
        self.drop = nn.Dropout(0.1)
        self.h = nn.ModuleList([GPT2Block() for _ in range(2)])
        self.ln_f = nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        position_ids = torch.arange(input_ids.size(-1), device=input_ids.device)
        hidden_states = self.drop(self.wte(input_ids) + self.wpe(position_ids))
        for block in self.h:
            hidden_states = block(hidden_states)
        return self.lm_head(self.ln_f(hidden_states))


class BertEmbeddings(nn.Module):
    """Tokens plus positions, a norm and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.position_embeddings = nn.Embedding(LENGTH, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(0.1)

    def forward(self, input_ids: Tensor) -> Tensor:
        positions = torch.arange(input_ids.size(1), device=input_ids.device)
        embeddings = self.word_embeddings(input_ids)
        embeddings += self.position_embeddings(positions)
        return self.dropout(self.LayerNorm(embeddings))


class BertSelfAttention(nn.Module):
    """Queries, keys and values from three layers; the projection is elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = split_heads(self.query(x)), split_heads(self.key(x)), split_heads(self.value(x))
        return merge_heads(F.scaled_dot_product_attention(q, k, v))


class BertOutput(nn.Module):
    """The last layer of a branch, its dropout, the add and the norm, in one module."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(0.1)

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        hidden_states = self.dropout(self.dense(hidden_states))
        return self.LayerNorm(hidden_states + input_tensor)


class BertLayer(nn.Module):
    """Attention and two linear layers, the norms behind the sums."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": BertSelfAttention(), "output": BertOutput(WIDTH)})
        self.intermediate = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU())
        self.output = BertOutput(4 * WIDTH)

    def forward(self, hidden_states: Tensor) -> Tensor:
        attended = self.attention["output"](self.attention["self"](hidden_states), hidden_states)
        return self.output(self.intermediate(attended), attended)


class Bert(nn.Module):
    """A text classifier that reads the first token. Shapes: tokens (N, 12) to (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = BertEmbeddings()
        self.layer = nn.ModuleList([BertLayer() for _ in range(2)])
        self.pooler = nn.Linear(WIDTH, WIDTH)
        self.classifier = nn.Linear(WIDTH, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden_states = self.embeddings(input_ids)
        for layer in self.layer:
            hidden_states = layer(hidden_states)
        return self.classifier(torch.tanh(self.pooler(hidden_states[:, 0])))


class LlamaRMSNorm(nn.Module):
    """Divide by the root of the mean square; a norm that is no torch class."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def rotary(x: Tensor) -> Tensor:
    """Turn the pairs of features of *x* (N, heads, T, C) by angles that grow with the position."""
    half = x.size(-1) // 2
    frequencies = 10000 ** (-torch.arange(half, device=x.device) / half)
    angles = torch.arange(x.size(-2), device=x.device)[:, None] * torch.cat([frequencies, frequencies])
    rotated = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * angles.cos() + rotated * angles.sin()


class LlamaAttention(nn.Module):
    """Queries and keys turned by their positions; no biases."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, WIDTH, bias=False)
        self.k_proj = nn.Linear(WIDTH, WIDTH, bias=False)
        self.v_proj = nn.Linear(WIDTH, WIDTH, bias=False)
        self.o_proj = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rotary(split_heads(self.q_proj(x))), rotary(split_heads(self.k_proj(x))), split_heads(self.v_proj(x))
        return self.o_proj(merge_heads(F.scaled_dot_product_attention(q, k, v, is_causal=True)))


class LlamaMLP(nn.Module):
    """A product of two layers, one of them behind SiLU, into a third."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.up_proj = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.down_proj = nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LlamaLayer(nn.Module):
    """Norms in front of attention and layers."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = LlamaAttention()
        self.mlp = LlamaMLP()
        self.input_layernorm = LlamaRMSNorm()
        self.post_attention_layernorm = LlamaRMSNorm()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """A language model with rotary positions. Shapes: tokens (N, 12) to (N, 12, 50)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList([LlamaLayer() for _ in range(2)])
        self.norm = LlamaRMSNorm()
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))
