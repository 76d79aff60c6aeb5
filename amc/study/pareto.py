"""The non-dominated points of two aims."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def non_dominated(costs: ArrayLike, merits: ArrayLike) -> NDArray[np.intp]:
    """Indices of the points that no other point beats: (n,) costs, less is better, and (n,) merits, more is better.

    Sorted by cost; along them both cost and merit rise strictly. Of equal points the first is kept. A point with NaN
    is dominated.
    """
    cost, merit = np.asarray(costs, dtype=np.float64), np.asarray(merits, dtype=np.float64)
    order = np.lexsort((np.arange(len(cost)), -merit, cost))
    order = order[~(np.isnan(cost) | np.isnan(merit))[order]]
    best = np.maximum.accumulate(np.concatenate([[-np.inf], merit[order]]))[:-1]
    chosen: NDArray[np.intp] = order[merit[order] > best]
    return chosen
