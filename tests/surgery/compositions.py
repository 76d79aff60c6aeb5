"""Small networks of convolutions, each with one way of dividing, joining, weighing or moving channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, glu, relu, softmax

from tests.surgery.networks import chain
from tests.surgery.transformers import Case


class Net(nn.Module):
    """A stem of 16 channels, a middle part that gives `width` channels, a convolution, a classifier."""

    def __init__(self, middle: nn.Module, width: int, stem: int = 16) -> None:
        super().__init__()
        self.stem, self.middle = nn.Conv2d(3, stem, 3, padding=1), middle
        self.last, self.fc = nn.Conv2d(width, 16, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(relu(self.last(self.middle(relu(self.stem(x))))).mean((2, 3)))
        return out


class Halves(nn.Module):
    """`glu`: one half of the channels gates the other."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(16, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        return glu(self.wide(x), 1)


class Uneven(nn.Module):
    """ConvNeXt's neighbours: `split` into parts whose sizes are attributes, joined again in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.dims = (4, 12)
        self.small, self.large = nn.Conv2d(4, 8, 1), nn.Conv2d(12, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(x, self.dims, 1)
        return torch.cat([self.large(b), self.small(a)], 1)


class Shuffle(nn.Module):
    """ShuffleNet's: half of the channels pass, half are convolved, then both are interleaved."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        x = torch.cat([left, self.outer(relu(self.inner(right)))], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).flatten(1, 2)


class Radix(nn.Module):
    """ResNeSt's split attention: two radices, weighed by a softmax over them, summed."""

    def __init__(self) -> None:
        super().__init__()
        self.radix = 2
        self.conv, self.down, self.up = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(12, 8, 1), nn.Conv2d(8, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        b, rc, h, w = x.shape
        x = x.reshape(b, self.radix, rc // self.radix, h, w)
        weights = self.up(relu(self.down(x.sum(1).mean((2, 3), keepdim=True))))
        weights = softmax(weights.view(b, self.radix, -1), 1).reshape(b, self.radix, -1, 1, 1)
        return (x * weights).sum(1)


class Excite(nn.Module):
    """Squeeze-and-excite."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, 8), nn.Linear(8, width)

    def forward(self, x: Tensor) -> Tensor:
        scale: Tensor = self.up(relu(self.down(x.mean((2, 3))))).sigmoid()
        return x * scale[:, :, None, None]


class Stacked(nn.Module):
    """Branches on a dimension of their own, and their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(16, 12, 1), nn.Conv2d(16, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.a(x), self.b(x).tanh()], 0).mean(0)


class Mixed(nn.Module):
    """Channels mixed by a matrix of the module's own, in an `einsum`."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(12, 16) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("oc,bchw->bohw", self.matrix, x)


class Written(nn.Module):
    """An empty tensor is filled part by part."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = x.new_zeros(x.shape[0], 16, *x.shape[2:])
        out[:, :8] = self.a(x)
        out[:, 8:] = self.b(x)
        return out


class Added(nn.Module):
    """In place: a part of the channels is added to."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.part = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.wide(x)
        y[:, 4:12] += self.part(x)
        y.relu_()
        return y


class Constant(nn.Module):
    """Buffers beside the channels, one of them not in the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(16))
        self.register_buffer("spread", torch.rand(1, 16, 1, 1) + 0.5, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean[:, None, None]) * self.spread  # type: ignore[no-any-return, index, operator]


class Standardised(nn.Conv2d):
    """A convolution by weights of zero mean and variance one."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.flatten(1).std(1).view(-1, 1, 1, 1) + 1e-5)
        return conv2d(x, weight, self.bias, self.stride, self.padding)


class Scaled(nn.Module):
    """ConvNeXt's branch: depthwise, a layer norm over channels last, an MLP, a scale for every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.depth, self.norm = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.LayerNorm(16)
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)
        self.gamma = nn.Parameter(torch.rand(16))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        y = self.fc2(relu(self.fc1(y))) * self.gamma
        out: Tensor = x + y.permute(0, 3, 1, 2)
        return out


class Selective(nn.Module):
    """SKNet's: branches of two kernels, stacked, weighed by a softmax over the branches."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(16, 12, 3, padding=1), nn.Conv2d(16, 12, 3, padding=2, dilation=2)
        self.down, self.up = nn.Conv2d(12, 8, 1), nn.Conv2d(8, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([self.a(x), self.b(x)], 1)
        weights = self.up(relu(self.down(both.sum(1).mean((2, 3), keepdim=True))))
        return (both * softmax(weights.view(-1, 2, both.shape[2], 1, 1), 1)).sum(1)


class InARow(nn.Module):
    """Parts one after the other, each between convolutions that give it its channels; some beside an identity path."""

    def __init__(self, parts: list[tuple[nn.Module, int, bool]]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(part for part, _, _ in parts)
        self.back = nn.ModuleList(nn.Conv2d(width, 16, 1) for _, width, _ in parts)
        self.residual = [residual for _, _, residual in parts]

    def forward(self, x: Tensor) -> Tensor:
        for part, back, residual in zip(self.parts, self.back, self.residual, strict=True):
            y = back(part(x))
            x = relu(x + y if residual and y.shape == x.shape else y)
        return x


MIDDLES: dict[str, tuple[Callable[[], nn.Module], int]] = {  # of 16 channels, and how many come out
    "halves": (Halves, 12),
    "uneven parts": (Uneven, 20),
    "shuffle": (Shuffle, 16),
    "pixel shuffle": (lambda: nn.PixelShuffle(2), 4),
    "split attention": (Radix, 12),
    "squeeze-excite": (Excite, 16),
    "stack": (Stacked, 12),
    "einsum": (Mixed, 12),
    "written by parts": (Written, 16),
    "added in place": (Added, 16),
    "buffers": (Constant, 16),
    "standardised": (lambda: Standardised(16, 12, 3), 12),
    "convnext": (Scaled, 16),
    "selective": (Selective, 12),
    "pooled and upsampled": (
        lambda: nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(16, 12, 1), nn.Upsample(scale_factor=2)),
        12,
    ),
}


def in_a_row(parts: list[tuple[str, bool]]) -> nn.Module:
    """A network of some of these parts, by their names and whether they have an identity path."""
    built = [(MIDDLES[kind][0](), MIDDLES[kind][1], residual) for kind, residual in parts]
    return Net(InARow(built), 16)


def _case(kind: str, groups: dict[str, int], **more: Any) -> Case:
    middle, width = MIDDLES[kind]
    return Case(lambda: Net(middle(), width), groups, **more)


STEM = {"stem": 16, "last": 16}
CASES: dict[str, Case] = {
    "halves": _case("halves", STEM | {"middle.wide": 24}),
    "uneven parts": _case(
        "uneven parts",
        {"stem": 4, "stem#2": 12, "middle.small": 8, "middle.large": 12, "last": 16},
        integers={"middle": {"dims": ("stem", "stem#2")}},
    ),
    "shuffle": _case("shuffle", {"stem:width": 8, "middle.inner": 12, "last": 16}),
    "pixel shuffle": _case("pixel shuffle", STEM),
    "split attention": _case("split attention", STEM | {"middle.conv": 24, "middle.down": 8}),
    "squeeze-excite": _case("squeeze-excite", STEM | {"middle.down": 8}),
    "stack": _case("stack", STEM | {"middle.a": 12}),
    "einsum": _case("einsum", STEM | {"middle": 12}),
    "written by parts": _case("written by parts", STEM),
    "added in place": _case("added in place", STEM),
    "buffers": _case("buffers", STEM),
    "standardised": _case("standardised", STEM | {"middle": 12}),
    "convnext": _case("convnext", STEM | {"middle.fc1": 32}, removable=("middle.fc1",)),
    "selective": _case("selective", STEM | {"middle.a": 12, "middle.down": 8}),
    "group norm of one": Case(lambda: chain(nn.GroupNorm(1, 32)), {"0": 32, "3": 16}),
    "pooled and upsampled": _case("pooled and upsampled", STEM | {"middle.1": 12}),
}


def make(kind: str) -> nn.Module:
    """A user's factory."""
    factory: Callable[[], nn.Module] = CASES[kind].make
    return factory()
