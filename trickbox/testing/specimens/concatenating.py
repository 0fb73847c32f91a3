"""Convolutional nets that join by concatenation."""
# What a module returns is Any to a type checker.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseLayer(nn.Module):
    """Four new channels from all that came before, behind which they are put."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 8, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 4, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.norm1(x)))
        out = self.conv2(F.relu(self.norm2(out)))
        return torch.cat([x, out], 1)


class DenseNet(nn.Module):
    """Two dense blocks of two layers, and a transition between them. Shapes: (N, 3, 16, 16) to (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict[str, nn.Module](
                conv0=nn.Conv2d(3, 8, 3, padding=1, bias=False),
                norm0=nn.BatchNorm2d(8),
                relu0=nn.ReLU(inplace=True),
                pool0=nn.MaxPool2d(2),
                denseblock1=nn.Sequential(DenseLayer(8), DenseLayer(12)),
                transition1=nn.Sequential(
                    nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.Conv2d(16, 8, 1, bias=False), nn.AvgPool2d(2)
                ),
                denseblock2=nn.Sequential(DenseLayer(8), DenseLayer(12)),
                norm5=nn.BatchNorm2d(16),
            )
        )
        self.classifier = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.features(x), inplace=True)
        out = F.adaptive_avg_pool2d(out, (1, 1))
        return self.classifier(torch.flatten(out, 1))


class BasicConv2d(nn.Module):
    """A convolution, a batch norm and a functional ReLU in place."""

    def __init__(self, channels: int, features: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, features, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(features, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Inception(nn.Module):
    """Three ways from the same input side by side: sixteen channels out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch1 = BasicConv2d(channels, 4, 1)
        self.branch2 = nn.Sequential(BasicConv2d(channels, 4, 1), BasicConv2d(4, 8, 3))
        self.branch3 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), BasicConv2d(channels, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x)], 1)


class InceptionNet(nn.Module):
    """Two inception modules, and a dropout of its own in front of the head. Shapes: (N, 3, 16, 16) to (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = BasicConv2d(3, 8, 3)
        self.maxpool1 = nn.MaxPool2d(2)
        self.inception3a = Inception(8)
        self.inception3b = Inception(16)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = nn.Dropout(0.4)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool1(self.conv1(x))
        x = self.inception3b(self.inception3a(x))
        x = torch.flatten(self.avgpool(x), 1)
        return self.fc(self.dropout(x))


def double_conv(channels: int, features: int) -> nn.Sequential:
    """Two convolutions, each with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, features, 3, padding=1, bias=False),
        nn.BatchNorm2d(features),
        nn.ReLU(inplace=True),
        nn.Conv2d(features, features, 3, padding=1, bias=False),
        nn.BatchNorm2d(features),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """Two levels down, and up again next to what was there on the way. Shapes: (N, 1, 16, 16) to (N, 2, 16, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder1 = double_conv(1, 4)
        self.encoder2 = double_conv(4, 8)
        self.pool = nn.MaxPool2d(2)
        self.bottleneck = double_conv(8, 16)
        self.upconv2 = nn.ConvTranspose2d(16, 8, kernel_size=2, stride=2)
        self.decoder2 = double_conv(16, 8)
        self.upconv1 = nn.ConvTranspose2d(8, 4, kernel_size=2, stride=2)
        self.decoder1 = double_conv(8, 4)
        self.conv = nn.Conv2d(4, 2, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        enc1 = self.encoder1(x)
        enc2 = self.encoder2(self.pool(enc1))
        bottleneck = self.bottleneck(self.pool(enc2))
        dec2 = self.decoder2(torch.cat((self.upconv2(bottleneck), enc2), dim=1))
        dec1 = self.decoder1(torch.cat((self.upconv1(dec2), enc1), dim=1))
        return self.conv(dec1)
