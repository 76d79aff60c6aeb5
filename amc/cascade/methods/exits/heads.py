"""What answers at an exit: pool, normalise, a hidden layer, logits.

Pooling has no parameters, so while a backbone is frozen the pooled features of a data set are computed once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d

FEATURES_MOST = 576  # pooled numbers of one example
GRID_MOST = 4  # places that a image's side is pooled to


@dataclass(frozen=True)
class HeadShape:
    """All that is needed to build a head again.

    Attributes:
        channel_dim: 1, or -1 where channels come last.
        grid: places that are left along each dimension that is no channel: (rows, columns) of maps, (places,) of
            sequences, (1,) of tokens, () where there is none.
        features: of one example after pooling.
        hidden: width of the hidden layer.
    """

    channel_dim: int
    grid: tuple[int, ...]
    features: int
    hidden: int
    classes: int

    @classmethod
    def of(cls, shape: tuple[int, ...], channel_dim: int, classes: int, hidden: int) -> HeadShape:
        """The head for features of `shape`, without the batch: maps, sequences, tokens or vectors.

        Maps keep as fine a grid as `FEATURES_MOST` allows: early layers have few channels, and where something is tells
        much. Tokens are averaged.
        """
        channels, places = (shape[0], shape[1:]) if channel_dim == 1 else (shape[-1], shape[:-1])
        side = 1
        if len(places) == 2 or (len(places) == 1 and channel_dim == 1):
            fitting = [g for g in range(1, GRID_MOST + 1) if channels * g ** len(places) <= FEATURES_MOST]
            side = max(fitting, default=1)
        grid = tuple(min(side, place) for place in places)
        features = channels
        for place in grid:
            features *= place
        return cls(channel_dim, grid, features, hidden, classes)

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        return {**asdict(self), "grid": list(self.grid)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> HeadShape:
        """The inverse of `to_json`."""
        return cls(**{**record, "grid": tuple(record["grid"])})


class Pool(nn.Module):
    """Means over places: maps (b, C, H, W) or (b, H, W, C), sequences (b, C, L), tokens (b, T, C) -> (b, features)."""

    def __init__(self, channel_dim: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.channel_dim, self.grid = channel_dim, grid

    def forward(self, features: Tensor) -> Tensor:
        if not self.grid:
            return features
        if all(places == 1 for places in self.grid):
            first = 2 if self.channel_dim == 1 else 1
            return features.mean(tuple(range(first, first + len(self.grid))))
        maps = features if self.channel_dim == 1 else features.movedim(-1, 1)
        pooled = (
            adaptive_avg_pool2d(maps, self.grid) if len(self.grid) == 2 else adaptive_avg_pool1d(maps, self.grid[0])
        )
        return pooled.flatten(1)


class ExitHead(nn.Module):
    """Pool, BatchNorm, a hidden layer, logits: features of one shape -> (b, classes)."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.shape = shape
        self.pool = Pool(shape.channel_dim, shape.grid)
        self.classify = nn.Sequential(
            nn.BatchNorm1d(shape.features),
            nn.Linear(shape.features, shape.hidden),
            nn.ReLU(),
            nn.Linear(shape.hidden, shape.classes),
        )

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classify(self.pool(features))
        return logits


def head_of(shape: HeadShape, seed: int = 0) -> ExitHead:
    """A head with random weights drawn from `seed`; torch's own random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ExitHead(shape)
