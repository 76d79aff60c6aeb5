"""VGG-small, the six-convolution VGG of the quantization literature (Cai et al. 2017, HWGQ, arXiv 1702.00953)."""

from __future__ import annotations

from torch import Tensor, nn

WIDTHS = (128, 128, 256, 256, 512, 512)


class VGGSmall(nn.Module):
    """Six 3x3 convolutions, halved in size after every second one; (B, C, H, W) -> (B, classes)."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3, size: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for index, width in enumerate(WIDTHS):
            layers += [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            if index % 2:
                layers.append(nn.MaxPool2d(2))
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * (size // 8) ** 2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.features(x).flatten(1))
        return out


def vgg_small(num_classes: int = 10, in_channels: int = 3, size: int = 32) -> VGGSmall:
    """VGG-small: 4.7 M parameters, 0.61 GMACs at 32x32."""
    return VGGSmall(num_classes, in_channels, size)
