"""Multi-scale dense networks for small images (Huang et al. 2018, arXiv 1703.09844), with exits of their own.

Every layer keeps maps at several scales: fine ones for what follows, the coarsest for the classifiers. Scales are given
up from the finest on as the network gets deeper, each time with 1x1 convolutions that halve the channels. Sizes are
those that the authors give for CIFAR: `anytime` has 7 exits evenly apart, `budgeted` 5, each farther from the last;
`small` is ours, `budgeted` with fewer channels and exits, for grey images and short trainings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]  # maps by scale, the finest first; each scale half as large as the one before

GROWTHS = (1, 2, 4)  # channels of each scale, as multiples of the finest one's; bottlenecks are as many times as wide


@dataclass(frozen=True)
class Sizes:
    """Of an MSDNet.

    Attributes:
        first: layers before the first exit.
        steps: layers between exits: `steps` each, or, growing, one more of `steps` each time.
        channels: of the first layer's finest scale.
        growth: channels that each layer adds to the finest scale.
        reduction: share of the channels that is left where a scale is given up.
        classifier: channels of each classifier's two convolutions.
    """

    exits: int
    first: int
    steps: int
    growing: bool
    channels: int = 16
    growth: int = 6
    reduction: float = 0.5
    classifier: int = 128

    @property
    def layers(self) -> tuple[int, ...]:
        """How many stand before each exit, counted from the exit before."""
        later = (self.steps * i + 1 if self.growing else self.steps for i in range(1, self.exits))
        return (self.first, *later)


VARIANTS = {
    "anytime": Sizes(exits=7, first=4, steps=2, growing=False),
    "budgeted": Sizes(exits=5, first=1, steps=1, growing=True),
    "small": Sizes(exits=4, first=1, steps=1, growing=True, channels=8, growth=4, classifier=32),
}


class Pyramid(nn.Module):
    """The first layer: one convolution a scale, each reading the finer one; (B, C, H, W) -> maps by scale."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        widths = [in_channels, *(channels * growth for growth in GROWTHS)]
        self.scales = nn.ModuleList(
            _layer(narrow, wide, 3, 1 if index == 0 else 2) for index, (narrow, wide) in enumerate(pairwise(widths))
        )

    def forward(self, images: Tensor) -> State:
        maps, state = images, []
        for scale in self.scales:
            maps = scale(maps)
            state.append(maps)
        return tuple(state)


class DenseScale(nn.Module):
    """What one layer adds to a scale: features of it and, where there is one, of the finer scale; then all joined."""

    def __init__(self, channels: int, finer: int | None, growth: int, scale: int) -> None:
        super().__init__()
        share = growth if finer is None else growth // 2
        self.same = _bottleneck(channels, share, GROWTHS[scale], 1)
        self.down = _bottleneck(finer, share, GROWTHS[scale - 1], 2) if finer is not None else None

    def forward(self, maps: Tensor, finer: Tensor | None) -> Tensor:
        if self.down is None or finer is None:
            return torch.cat([maps, self.same(maps)], 1)
        return torch.cat([maps, self.down(finer), self.same(maps)], 1)


class MultiScaleLayer(nn.Module):
    """A layer that reads `before` scales and keeps the coarsest `after` of them."""

    def __init__(self, channels: int, growth: int, before: int, after: int) -> None:
        super().__init__()
        self.dropped = before - after
        self.scales = nn.ModuleList()
        for scale in range(len(GROWTHS) - after, len(GROWTHS)):
            has_finer = len(self.scales) > 0 or self.dropped > 0
            finer = channels * GROWTHS[scale - 1] if has_finer else None
            self.scales.append(DenseScale(channels * GROWTHS[scale], finer, growth * GROWTHS[scale], scale))

    def forward(self, state: State) -> State:
        finer = state[self.dropped - 1] if self.dropped else None
        grown = []
        for layer, maps in zip(self.scales, state[self.dropped :], strict=True):
            grown.append(layer(maps, finer))
            finer = maps
        return tuple(grown)


class Transition(nn.Module):
    """Fewer channels at every scale that is left."""

    def __init__(self, before: int, after: int, scales: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            _layer(before * growth, after * growth, 1, 1) for growth in GROWTHS[len(GROWTHS) - scales :]
        )

    def forward(self, state: State) -> State:
        return tuple(layer(maps) for layer, maps in zip(self.scales, state, strict=True))


class Classifier(nn.Module):
    """An exit: two convolutions on the coarsest scale, a mean over places, logits (B, classes)."""

    def __init__(self, channels: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(_layer(channels, width, 3, 2), _layer(width, width, 3, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, state: State) -> Tensor:
        logits: Tensor = self.linear(self.pool(self.layers(state[-1])).flatten(1))
        return logits


class MSDNet(nn.Module):
    """Blocks with a classifier behind each; (B, C, H, W) -> the last classifier's logits (B, classes)."""

    def __init__(self, sizes: Sizes, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.blocks, self.classifiers = nn.ModuleList(), nn.ModuleList()
        channels, done, whole = sizes.channels, 0, sum(sizes.layers)
        interval = math.ceil(whole / len(GROWTHS))  # layers after which a scale is given up
        scales = len(GROWTHS)
        for number in sizes.layers:
            parts: list[nn.Module] = [Pyramid(in_channels, sizes.channels)] if done == 0 else []
            for _ in range(number):
                left = len(GROWTHS) - done // interval
                parts.append(MultiScaleLayer(channels, sizes.growth, scales, left))
                channels, done = channels + sizes.growth, done + 1
                if left < scales:
                    fewer = math.floor(sizes.reduction * channels)
                    parts.append(Transition(channels, fewer, left))
                    channels = fewer
                scales = left
            self.blocks.append(nn.Sequential(*parts))
            self.classifiers.append(Classifier(channels * GROWTHS[-1], sizes.classifier, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        state: Tensor | State = images
        for block in self.blocks:
            state = block(state)
        logits: Tensor = self.classifiers[-1](state)
        return logits

    def exit_parts(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """Blocks, each from the state that the one before left (the first from images), and their classifiers."""
        return list(self.blocks), list(self.classifiers)


def _layer(in_channels: int, out_channels: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def _bottleneck(in_channels: int, out_channels: int, width: int, stride: int) -> nn.Sequential:
    """A 1x1 convolution to at most `width` times the outputs, then a 3x3."""
    inner = min(in_channels, width * out_channels)
    return nn.Sequential(*_layer(in_channels, inner, 1, 1), *_layer(inner, out_channels, 3, stride))


def msdnet(num_classes: int = 10, in_channels: int = 3, variant: str = "budgeted") -> MSDNet:
    """MSDNet for small images: `anytime` (7 exits) or `budgeted` (5), the paper's two for CIFAR; `small` (4) is ours.

    Raises:
        ValueError: the variant is none of these.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, but is {variant!r}")
    return MSDNet(VARIANTS[variant], num_classes, in_channels)
