"""Which policies the kinds of trials are judged on: some of any quality, and as many that a search would come to.

A search chooses among good policies, and there an order is harder to tell than between good and degenerate ones. So
half of the policies are uniform ratios and random ones, and the other half are the best of a pool that was bred for one
generation. Best by the mean of their ranks under two kinds of trials, one without training and one with some:
selection narrows the spread of the value it is made by, which would count against that kind alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from amc_search import Cap, Space, random_policies, uniform
from amc_search.design import at_costs, distinct

UNIFORM, RANDOM, GOOD = "uniform", "random", "good"
POOL = 4  # random policies for each good one that is wanted
CHILDREN = 2  # bred policies for each
PARENTS = 0.25  # the share of the pool that breeds
CHANGE = 0.25  # half-width of a child's change of log(count)
NEAR = (0.93, 1.0)  # of the tightest cap: where children land

Policy = NDArray[np.int64]
Judge = Callable[[Policy], NDArray[np.float64]]  # (n, d) policies -> (n,) score, higher is better


def chosen_policies(
    space: Space, caps: tuple[Cap, ...], number: int, seed: int, judge: Judge
) -> list[tuple[Policy, str]]:
    """Policies near the caps and where each came from; fewer than `number` where the grid has no more.

    Raises:
        CapUnreachable: the smallest policy is over a cap.
    """
    rng = np.random.default_rng([seed, 11])
    good = number // 2
    plain = uniform(space, caps)[None]
    drawn = distinct(np.concatenate([plain, random_policies(space, caps, number + POOL * good, rng)]))
    rest, pool = drawn[: number - good], drawn[number - good :]
    if good and len(pool):
        pool = _without(
            distinct(np.concatenate([pool, _children(space, caps, pool, CHILDREN * good, rng, judge)])), rest
        )
        pool = pool[np.argsort(-judge(pool), kind="stable")][:good]
    origins = [UNIFORM, *[RANDOM] * (len(rest) - 1), *[GOOD] * len(pool[:good])]
    return list(zip([*rest, *pool[:good]], origins, strict=True))


def _children(
    space: Space, caps: tuple[Cap, ...], pool: Policy, number: int, rng: np.random.Generator, judge: Judge
) -> Policy:
    """(number, d): the geometric means of two of the pool's best, each changed a little."""
    order = np.argsort(-judge(pool), kind="stable")
    parents = np.maximum(pool[order[: max(1, round(PARENTS * len(pool)))]].astype(np.float64), 1e-9)
    pairs = rng.integers(len(parents), size=(number, 2))
    counts = np.sqrt(parents[pairs[:, 0]] * parents[pairs[:, 1]])
    counts = np.where(counts < 1e-3, 0.0, counts)  # dropped by both
    counts *= np.exp(CHANGE * rng.uniform(-1, 1, counts.shape))
    return at_costs(counts, space, caps, rng.uniform(*NEAR, number))


def _without(policies: Policy, others: Policy) -> Policy:
    left: Policy = policies[~(policies[:, None] == others[None]).all(-1).any(-1)]
    return left


def mean_ranks(*scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of the ranks of each under several scores, all (n,); higher is better."""
    ranks: NDArray[np.float64] = np.mean([(m[:, None] > m).sum(1) - (m[:, None] < m).sum(1) for m in scores], axis=0)
    return ranks
