"""What a legal policy is, and the two things a search is given about the world: predictors and costs.

Symbols used all over the package: d groups, b policies in a batch, n measured policies.
A policy is an integer keep-count per group, (d,); its fraction is keep-count / size, (d,) in [0, 1]. A group is dropped
where it keeps 0 channels: only removable ones may be, such as the inner channels of a residual branch.
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
    """All legal policies: group i keeps step[i], 2 step[i], ..., size[i] channels, or 0 where it is removable.

    Attributes:
        names: (d,) one name a group, unique.
        sizes: (d,) channels of the dense network.
        steps: (d,) divides sizes.
        removable: (d,) whether the group may keep 0 channels; empty means that none may.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    steps: tuple[int, ...]
    removable: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.sizes) == len(self.steps) == len(set(self.names)):
            raise ValueError("`names`, `sizes` and `steps` must have one entry a group, names unique")
        if len(self.removable) not in (0, len(self.names)):
            raise ValueError(f"`removable` must be empty or have one entry a group, but has {len(self.removable)}")
        for name, size, step in zip(self.names, self.sizes, self.steps, strict=True):
            if step < 1 or size < 1 or size % step:
                raise ValueError(f"the step must be positive and divide the size, but {name} has {size=}, {step=}")

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def high(self) -> Policies:
        return np.array(self.sizes, dtype=np.int64)

    @cached_property
    def step(self) -> Policies:
        return np.array(self.steps, dtype=np.int64)

    @cached_property
    def may_drop(self) -> NDArray[np.bool_]:
        """`removable` with an entry for every group, (d,)."""
        return np.array(self.removable or (False,) * len(self), dtype=np.bool_)

    @cached_property
    def low(self) -> Policies:
        """The smallest policy, (d,): 0 where removable, else one step."""
        return np.where(self.may_drop, 0, self.step)

    @cached_property
    def levels(self) -> Policies:
        """How many legal keep-counts each group has, (d,)."""
        return self.high // self.step + self.may_drop

    def fractions(self, policies: Policies | Tensor) -> Tensor:
        """Keep-counts (..., d) -> kept fractions (..., d), float32: the one scaling every predictor sees."""
        counts = torch.as_tensor(policies, dtype=torch.float64)
        return (counts / torch.as_tensor(self.high, dtype=torch.float64)).float()

    def is_legal(self, policies: Policies) -> NDArray[np.bool_]:
        """(..., d) -> (...): every keep-count is on its group's grid."""
        inside = (policies >= self.low) & (policies <= self.high) & (policies % self.step == 0)
        legal: NDArray[np.bool_] = inside.all(axis=-1)
        return legal

    def nearest(self, counts: NDArray[np.float64], least: Policies | None = None) -> Policies:
        """Any real counts (..., d) -> the nearest legal policies, none below `least` (..., d), itself legal."""
        multiples = np.rint(counts / self.step)
        lowest = (self.low if least is None else least) // self.step
        return np.clip(multiples, lowest, self.high // self.step).astype(np.int64) * self.step

    def log_fractions(self, policies: Policies) -> NDArray[np.float64]:
        """Keep-counts (..., d) -> log kept fractions (..., d), to compare policies in; 0 is taken for half a step."""
        logs: NDArray[np.float64] = np.log(np.maximum(policies, self.step / 2) / self.high)
        return logs


def costs_of(policies: Policies | NDArray[np.float64], caps: tuple[Cap, ...]) -> NDArray[np.float64]:
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
