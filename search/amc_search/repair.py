"""From any real keep-counts to a legal policy under every cap.

A policy's use is its cost in units of the cap's limit, the largest over all caps: feasible means use <= 1.
Costs never fall when a keep-count grows, so along a uniform scale the use never falls either, and the largest scale
that fits is found by bisection. To drop a group is a choice of its own and not a matter of scale: what is dropped
stays so, and what is kept shrinks to its smallest step and is dropped only where the target cannot be met otherwise.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from amc_search.space import Cap, Policies, Space, costs_of

Reals = NDArray[np.float64]

# Bisection halves the scale so often: 2^-40 of the largest scale is far below one channel in any layer.
HALVINGS = 40


class CapUnreachable(ValueError):
    """Even the smallest legal policy costs more than a cap allows.

    Attributes:
        cap: the cap that cannot be met.
        unit: what the cost is counted in.
        limit: the largest cost allowed, in `unit`.
        smallest: the cost of the smallest legal policy, in `unit`.
    """

    def __init__(self, cap: Cap, smallest: float) -> None:
        self.cap = cap
        self.unit = cap.cost.unit
        self.limit = cap.limit
        self.smallest = smallest
        super().__init__(cap, smallest)

    def __str__(self) -> str:
        return (
            f"the cap must be at least the cost of the smallest policy, {self.smallest:.10g} {self.unit}, "
            f"but it is {self.limit:.10g} {self.unit}: raise the cap, or allow smaller steps"
        )


def check_reachable(space: Space, caps: tuple[Cap, ...]) -> None:
    """Raises: CapUnreachable for the first cap below the cost of the smallest policy."""
    smallest = torch.as_tensor(space.low[None], dtype=torch.float64)
    for cap in caps:
        cost = float(cap.cost(smallest)[0])
        if not cost <= cap.limit:
            raise CapUnreachable(cap, cost)


def utilisation(policies: Policies | Reals, caps: tuple[Cap, ...]) -> Reals:
    """Cost of (b, d) policies in units of the limit, the largest over all caps, (b,); zero where there is no cap."""
    if not caps or not len(policies):
        return np.zeros(len(policies))
    used: Reals = costs_of(policies, caps).max(axis=-1)
    return used


def project(counts: Reals, space: Space, caps: tuple[Cap, ...], targets: Reals, largest: Reals) -> Policies:
    """Scale every row uniformly until its use is as near below its target as the grid allows.

    Args:
        counts: (b, d) reals, positive except where a removable group is dropped; only their proportions matter, up to
            the rounding.
        space: what is legal.
        caps: what use is counted in.
        targets: (b,) the use that each row may have. Below the use of the row's smallest steps, removable groups are
            dropped, the furthest below their step first; below the use of the smallest policy, the row becomes that.
        largest: (b,) the largest scale tried.

    Returns:
        (b, d) legal policies.
    """
    low, high = np.zeros(len(counts)), np.array(largest, dtype=np.float64)
    least = _least(counts, space, caps, targets)
    lower, upper = least.copy(), space.nearest(counts * high[:, None], least)
    fits = utilisation(upper, caps) <= targets
    lower[fits], low[fits] = upper[fits], high[fits]
    (rows,) = np.nonzero(~fits & (lower < upper).any(axis=-1))
    for _ in range(HALVINGS):
        if not len(rows):
            break
        middle = (low[rows] + high[rows]) / 2
        tried = space.nearest(counts[rows] * middle[:, None], least[rows])
        fits = utilisation(tried, caps) <= targets[rows]
        lower[rows[fits]], low[rows[fits]] = tried[fits], middle[fits]
        upper[rows[~fits]], high[rows[~fits]] = tried[~fits], middle[~fits]
        # Once one step of one group separates the two ends, no scale lies between them.
        rows = rows[((upper[rows] - lower[rows]) // space.step).sum(axis=-1) > 1]
    return _round_up_some(lower, upper, counts * high[:, None], space, caps, targets)


def _least(counts: Reals, space: Space, caps: tuple[Cap, ...], targets: Reals) -> Policies:
    """How far each row (b, d) may shrink: to the smallest steps of what it keeps if that meets its target."""
    least = np.broadcast_to(space.low, counts.shape).copy()
    if space.may_drop.any():
        keeping = np.where(counts > 0, space.step, space.low)
        fits = utilisation(keeping, caps) <= targets
        least[fits] = keeping[fits]
    return least


def _round_up_some(
    lower: Policies, upper: Policies, ideal: Reals, space: Space, caps: tuple[Cap, ...], targets: Reals
) -> Policies:
    """Where several groups round up at the same scale, round up those that fit, the furthest below ideal first."""
    policies = lower.copy()
    differ = upper > lower
    order = np.argsort(np.where(differ, (lower - ideal) / space.step, np.inf), axis=-1, kind="stable")
    for rank in range(int(differ.sum(axis=-1).max(initial=0))):
        (rows,) = np.nonzero(differ.sum(axis=-1) > max(rank, 1))
        groups = order[rows, rank]
        tried = policies[rows]
        tried[np.arange(len(rows)), groups] = upper[rows, groups]
        fits = utilisation(tried, caps) <= targets[rows]
        policies[rows[fits]] = tried[fits]
    return policies


def repair(policies: Reals | Policies, space: Space, caps: tuple[Cap, ...]) -> Policies:
    """The nearest legal policies, shrunk on a uniform scale where they are over a cap.

    Deterministic. Legal feasible policies come back as they are. Proportions between groups are kept as far as the
    grid and the smallest step of each group allow. Shrinking drops no group as long as the caps can be met without.

    Args:
        policies: (b, d) finite real keep-counts, of any size.
        space: what is legal.
        caps: all hold.

    Returns:
        (b, d) legal policies, none over any cap.

    Raises:
        CapUnreachable: the smallest policy is over a cap.
        ValueError: the shape is wrong or a count is not finite.
    """
    counts = np.asarray(policies, dtype=np.float64)
    if counts.ndim != 2 or counts.shape[-1] != len(space) or not np.isfinite(counts).all():
        raise ValueError(f"policies must be finite and of shape (b, {len(space)}), but got shape {counts.shape}")
    check_reachable(space, caps)
    # Above its size a group is full: clipping first keeps its excess from shrinking the others.
    nearest = space.nearest(counts)
    counts = np.where(nearest > 0, np.clip(counts, 1e-9, space.high), 0.0)
    over = ~(utilisation(nearest, caps) <= 1)
    if over.any():
        one = np.ones(int(over.sum()))
        nearest[over] = project(counts[over], space, caps, targets=one, largest=one)
    return nearest


def uniform(space: Space, caps: tuple[Cap, ...]) -> Policies:
    """The same ratio for every group, the largest under all caps: the baseline beside which ours is shown.

    Every group keeps the ratio's channels rounded down or up to its grid. Those furthest below the ratio are rounded
    up first, as many as fit, so that what the rounding left of the cap is not held against the baseline. No group is
    dropped, unless the caps cannot be met with the smallest step of every group.

    Returns:
        (d,) a legal policy, not over any cap.

    Raises:
        CapUnreachable: the smallest policy is over a cap.
    """
    check_reachable(space, caps)
    sizes = space.high.astype(np.float64)
    (least,) = _least(sizes[None], space, caps, np.ones(1))
    low, high = 0.0, 2.0  # ratio 1 itself is tried as any other, and 2 means nothing more
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        fits = utilisation(space.nearest(middle * sizes, least)[None], caps)[0] <= 1
        low, high = (middle, high) if fits else (low, middle)
    policy = space.nearest(low * sizes, least)
    underuse = (low * sizes - policy) / space.step
    for group in np.argsort(-underuse, kind="stable"):
        if underuse[group] <= 0 or policy[group] >= space.high[group]:
            continue
        tried = policy.copy()
        tried[group] += space.step[group]
        if utilisation(tried[None], caps)[0] <= 1:
            policy = tried
    return policy
