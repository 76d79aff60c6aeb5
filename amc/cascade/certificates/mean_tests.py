"""Tests and bounds of a mean from n independent examples that are valid for every n: no normal approximation.

A p-value here is of the hypothesis "the mean is above `mean`": small where the examples speak for a smaller mean. It is
at most `delta` with probability `delta` or less while the hypothesis is true. Its bound is the other side of it:
the largest mean that is not rejected at `delta`.

Which test is used depends on what values a loss can have, never on the values seen:

- two values: exact binomial, Clopper and Pearson 1934;
- -1, 0, 1 (two answers to one example compared): exact over both unknown shares. The ordering of outcomes is fixed, so
  the bound is Buehler's; the share of examples that differ is first confined to an interval, Berger and Boos 1994;
- any values in an interval: betting, Waudby-Smith and Ramdas, arXiv 2010.09686.

McNemar's conditional test is of the hypothesis "the mean is 0" and says nothing of one above it: it has no place here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import bdtr
from scipy.stats import beta, binom, norm

Array = NDArray[np.float64]
SIGNED = (-1.0, 0.0, 1.0)
CELLS = 80  # of the interval in which the share of differing examples lies
CONFINED = 1 / 50  # of delta is spent on that interval
LEAST_TAIL = 1e-8  # what lies outside the summed range, added to the p-value
LARGEST_BET = 0.75  # of the stake at which one example could ruin
TOLERANCE = 1e-6  # of a bound
TINY = 1e-300


@dataclass(frozen=True)
class Support:
    """What one example's loss can be: between `low` and `high`, and, where there are few of them, which `values`."""

    low: float
    high: float
    values: tuple[float, ...] | None = None

    @classmethod
    def of(cls, *values: float) -> Support:
        """Exactly these values."""
        return cls(min(values), max(values), tuple(sorted(set(values))))


@dataclass(frozen=True, eq=False)
class Losses:
    """Losses (n,) of n independent examples, float64, and what they could have been."""

    values: Array
    support: Support

    @property
    def mean(self) -> float:
        """Seen, not expected; NaN of no examples."""
        return float(self.values.mean()) if len(self.values) else math.nan

    def p_value(self, mean: float, delta: float) -> float:
        """As the function `p_value`."""
        return p_value(self.values, self.support, mean, delta)

    def upper(self, delta: float) -> float:
        """As the function `upper`."""
        return upper(self.values, self.support, delta)

    def lower(self, delta: float) -> float:
        """The expected loss is at least this, with confidence 1 - delta."""
        values = self.support.values
        mirrored = Support(
            -self.support.high, -self.support.low, values and tuple(-value for value in reversed(values))
        )
        return -upper(-self.values, mirrored, delta)


def p_value(losses: Array, support: Support, mean: float, delta: float) -> float:
    """Of the hypothesis that the expectation of losses (n,) is above `mean`, by the test designed for level `delta`."""
    if mean >= support.high:
        return 0.0
    if mean <= support.low or len(losses) == 0:
        return 1.0
    if support.values == SIGNED:
        return signed_p_value(*_worse_better(losses), len(losses), mean, delta)
    unit, share = _unit(losses, support), (mean - support.low) / (support.high - support.low)
    if _binary(support):
        return binomial_p_value(round(float(unit.sum())), len(losses), share)
    return betting_p_value(unit, share, delta)


def upper(losses: Array, support: Support, delta: float) -> float:
    """The expectation of losses (n,) is at most this, with confidence 1 - delta."""
    width = support.high - support.low
    if width == 0 or len(losses) == 0:
        return support.high
    if support.values == SIGNED:
        return signed_upper(*_worse_better(losses), len(losses), delta)
    unit = _unit(losses, support)
    if _binary(support):
        return support.low + width * binomial_upper(round(float(unit.sum())), len(losses), delta)
    return support.low + width * betting_upper(unit, delta)


def _unit(losses: Array, support: Support) -> Array:
    return (losses - support.low) / (support.high - support.low)


def _binary(support: Support) -> bool:
    return support.values is not None and len(support.values) == 2


def _worse_better(losses: Array) -> tuple[int, int]:
    return int((losses > 0).sum()), int((losses < 0).sum())


def binomial_p_value(hits: int, count: int, share: float) -> float:
    """P(at most `hits` of `count`) where each is a hit with probability `share`."""
    return float(bdtr(hits, count, min(1.0, share)))


def binomial_upper(hits: int, count: int, delta: float) -> float:
    """Clopper and Pearson's one-sided upper bound of a share, with confidence 1 - delta."""
    return 1.0 if hits >= count else float(beta.ppf(1 - delta, hits + 1, count - hits))


def binomial_lower(hits: int, count: int, delta: float) -> float:
    """Clopper and Pearson's one-sided lower bound of a share, with confidence 1 - delta."""
    return 0.0 if hits <= 0 else float(beta.ppf(delta, hits, count - hits + 1))


def signed_upper(worse: int, better: int, count: int, delta: float) -> float:
    """Upper bound of the mean of losses in {-1, 0, 1}: `worse` of them 1, `better` of them -1, of `count`."""
    least = (worse - better) / count
    return _smallest_rejected(lambda mean: signed_p_value(worse, better, count, mean, delta), least, 1.0, delta)


@lru_cache(maxsize=100_000)
def signed_p_value(worse: int, better: int, count: int, mean: float, delta: float) -> float:
    """Of the hypothesis that P(1) - P(-1) is above `mean`, for losses in {-1, 0, 1}.

    Outcomes are ordered by worse - better + z sqrt(worse + better + 1), a rough upper bound, and what counts as at
    least as good as the outcome seen is closed under "fewer worse, more better". Its probability is then largest, at
    a given share d of examples that differ, where the mean is just `mean`; and over a cell of d it is at most what the
    smallest P(1) and the largest P(-1) of the cell give. So the maximum over cells is an upper bound, not an estimate.
    """
    spent = CONFINED * delta
    differ = worse + better
    low = max(mean, binomial_lower(differ, count, spent / 2))
    high = binomial_upper(differ, count, spent / 2)
    if low > high:
        return spent
    edges = np.linspace(low, high, CELLS + 1)
    share_worse = np.maximum(0, (edges[:-1] + mean) / 2)[:, None]
    share_better = np.clip((edges[1:] - mean) / 2, 0, edges[1:])[:, None]  # d itself where d < -mean: none is worse
    first = int(binom.ppf(LEAST_TAIL, count, float(share_better.min())))
    last = int(binom.isf(LEAST_TAIL, count, float(share_better.max())))
    betters = np.arange(max(first, 0), last + 1)
    most = _most_worse(worse, better, last, max(0.5, float(norm.isf(delta))))[betters]
    given = np.minimum(1.0, share_worse / np.maximum(1 - share_better, 1e-300))
    inside = bdtr(np.minimum(most, count - betters), count - betters, given)
    inside = np.where(most < 0, 0.0, inside)
    probability = (binom.pmf(betters, count, share_better) * inside).sum(1).max()
    return min(1.0, float(probability) + 2 * LEAST_TAIL + spent)


def _most_worse(worse: int, better: int, last: int, spread: float) -> NDArray[np.int64]:
    """For 0..last better examples: the most worse ones that are no less good an outcome than the one seen; -1: none."""
    better_counts = np.arange(last + 1)
    seen = worse - better + spread * math.sqrt(worse + better + 1)
    inside = spread**2 + 4 * (seen + 2 * better_counts + 1)
    root = (-spread + np.sqrt(np.maximum(inside, 0))) / 2
    most = np.floor(root**2 - better_counts - 1 + 1e-7)
    most = np.where((inside < 0) | (root < 0) | (most < 0), -1, most)
    return np.maximum.accumulate(most).astype(np.int64)


def betting_upper(losses: Array, delta: float) -> float:
    """Upper bound of the mean of losses (n,) in [0, 1]: the wealth never falls as the mean bet against grows."""
    return _smallest_rejected(lambda mean: betting_p_value(losses, mean, delta), float(losses.mean()), 1.0, delta)


def betting_p_value(losses: Array, mean: float, delta: float) -> float:
    """Of the hypothesis that losses (n,) in [0, 1] have a mean above `mean`: one over the largest wealth of a bet.

    Each stake is set from the examples before it, so on true hypotheses the wealth is a supermartingale. The examples
    are shuffled first by a fixed seed: a data set in the order of its classes is no sequence of independent draws.
    """
    shuffled = losses[np.random.default_rng(0).permutation(len(losses))]
    stakes = _stakes(shuffled, delta)
    if mean < 1:
        stakes = np.minimum(stakes, LARGEST_BET / (1 - mean))
    wealth = np.cumsum(np.log1p(stakes * (mean - shuffled)))
    return float(np.exp(-max(0.0, wealth.max())))


def _stakes(losses: Array, delta: float) -> Array:
    """(n,) best for n examples of the variance seen so far; the first knows none and takes the largest."""
    seen = np.arange(1, len(losses) + 1)
    means = (0.5 + np.cumsum(losses)) / (seen + 1)
    variances = (0.25 + np.cumsum((losses - means) ** 2)) / (seen + 1)
    before = np.concatenate([[0.25], variances[:-1]])
    stakes: Array = np.sqrt(2 * math.log(1 / delta) / (len(losses) * before))
    return stakes


def _smallest_rejected(p_value: Callable[[float], float], low: float, high: float, delta: float) -> float:
    """A mean that is rejected, within TOLERANCE of the smallest such one, or `high`: p-values fall as means grow."""

    def excess(mean: float) -> float:
        return math.log(p_value(mean) + TINY) - math.log(delta)

    if high - low <= TOLERANCE or excess(high) > 0:
        return high
    if excess(low) <= 0:
        return low
    found = float(brentq(excess, low, high, xtol=TOLERANCE))
    step = TOLERANCE
    while found < high and excess(found) > 0:  # brentq may end on the side that is not rejected
        found, step = found + step, 2 * step
    return min(found, high)
