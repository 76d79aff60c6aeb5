"""Dropping groups whole and taking them back: the moves that no slope shows.

Between its smallest step and 0 a group has no policy and a predictor has no gradient, so an ascent keeps what is
dropped dropped, and these moves change it one group at a time. What a drop frees is spent on what is kept, and what a
group taken back needs is taken from there, in proportion.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from amc_search.design import at_costs
from amc_search.repair import Reals
from amc_search.space import Cap, Policies, Space


def switched(
    policies: Policies, space: Space, caps: tuple[Cap, ...], used: float
) -> tuple[NDArray[np.int64], Policies]:
    """Every policy with each removable group dropped or taken back, one at a time.

    A group comes back at its smallest step and at the fraction that the policy's kept groups have on average.

    Args:
        policies: (b, d) legal.
        space: what is legal.
        caps: all hold.
        use: the cost, in units of the tightest cap, just below which what is kept is scaled.

    Returns:
        The row that each comes from (k,), rising, and the policies (k, d), legal.
    """
    (removable,) = np.nonzero(space.may_drop)
    origin, place = np.divmod(np.arange(len(policies) * len(removable)), max(len(removable), 1))
    group = removable[place]
    switching = policies[origin].astype(np.float64)
    dropped = switching[np.arange(len(group)), group] == 0
    smallest, typical = switching, switching[dropped]
    smallest[np.arange(len(group)), group] = np.where(dropped, space.step[group], 0)
    fraction = typical_fraction(policies, space)[origin[dropped]]
    typical[np.arange(len(typical)), group[dropped]] = np.maximum(fraction * space.high[group[dropped]], 1e-9)
    origin, counts = np.concatenate([origin, origin[dropped]]), np.concatenate([smallest, typical])
    order = np.argsort(origin, kind="stable")
    return origin[order], at_costs(counts[order], space, caps, np.full(len(order), used))


def typical_fraction(policies: Policies | Reals, space: Space) -> Reals:
    """Keep-counts (b, d) -> the mean kept fraction of the groups that are not dropped, (b,); 1 where all are."""
    kept = policies > 0
    mean: Reals = np.where(
        kept.any(axis=-1), (policies / space.high).sum(axis=-1) / np.maximum(kept.sum(axis=-1), 1), 1.0
    )
    return mean
