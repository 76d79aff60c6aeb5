"""Networks to cut: real ones, traced once for all tests, and small ones made of one trap each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import relu

from amc.cost.counts import ProductCost, count_bytes, count_macs, count_params
from amc.surgery.channel_table import ChannelTable, build_table, kept_channels, ranks
from amc.surgery.cutting import Kept, cut_channels, zero_channels
from amc.surgery.random_parameters import randomise
from amc.surgery.tracer import trace
from amc.zoo.networks.source import build_model

RELATIVE = 1e-4  # float32, tens of layers, another order of summation: outputs agree to this share of the largest
SIZES = {"resnet20": 16, "resnet18": 32, "mobilenet_v2": 32, "densenet121": 32, "resnext50_32x4d": 32,
         "efficientnet_b0": 32, "vgg_small": 16}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Traced:
    """A network in `eval` mode with random numbers everywhere, its table and its costs."""

    model: nn.Module
    table: ChannelTable
    inputs: Tensor
    costs: dict[str, ProductCost]

    def kept(self, policy: NDArray[np.int64], seed: int = 0) -> Kept:
        """Which units a policy leaves, under a random ranking."""
        scores = torch.rand(len(self.table.channel_group), generator=torch.Generator().manual_seed(seed))
        return kept_channels(self.table, ranks(self.table, scores), policy)


def traced(model: nn.Module, shape: tuple[int, ...], round_to: int = 8) -> Traced:
    """Trace a network as it is, with none of the proofs of `trace_groups`."""
    inputs = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    table = build_table(model, trace(model, inputs), round_to)
    return Traced(model, table, inputs, costs(model, table))


def costs(model: nn.Module, table: ChannelTable) -> dict[str, ProductCost]:
    return {"macs": count_macs(table), "params": count_params(model, table), "bytes": count_bytes(model, table)}


@lru_cache
def known(name: str) -> Traced:
    """One of the zoo's networks, on pictures of `SIZES`."""
    size = SIZES[name]
    model = build_model(name, num_classes=10, size=size if name == "vgg_small" else None)
    return traced(randomise(model), (3, size, size))


@st.composite
def policies(draw: st.DrawFn, table: ChannelTable) -> NDArray[np.int64]:
    """A legal policy: uniformly random counts, with the dense and the smallest width likely for each group."""
    return random_policy(table, draw(st.integers(0, 2**31)))


def random_policy(table: ChannelTable, seed: int) -> NDArray[np.int64]:
    """Uniformly random legal counts, with the dense and the smallest width, be it nothing, likely for each group."""
    rng, space = np.random.default_rng(seed), table.space
    counts = space.step * rng.integers(1, space.high // space.step + 1)
    edge = rng.random(len(space))
    drawn: NDArray[np.int64] = np.where(edge < 0.15, space.low, np.where(edge > 0.85, space.high, counts))
    return drawn


def assert_cut_is_mask(net: Traced, kept: Kept) -> nn.Module:
    """The cut network computes what the dense one does with the removed channels zero; returns the cut network."""
    small = cut_channels(net.model, net.table, kept)
    with torch.no_grad():
        ours, full = small(net.inputs), zero_channels(net.model, net.table, kept)(net.inputs)
        dense = net.model(net.inputs)
    assert ours.shape == full.shape == dense.shape
    assert float((ours - full).abs().max()) <= RELATIVE * max(float(full.abs().max()), float(dense.abs().max()))
    return small


class PlainConv(nn.Conv2d):
    """A subclass, as libraries have many."""


class Branches(nn.Module):
    """DenseNet-like: every layer reads the concatenation of all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(24, 16, 1)
        self.norm = nn.BatchNorm2d(24)
        self.fc = nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = relu(self.a(x))
        ab = torch.cat([a, self.b(a)], 1)
        c = self.c(relu(self.norm(ab)))
        out: Tensor = self.fc(torch.cat([ab, c], 1).mean((2, 3)))
        return out


class Gated(nn.Module):
    """`chunk` into halves that meet again: channel i and i + 16 leave together."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 32, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.a(x).chunk(2, 1)
        out: Tensor = self.fc(self.b(value * gate.sigmoid()).mean((2, 3)))
        return out


class Forked(nn.Module):
    """`chunk` into halves that go separate ways: cut unevenly, the halves are no longer halves."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 32, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(x).chunk(2, 1)
        out: Tensor = self.fc((self.b(left) + self.c(right)).mean((2, 3)))
        return out


class FixedSplit(nn.Module):
    """`split` at widths written into the code: each part has a group of its own, and the widths follow."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 32, 3), nn.Conv2d(8, 16, 3), nn.Conv2d(24, 16, 3)
        self.d, self.fc = nn.Conv2d(16, 16, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(x).split([8, 24], 1)
        out: Tensor = self.fc(self.d(self.b(left) + self.c(right)).mean((2, 3)))
        return out


class Shuffled(nn.Module):
    """A channel shuffle by `view`: halves and places within a half."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 16, 3), nn.Conv2d(16, 16, 3)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        out: Tensor = self.fc(self.c(relu(self.b(x))).mean((2, 3)))
        return out


class WrittenShape(nn.Module):
    """A width written into the code, which follows the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(relu(self.a(x)))
        out: Tensor = self.fc(x.mean((2, 3)).view(-1, 16))
        return out


class Tied(nn.Module):
    """Two convolutions that are two modules with one weight, reading different groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.d, self.fc = nn.Conv2d(16, 16, 3), nn.Linear(16, 5)
        self.c.weight = self.b.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(relu(self.d(self.c(relu(self.b(relu(self.a(x))))))).mean((2, 3)))
        return out


class TiedReaders(nn.Module):
    """Two modules with one weight that read the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Linear(16, 5), nn.Linear(16, 5)
        self.c.weight = self.b.weight

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.a(x)).mean((2, 3))
        out: Tensor = self.b(x) + self.c(x).tanh()
        return out


class Twice(nn.Module):
    """One module that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 24, 3)
        self.fc = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.c(self.b(relu(self.b(self.a(x))))).mean((2, 3)))
        return out


class Stream(nn.Module):
    """A residual stream whose writers have three names and one coordinate."""

    def __init__(self, kind: type[nn.Conv2d] = nn.Conv2d) -> None:
        super().__init__()
        self.stem = kind(3, 32, 3, padding=1)
        self.inner, self.outer = kind(32, 24, 3, padding=1), kind(24, 32, 3, padding=1)
        self.project, self.fc = kind(32, 32, 1), nn.Linear(32, 5)
        self.norm = nn.BatchNorm2d(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.outer(relu(self.inner(x)))
        out: Tensor = self.fc(relu(self.norm(x + self.project(relu(x)))).mean((2, 3)))
        return out


def chain(*middle: nn.Module, width: int = 32, out: int = 16) -> nn.Module:
    """Conv -> middle -> conv -> classifier."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), *middle, nn.ReLU(), nn.Conv2d(width, out, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(out, 5),
    )  # fmt: skip


def flattened(width: int = 16) -> nn.Module:
    """A classifier behind a flattened picture of 4 x 4: 16 features a channel."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16 * width, 24), nn.ReLU(), nn.Linear(24, 5),
    )  # fmt: skip


# Small networks that can be cut, and how many groups each has.
SOUND: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "branches": (Branches, 3),
    "gated": (Gated, 2),
    "forked": (Forked, 2),
    "tied": (Tied, 2),
    "tied readers": (TiedReaders, 1),
    "twice": (Twice, 2),
    "stream": (Stream, 2),
    "subclass": (lambda: Stream(PlainConv), 2),
    "groupnorm": (lambda: chain(nn.GroupNorm(8, 32)), 2),
    "instancenorm": (lambda: chain(nn.InstanceNorm2d(32, affine=True)), 2),
    "bare batchnorm": (lambda: chain(nn.BatchNorm2d(32, affine=False)), 2),
    "prelu": (lambda: chain(nn.PReLU(32)), 2),
    "prelu of one": (lambda: chain(nn.PReLU()), 2),
    "depthwise": (lambda: chain(nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.BatchNorm2d(32)), 2),
    "depthwise x 2": (lambda: chain(nn.Conv2d(32, 64, 3, padding=1, groups=32), nn.Conv2d(64, 32, 1)), 3),
    "grouped": (lambda: chain(nn.Conv2d(32, 32, 3, padding=1, groups=8), nn.BatchNorm2d(32)), 2),
    "grouped x 2": (lambda: chain(nn.Conv2d(32, 64, 3, padding=1, groups=8), nn.Conv2d(64, 32, 1)), 3),
    "transposed": (lambda: chain(nn.ConvTranspose2d(32, 24, 2, 2), nn.BatchNorm2d(24), nn.Conv2d(24, 32, 1)), 4),
    "flattened": (flattened, 2),
    "fixed split": (FixedSplit, 4),
    "shuffled": (Shuffled, 4),
    "written shape": (WrittenShape, 2),
}  # fmt: skip

# Networks with layers that cannot be cut: no crash, and they stay, with the reason.
UNSOUND: dict[str, Callable[[], nn.Module]] = {
    "bare groupnorm": lambda: chain(nn.GroupNorm(8, 32, affine=False)),
    "grouped transposed": lambda: chain(nn.ConvTranspose2d(32, 32, 3, 1, 1, groups=4)),
    "layernorm": lambda: chain(nn.LayerNorm([32, 12, 12])),
}
