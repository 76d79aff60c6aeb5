"""Means over seeds with their intervals, and differences in pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t


@dataclass(frozen=True)
class Interval:
    """A mean over n seeds and its 95 % interval by Student's t; no ends where n is 1."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half(self) -> float | None:
        """Half of the interval's width."""
        return None if self.high is None else self.high - self.mean


def interval(values: Sequence[float]) -> Interval:
    """Of n >= 1 finite values."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Interval(mean, None, None, n)
    half = float(t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


@dataclass(frozen=True)
class Sample:
    """A number a seed.

    Attributes:
        fixed: of a deterministic method: every seed repeats one and the same search, which counts once.
    """

    by_seed: Mapping[int, float]
    fixed: bool = False

    @property
    def interval(self) -> Interval:
        """Over the searches that differ. There is at least one."""
        values = list(self.by_seed.values())
        return interval(values[:1] if self.fixed else values)


def paired(ours: Sample, theirs: Sample) -> Interval | None:
    """Ours minus theirs over the seeds that both have, of which one that is fixed has all; None where there is none."""
    if not ours.by_seed or not theirs.by_seed:
        return None
    if ours.fixed and theirs.fixed:
        return interval([ours.interval.mean - theirs.interval.mean])
    seeds = set.intersection(*(set(side.by_seed) for side in (ours, theirs) if not side.fixed))
    return interval([_at(ours, seed) - _at(theirs, seed) for seed in sorted(seeds)]) if seeds else None


def _at(sample: Sample, seed: int) -> float:
    return sample.interval.mean if sample.fixed else sample.by_seed[seed]


def places(means: Mapping[str, float]) -> dict[str, int]:
    """Name -> place by falling mean, from 1; equals share the better place."""
    return {name: 1 + sum(other > mean for other in means.values()) for name, mean in means.items()}


def spread(groups: Sequence[Sequence[float]]) -> tuple[float | None, float | None]:
    """Standard deviation of the means of groups, and the one pooled within them; None where too few tell."""
    means = [float(np.mean(group)) for group in groups]
    between = float(np.std(means, ddof=1)) if len(means) > 1 else None
    freedom = sum(len(group) - 1 for group in groups)
    if freedom < 1:
        return between, None
    squares = sum(float(np.sum((np.array(group) - mean) ** 2)) for group, mean in zip(groups, means, strict=True))
    return between, math.sqrt(squares / freedom)
