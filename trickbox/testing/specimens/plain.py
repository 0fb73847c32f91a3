"""Plain chains: perceptrons, convolutional nets, an autoencoder, and layers whose weights are not plain parameters."""
# What a module returns is Any to a type checker.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


def mlp() -> nn.Module:
    """A perceptron of modules. Shapes: (N, 8) to (N, 3)."""
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


def mlp_dropout() -> nn.Module:
    """A perceptron with dropouts of its own. Shapes: (N, 8) to (N, 3)."""
    return nn.Sequential(
        nn.Linear(8, 16),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(16, 16),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(16, 3),
    )


class FunctionalMLP(nn.Module):
    """A perceptron whose activations and flattening are functions. Shapes: (N, 2, 8) to (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(16, 12)
        self.fc2 = nn.Linear(12, 12)
        self.fc3 = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(x.size(0), -1)
        x = torch.tanh(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


def cnn_1d() -> nn.Module:
    """A convolutional net for series, of modules. Shapes: (N, 2, 32) to (N, 3)."""
    return nn.Sequential(
        nn.Conv1d(2, 8, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


class CNN2d(nn.Module):
    """LeNet as tutorials write it: functional activations, one pool for both. Shapes: (N, 1, 28, 28) to (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 4 * 4, 32)
        self.fc2 = nn.Linear(32, 24)
        self.fc3 = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


class VGG(nn.Module):
    """Convolutions with batch norm, and a classifier with dropouts of its own. Shapes: (N, 3, 16, 16) to (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = self._make_layers([8, "M", 16, 16, "M"])
        self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(
            nn.Linear(16 * 2 * 2, 32),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(32, 32),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(32, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = self.avgpool(x)
        x = torch.flatten(x, 1)
        return self.classifier(x)

    def _make_layers(self, plan: list[int | str]) -> nn.Sequential:
        layers: list[nn.Module] = []
        channels = 3
        for item in plan:
            if isinstance(item, int):
                layers += [nn.Conv2d(channels, item, 3, padding=1), nn.BatchNorm2d(item), nn.ReLU(inplace=True)]
                channels = item
            else:
                layers += [nn.MaxPool2d(2, 2)]
        return nn.Sequential(*layers)


class Autoencoder(nn.Module):
    """A linear encoder and decoder around a code of four numbers. Shapes: (N, 16) to (N, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))
        self.decoder = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 16), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class Generator(nn.Module):
    """Noise to images by transposed convolutions, as in DCGAN. Shapes: (N, 8, 1, 1) to (N, 1, 16, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(8, 16, 4, 1, 0, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(True),
            nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(True),
            nn.ConvTranspose2d(8, 1, 4, 2, 1, bias=False),
            nn.Tanh(),
        )

    def forward(self, noise: Tensor) -> Tensor:
        return self.main(noise)


def discriminator() -> nn.Module:
    """Images to one score, every weight under spectral norm. Shapes: (N, 1, 16, 16) to (N, 1)."""
    return nn.Sequential(
        spectral_norm(nn.Conv2d(1, 8, 4, 2, 1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(8, 16, 4, 2, 1)),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        spectral_norm(nn.Linear(16 * 4 * 4, 1)),
    )


def lazy() -> nn.Module:
    """Layers that learned their sizes from a first batch. Shapes: (N, 2, 16) to (N, 3)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Lazy modules are a new feature")
        model = nn.Sequential(
            nn.LazyConv1d(8, 3),
            nn.ReLU(),
            nn.LazyConv1d(8, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.LazyLinear(16),
            nn.ReLU(),
            nn.LazyLinear(3),
        )
    model(torch.zeros(1, 2, 16))
    return model


class FunctionalWeights(nn.Module):
    """A perceptron without any layer module: parameters and `F.linear`. Shapes: (N, 8) to (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(16, 8) / 8**0.5)
        self.b1 = nn.Parameter(torch.zeros(16))
        self.w2 = nn.Parameter(torch.randn(3, 16) / 16**0.5)
        self.b2 = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(F.linear(x, self.w1, self.b1)), self.w2, self.b2)
