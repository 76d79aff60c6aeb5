"""What to measure before anything is known, and random feasible policies.

A policy with one very thin layer is almost always useless and teaches only that. So groups are spread moderately
around a common ratio, and the common ratio is then moved until the cost is what is wanted. Of the groups that may
be dropped some are dropped first: a thin block everywhere is no replacement for one block less.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from amc_search.repair import Reals, check_reachable, project, repair, uniform
from amc_search.space import Cap, Policies, Space

# Half-widths of log(ratio / common ratio): a group keeps between 1 / 1.5 and 1.5, or 1 / 2.2 and 2.2, of its share.
SPREADS = (0.4, 0.8)
# Of the starting policies, how many cost near the tightest cap; the others serve budgets that may come later.
NEAR_SHARE = 0.65
NEAR = (0.8, 1.0)
WIDE = (0.5, 1.3)
# Starting policies where the predictor knows the groups' sensitivity.
INFORMED_START = 6
# The chance that a policy drops each removable group, one of these drawn for each policy.
DROP_SHARES = (0.0, 0.0, 0.1, 0.2, 0.3)


def usual_start(space: Space, is_informed: bool = False) -> int:
    """How many starting policies a search has: two for each group, at least 10 and at most 32; few if informed."""
    if is_informed:
        return INFORMED_START
    return int(np.clip(2 * len(space), 10, 32))


def starting_policies(space: Space, caps: tuple[Cap, ...], count: int, seed: int) -> Policies:
    """Anchors, then a space-filling set: at most `count` distinct policies, in the order to measure them.

    The anchors are the dense and the smallest policy, the uniform one just under each cap, and uniform ratios between
    the tightest of these and dense. The rest is scrambled Sobol in log-ratio, spread over costs: most within
    0.8..1.0 of the tightest cap, some within 0.5..1.3 of it, so that other budgets are informed as well. Anchors and
    policies beyond 1.0 are over a cap on purpose. Most of these drop some removable groups, each some of them.

    Returns:
        (k, d) legal distinct policies, k <= count; fewer where the grid has no more.

    Raises:
        CapUnreachable: the smallest policy is over a cap.
    """
    check_reachable(space, caps)
    found: list[NDArray[np.int64]] = [anchors(space, caps)]
    rng = np.random.default_rng([seed, 0])
    for spread in (*SPREADS, 1.5):  # the last only where a small grid left too few distinct policies
        wanted = 2 * count
        log_ratio = spread * (2 * _sobol(wanted, len(space), int(rng.integers(2**31))) - 1)
        if spread == SPREADS[0]:
            wanted = max(1, count // 2)
            log_ratio = log_ratio[:wanted]
        near = rng.random(wanted) < NEAR_SHARE
        targets = np.where(near, rng.uniform(*NEAR, wanted), rng.uniform(*WIDE, wanted))
        found.append(at_costs(some_dropped(np.exp(log_ratio) * space.high, space, rng), space, caps, targets))
    return distinct(np.concatenate(found))[:count]


def nearby_policies(space: Space, caps: tuple[Cap, ...], count: int, seed: int) -> Policies:
    """The uniform policy under the caps, then random ones near them: at most `count` distinct policies, (k, d).

    For a predictor that knows beforehand what cuts cost in general, and learns only how these add up near the caps.

    Raises:
        CapUnreachable: the smallest policy is over a cap.
    """
    check_reachable(space, caps)
    drawn = random_policies(space, caps, 3 * count, np.random.default_rng([seed, 0]))
    return distinct(np.concatenate([uniform(space, caps)[None], drawn]))[:count]


def anchors(space: Space, caps: tuple[Cap, ...]) -> Policies:
    """Dense, smallest, uniform under each cap, and four uniform ratios from there up to dense, (k, d), distinct."""
    under = [uniform(space, (cap,)) for cap in caps]
    tightest = uniform(space, caps)
    ratio = float((tightest / space.high).mean())
    between = [
        space.nearest(share * space.high, space.step) for share in ratio + (1 - ratio) * np.array([0.5, 0.25, 0.75])
    ]
    below = repair(0.85 * tightest[None].astype(np.float64), space, caps)
    return distinct(np.stack([space.high, tightest, *under, *between, *below, space.low]))


def random_policies(space: Space, caps: tuple[Cap, ...], count: int, rng: np.random.Generator) -> Policies:
    """(count, d) feasible policies, groups spread moderately, costs within 0.85..1.0 of the tightest cap.

    Some drop removable groups; where the cap is so loose that what is left cannot cost as much, they cost less. Not
    necessarily distinct.
    """
    spread = rng.choice(SPREADS, size=(count, 1))
    ratios: Reals = np.exp(spread * rng.uniform(-1, 1, (count, len(space))))
    targets = rng.uniform(0.85, 1.0, count)
    return at_costs(some_dropped(ratios * space.high, space, rng), space, caps, targets)


def some_dropped(counts: Reals, space: Space, rng: np.random.Generator) -> Reals:
    """(b, d) counts with removable groups at 0 here and there, at one of `DROP_SHARES` a row."""
    if not space.may_drop.any():
        return counts
    share = rng.choice(DROP_SHARES, size=(len(counts), 1))
    return np.where(space.may_drop & (rng.random(counts.shape) < share), 0.0, counts)


def at_costs(counts: Reals, space: Space, caps: tuple[Cap, ...], targets: Reals) -> Policies:
    """Scale (b, d) counts up or down until each row's use lies just under its target (b,); dropped groups stay so."""
    counts = np.where(space.may_drop & (counts <= 0), 0.0, np.maximum(counts, 1e-9))
    largest = np.divide(space.high, counts, out=np.ones(counts.shape), where=counts > 0).max(axis=-1)
    return project(counts, space, caps, targets, largest)


def distinct(policies: Policies) -> Policies:
    """Without repeats, in the order of first appearance."""
    _, first = np.unique(policies, axis=0, return_index=True)
    return policies[np.sort(first)]


def _sobol(count: int, dimensions: int, seed: int) -> Reals:
    """(count, dimensions) in [0, 1]; scrambled by its own generator, the global one is not touched."""
    engine = torch.quasirandom.SobolEngine(dimensions, scramble=True, seed=seed)  # type: ignore[no-untyped-call]
    points: Reals = engine.draw(count, dtype=torch.float64).numpy()
    return points
