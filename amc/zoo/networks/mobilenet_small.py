"""MobileNetV2 for small images (Sandler et al. 2018, arXiv 1801.04381): the first layers keep the image's size.

Widths, depths and expansions are the paper's table 2. The stem and the first stage that would halve the image do not,
so that 28 to 32 pixels end as 4 x 4, as is usual for CIFAR.
"""

from __future__ import annotations

from torch import Tensor, nn

STEM, LAST = 32, 1280
# expansion, channels, blocks, stride of the first block
STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow; with a shortcut where the shape stays. (B, C_in, H, W) -> (B, C_out, ...)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = expansion * in_channels
        self.has_shortcut = stride == 1 and in_channels == out_channels
        self.expand = _layer(in_channels, hidden, 1) if expansion > 1 else nn.Identity()
        self.filter = _layer(hidden, hidden, 3, stride, groups=hidden)
        self.narrow = nn.Sequential(nn.Conv2d(hidden, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.narrow(self.filter(self.expand(x)))
        return x + out if self.has_shortcut else out


class SmallMobileNetV2(nn.Module):
    """Stem, 17 inverted residuals, a last 1x1 layer, a classifier; (B, C, H, W) -> (B, classes)."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        channels = _eights(STEM * width)
        self.stem = _layer(in_channels, channels, 3)
        blocks: list[nn.Module] = []
        for expansion, base, number, stride in STAGES:
            for index in range(number):
                wide = _eights(base * width)
                blocks.append(InvertedResidual(channels, wide, stride if index == 0 else 1, expansion))
                channels = wide
        self.blocks = nn.Sequential(*blocks)
        last = _eights(LAST * max(1.0, width))
        self.last = _layer(channels, last, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(last, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.pool(self.last(self.blocks(self.stem(x)))).flatten(1))
        return out


def _layer(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(inplace=True),
    )


def _eights(channels: float) -> int:
    """The nearest multiple of 8, at least 8, and never less than nine tenths of what was asked (the paper's rule)."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near + 8 if near < 0.9 * channels else near


def mobilenet_v2_small(num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> SmallMobileNetV2:
    """MobileNetV2 for small images: 2.2 M parameters, 88 MMACs at 32x32; `width` multiplies all channels."""
    return SmallMobileNetV2(num_classes, in_channels, width)
