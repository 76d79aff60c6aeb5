"""What a legal policy is, and the two things a search is told about the world: predictors and costs.

Symbols used all over the package: d groups, b policies in a batch, n measured policies.
A policy is an integer keep-count per group, (d,); its fraction is keep-count / size, (d,) in (0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Policies = NDArray[np.int64]  # (b, d) or (d,) keep-counts


class Predictor(Protocol):
    """Learns policy -> accuracy."""

    def fit(self, policies: Tensor, accuracy: Tensor) -> None:
        """Learn from kept fractions (n, d) in [0, 1] and accuracies (n,) in [0, 1]."""
        ...

    def predict(self, policies: Tensor) -> tuple[Tensor, Tensor]:
        """Kept fractions (b, d) -> mean (b,), standard deviation (b,); differentiable in the fractions."""
        ...


class Cost(Protocol):
    """What a policy costs in one unit."""

    @property
    def unit(self) -> str: ...

    def __call__(self, policies: Tensor) -> Tensor:
        """Keep-counts (b, d) float64 -> (b,) float64; exact at integers, differentiable between, never falling
        when a keep-count grows.
        """
        ...


@dataclass(frozen=True)
class Cap:
    """The largest cost allowed, in the cost's own unit."""

    cost: Cost
    limit: float


@dataclass(frozen=True)
class Space:
    """All legal policies: group i keeps step[i], 2 step[i], ..., size[i] channels.

    Attributes:
        names: (d,) one name a group, unique.
        sizes: (d,) channels of the dense network.
        steps: (d,) divides sizes.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.sizes) == len(self.steps) == len(set(self.names)):
            raise ValueError("`names`, `sizes` and `steps` must have one entry a group, names unique")
        for name, size, step in zip(self.names, self.sizes, self.steps, strict=True):
            if step < 1 or size < 1 or size % step:
                raise ValueError(f"the step must be positive and divide the size, but {name} has {size=}, {step=}")

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def high(self) -> Policies:
        return np.array(self.sizes, dtype=np.int64)

    @cached_property
    def low(self) -> Policies:
        return np.array(self.steps, dtype=np.int64)

    @cached_property
    def levels(self) -> Policies:
        """How many legal keep-counts each group has, (d,)."""
        return self.high // self.low

    def fractions(self, policies: Policies | Tensor) -> Tensor:
        """Keep-counts (..., d) -> kept fractions (..., d), float32: the one scaling every predictor sees."""
        counts = torch.as_tensor(policies, dtype=torch.float64)
        return (counts / torch.as_tensor(self.high, dtype=torch.float64)).float()

    def is_legal(self, policies: Policies) -> NDArray[np.bool_]:
        """(..., d) -> (...): every keep-count is on its group's grid."""
        inside = (policies >= self.low) & (policies <= self.high) & (policies % self.low == 0)
        legal: NDArray[np.bool_] = inside.all(axis=-1)
        return legal

    def nearest(self, counts: NDArray[np.float64]) -> Policies:
        """Any real counts (..., d) -> the nearest legal policies."""
        return np.clip(np.rint(counts / self.low), 1, self.levels).astype(np.int64) * self.low


def costs_of(policies: Policies, caps: tuple[Cap, ...]) -> NDArray[np.float64]:
    """Cost of (b, d) policies in units of each cap's limit, (b, number of caps); feasible where all are <= 1."""
    counts = torch.as_tensor(policies, dtype=torch.float64)
    return np.stack([(cap.cost(counts) / cap.limit).numpy() for cap in caps], axis=-1)


def is_feasible(policies: Policies, caps: tuple[Cap, ...]) -> NDArray[np.bool_]:
    """(b, d) -> (b,): the exact cost is at most the limit, for every cap."""
    counts = torch.as_tensor(policies, dtype=torch.float64)
    within = np.ones(len(policies), dtype=np.bool_)
    for cap in caps:
        within &= (cap.cost(counts) <= cap.limit).numpy()
    return within
