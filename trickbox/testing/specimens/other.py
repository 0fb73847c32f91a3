"""Recurrent and text models, shared layers, several inputs, outputs or branches."""
# What a module returns is Any to a type checker.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 50


class LSTMClassifier(nn.Module):
    """Two recurrent layers, of which the last step is read. Shapes: tokens (N, 12) to (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.lstm = nn.LSTM(8, 16, num_layers=2, batch_first=True)
        self.fc = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        output, _ = self.lstm(self.embedding(tokens))
        return self.fc(output[:, -1])


class GRUForecaster(nn.Module):
    """The last hidden state of one recurrent layer predicts the next value. Shapes: (N, 20, 2) to (N, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(2, 16, batch_first=True)
        self.head = nn.Linear(16, 1)

    def forward(self, series: Tensor) -> Tensor:
        _, hidden = self.gru(series)
        return self.head(hidden[-1])


class BagOfWords(nn.Module):
    """The mean of the embeddings, then two layers. Shapes: tokens (N, 12) to (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(VOCABULARY, 16)
        self.fc1 = nn.Linear(16, 16)
        self.fc2 = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(self.embedding(tokens))))


class MaskedMeanClassifier(nn.Module):
    """Named inputs and outputs, as in transformers. Shapes: tokens and mask (N, 12) to {"logits": (N, 3)}."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, 16)
        self.pre_classifier = nn.Linear(16, 16)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        mask = attention_mask.unsqueeze(-1)
        pooled = (self.word_embeddings(input_ids) * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        pooled = self.dropout(F.relu(self.pre_classifier(pooled)))
        return {"logits": self.classifier(pooled)}


class Siamese(nn.Module):
    """One tower for both inputs, and a score of their difference. Shapes: twice (N, 8) to (N, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16))
        self.head = nn.Linear(16, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.abs(self.tower(a) - self.tower(b)))


class RecurrentDepth(nn.Module):
    """One layer three times in a row. Shapes: (N, 8) to (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.layer = nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.embed(x))
        for _ in range(3):
            x = torch.tanh(self.layer(x))
        return self.head(x)


class AuxiliaryOutputs(NamedTuple):
    """What the net with an auxiliary head returns in training."""

    logits: Tensor
    aux_logits: Tensor


class AuxiliaryNet(nn.Module):
    """A second head that runs only in training, as in GoogLeNet. Shapes: (N, 3, 16, 16) to (N, 3), or to two of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.aux = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 16), nn.ReLU(inplace=True), nn.Linear(16, 3)
        )
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor | AuxiliaryOutputs:
        x = F.relu(self.conv1(x))
        aux = self.aux(x) if self.training else None
        x = F.relu(self.conv2(x))
        x = self.fc(x.mean((2, 3)))
        return x if aux is None else AuxiliaryOutputs(x, aux)


class MixtureOfExperts(nn.Module):
    """A weighted sum of two ways from the same input, which is no residual join. Shapes: (N, 8) to (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.gate = nn.Linear(16, 2)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(2)])
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        weights = self.gate(x).softmax(dim=-1)
        mixed = weights[:, :1] * self.experts[0](x) + weights[:, 1:] * self.experts[1](x)
        return self.head(mixed)


class GraphConvolution(nn.Module):
    """Messages from the neighbors, by a weight of its own that is stored as (inputs, outputs)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_features, out_features).uniform_(-0.25, 0.25))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        support = torch.matmul(x, self.weight)
        return torch.matmul(adjacency, support) + self.bias


class GCN(nn.Module):
    """Two graph convolutions, then the mean over all nodes. Shapes: (N, 6, 8) and (N, 6, 6) to (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.gc1 = GraphConvolution(8, 16)
        self.gc2 = GraphConvolution(16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        x = F.relu(self.gc1(x, adjacency))
        x = F.relu(self.gc2(x, adjacency))
        return self.head(x.mean(dim=1))


class TwoHeads(nn.Module):
    """A class and a box from one backbone. Shapes: (N, 8) to the pair of (N, 3) and {"box": (N, 4)}."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
        self.class_head = nn.Linear(16, 3)
        self.box_head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        features = self.backbone(x)
        return self.class_head(features), {"box": self.box_head(features)}
