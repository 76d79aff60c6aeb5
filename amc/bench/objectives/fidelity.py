"""How well a trial orders policies as a long fine-tune does: Kendall, what its choice misses, what chance adds.

All values are such that higher is better. Intervals are percentiles over policies drawn anew (bootstrap).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from amc_predictor.ranks import kendall as tau

Reals = NDArray[np.float64]
Draws = NDArray[np.int64]  # (b, n) policies drawn with replacement

TOP = 5
ENOUGH_FOR_TOP = 2 * TOP  # policies: of fewer, the top is most of them
DRAWS = 1000
COVERAGE = 0.95
MATTERS, HARDLY = 3.0, 1.5  # of the ratio of the long values' spread to their seed noise


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Spread:
    """How much of what long values differ by is the policy's doing.

    Attributes:
        std: of the values of one seed, over all policies.
        noise: standard deviation of one policy's value over seeds; None without repeats.
        ratio: of the two.
        kendall: between two seeds, over the policies that have both: what no objective can be expected to exceed.
        word: whether the policy matters, in words.
    """

    std: float
    noise: float | None
    ratio: Estimate | None
    kendall: float | None
    word: str


def kendall(trial: Reals, long: Reals) -> float:
    """Kendall's tau-b of two (n,) values; 0 where either is constant."""
    return tau(torch.from_numpy(trial), torch.from_numpy(long))


def drawn_kendall(trial: Reals, long: Reals, draws: Draws) -> Reals:
    """`kendall` of each of (b, n) draws of policies, (b,)."""
    signs = (np.sign(of[:, None] - of).astype(np.int8) for of in (trial, long))
    left, right = (of[draws[:, :, None], draws[:, None]].reshape(len(draws), -1) for of in signs)
    agreed = (left * right).sum(1, dtype=np.int64)
    untied = np.sqrt(np.count_nonzero(left, 1) * np.count_nonzero(right, 1))
    found: Reals = np.divide(agreed, untied, out=np.zeros(len(draws)), where=untied > 0)
    return found


def regret(trial: Reals, long: Reals) -> float:
    """How far the best long value among the `TOP` by the trials is below the best of all, both (n,)."""
    return float(_regrets(trial[None], long[None])[0])


def _regrets(trial: Reals, long: Reals) -> Reals:
    """(b, n) values -> (b,) regrets."""
    top = np.argsort(-trial, axis=1, kind="stable")[:, :TOP]
    missed: Reals = long.max(1) - np.take_along_axis(long, top, 1).max(1)
    return missed


def estimated_kendall(trial: Reals, long: Reals, draws: Draws) -> Estimate:
    """Kendall's tau-b of two (n,) values with its interval."""
    return Estimate(kendall(trial, long), *_interval(drawn_kendall(trial, long, draws)))


def estimated_regret(trial: Reals, long: Reals, draws: Draws) -> Estimate:
    """`regret` of two (n,) values with its interval."""
    return Estimate(regret(trial, long), *_interval(_regrets(trial[draws], long[draws])))


def drawn(number: int, seed: int = 0) -> Draws:
    """(`DRAWS`, number) policies drawn anew, the same for all kinds, so that these can be compared in pairs."""
    return np.random.default_rng(seed).integers(number, size=(DRAWS, number))


def spread_of(values: Sequence[Sequence[float]], seed: int = 0) -> Spread:
    """The spread of long values, of each policy one a seed, in the order of the seeds; n >= 2 policies."""
    first = np.array([of[0] for of in values])
    repeated = np.array([np.var(of, ddof=1) for of in values if len(of) > 1])
    std = float(first.std(ddof=1))
    if not len(repeated):
        return Spread(std, None, None, None, "unknown: no policy was fine-tuned twice")
    noise = float(np.sqrt(repeated.mean()))
    rng = np.random.default_rng(seed)
    ratios = [
        _ratio(*(of[rng.integers(len(of), size=len(of))] for of in (first, repeated))) for _ in range(DRAWS)
    ]  # fmt: skip
    ratio = Estimate(_ratio(first, repeated), *_interval(np.array(ratios)))
    pairs = np.array([of[:2] for of in values if len(of) > 1])
    return Spread(std, noise, ratio, kendall(pairs[:, 0].copy(), pairs[:, 1].copy()), _word(ratio.value))


def _ratio(values: Reals, variances: Reals) -> float:
    return float(values.std(ddof=1) / max(np.sqrt(variances.mean()), 1e-12))


def _word(ratio: float) -> str:
    if ratio >= MATTERS:
        return "the policy matters"
    return "the policy matters little" if ratio >= HARDLY else "chance hides what the policy does"


def _interval(found: Reals) -> tuple[float, float]:
    low, high = np.quantile(found, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)
