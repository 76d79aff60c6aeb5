"""Integer moves around a legal policy, judged by a predictor under exact costs: fill, exchange and switches.

Symbols: b policies improved side by side, d groups, c caps, k moves tried for each policy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amc_search.depth import switched
from amc_search.repair import Reals, utilisation
from amc_search.space import Cap, Policies, Predictor, Space, costs_of

# A gain below this is rounding of the predictor's float32, not a gain.
TOLERANCE = 1e-6
# Exchanges tried exactly for each policy in a round: the best by first order, and as many again drawn at random / 3.
TRIED = 96
# Levels that the growing group gains in one exchange.
STRIDES = (1, 2, 4)


@dataclass(frozen=True)
class Bound:
    """The lower confidence bound that moves are judged by: mean - kappa * standard deviation."""

    predictor: Predictor
    space: Space
    kappa: float

    def of(self, fractions: Tensor) -> Tensor:
        """Kept fractions (b, d) -> (b,), differentiable."""
        mean, std = self.predictor.predict(fractions)
        return mean - self.kappa * std

    def __call__(self, policies: Policies) -> Reals:
        """Keep-counts (b, d) -> (b,); what the predictor cannot tell (NaN) is worst."""
        if not len(policies):
            return np.zeros(0)
        with torch.no_grad():
            bound = self.of(self.space.fractions(policies)).double().numpy()
        values: Reals = np.nan_to_num(bound, nan=-np.inf)
        return values

    def slope(self, policies: Policies) -> Reals:
        """Keep-counts (b, d) -> change of the bound per level of each group (b, d), to first order.

        Of a dropped group it is the change of its first step as it is: the slope at 0 does not see the jump.
        """
        fractions = self.space.fractions(policies).requires_grad_()
        bound = self.of(fractions)
        if not bound.requires_grad:
            return np.zeros(policies.shape)
        (gradient,) = torch.autograd.grad(bound.sum(), fractions)
        slope: Reals = torch.nan_to_num(gradient).double().numpy() * (self.space.step / self.space.high)
        row, group = np.nonzero(policies == 0)
        if len(row):
            back = policies[row]
            back[np.arange(len(row)), group] = self.space.step[group]
            slope[row, group] = np.nan_to_num(self(back) - self(policies)[row], neginf=-1e30)
        return slope


def fill(policies: Policies, bound: Bound, caps: tuple[Cap, ...]) -> Policies:
    """Spend what is left of the caps: grow one group after the other until no single step of any group fits.

    Each time the group grows that gains the bound most per cost. Groups grow even where the predictor sees no gain:
    a cap is there to be used, and a predictor learned from few trials is a poor reason to leave channels out (more
    channels of one network rarely hurt). A dropped group is taken back only for a gain: its smallest step is no way to
    use up a cap.

    Args:
        policies: (b, d) legal and feasible.
        bound: what judges a step.
        caps: all hold.

    Returns:
        (b, d) legal, feasible, nowhere smaller.
    """
    space = bound.space
    policies = policies.copy()
    rows = np.arange(len(policies))
    while len(rows):
        here = policies[rows]
        more = here[:, None, :] + np.diag(space.step)
        cost, cost_more = costs_of(here, caps), costs_of(more.reshape(-1, len(space)), caps)
        cost_more = cost_more.reshape(len(rows), len(space), -1)
        fits = np.logical_and((more <= space.high).all(axis=-1), (cost_more <= 1).all(axis=-1))
        open_rows = fits.any(axis=-1)
        rows, here, more, fits = rows[open_rows], here[open_rows], more[open_rows], fits[open_rows]
        if not len(rows):
            break
        added = (cost_more - cost[:, None, :])[open_rows]
        gain = np.full(fits.shape, -np.inf)
        gain[fits] = bound(more[fits]) - np.repeat(bound(here), fits.sum(axis=-1))
        fits &= (here > 0) | (gain > TOLERANCE)
        # Per cost in units of the limits; a step that costs nothing ranks by its sign alone.
        rate = np.where(fits, np.nan_to_num(gain, neginf=-1e30) / (added.sum(axis=-1) + 1e-9), -np.inf)
        growing = fits.any(axis=-1)
        rows, here, added, slack = rows[growing], here[growing], added[growing], 1 - cost[open_rows][growing]
        group = rate[growing].argmax(axis=-1)
        policies[rows] = _grown(here, group, added[np.arange(len(rows)), group], slack, space, caps)
    return policies


def _grown(
    here: Policies, group: NDArray[np.int64], added: Reals, slack: Reals, space: Space, caps: tuple[Cap, ...]
) -> Policies:
    """One group of each row grows by one step, or by several at once while a quarter of the slack allows."""
    row = np.arange(len(here))
    several = np.floor(np.min(0.25 * slack / np.maximum(added, 1e-12), axis=-1))
    room = (space.high[group] - here[row, group]) // space.step[group]
    several = np.clip(np.minimum(several, np.minimum(room, np.maximum(space.levels[group] // 16, 1))), 1, None)
    one, jump = here.copy(), here.copy()
    one[row, group] += space.step[group]
    jump[row, group] += several.astype(np.int64) * space.step[group]
    fits = utilisation(jump, caps) <= 1
    return np.where(fits[:, None], jump, one)


def exchange(
    policies: Policies,
    bound: Bound,
    caps: tuple[Cap, ...],
    *,
    rng: np.random.Generator,
    rounds: int = 30,
    keep_utilisation: float = 0.0,
) -> Policies:
    """Move steps from one group to another while the predictor says better and the exact cost still fits.

    In a round every pair of groups (i grows, j shrinks) is rated to first order, with just as many steps taken from j
    as the steps of i need. The best rated and some random pairs are then tried exactly and the best is taken. Where
    none gains, each removable group is dropped or taken back (`switched`). A round without gain ends the search for
    that policy. The bound never falls.

    Args:
        policies: (b, d) legal and feasible.
        bound: what judges a step.
        caps: all hold.
        rng: draws the random pairs.
        rounds: exchanges of one policy at most.
        keep_use: no exchange takes a policy's use below this, or below where it is if that is less. A drop may, where
            all that is kept is full.

    Returns:
        (b, d) legal and feasible.
    """
    space = bound.space
    policies = policies.copy()
    if len(space) < 2:
        return policies
    rows = np.arange(len(policies))
    value = bound(policies)
    floor = np.minimum(utilisation(policies, caps), keep_utilisation)
    for _ in range(rounds):
        if not len(rows):
            break
        tried = _rated_exchanges(policies[rows], bound, caps, rng)
        origin = np.repeat(rows, tried.shape[1])
        better = _taken(policies, value, origin, tried.reshape(-1, len(space)), bound, caps, floor)
        stuck = np.setdiff1d(rows, better)
        if space.may_drop.any() and len(stuck):
            origin, variants = switched(policies[stuck], space, caps, used=1.0)
            switches = _taken(policies, value, stuck[origin], variants, bound, caps, np.zeros(len(policies)))
            floor[switches] = np.minimum(utilisation(policies[switches], caps), keep_utilisation)
            better = np.union1d(better, switches)
        rows = better
    return policies


def _taken(
    policies: Policies,
    value: Reals,
    origin: NDArray[np.int64],
    tried: Policies,
    bound: Bound,
    caps: tuple[Cap, ...],
    floor: Reals,
) -> NDArray[np.int64]:
    """Replace each policy by the best of those tried for it, where that is better; returns which were, ascending.

    Args:
        policies, value, floor: (b, d), (b,), (b,): what there is, its bound, its least use; the first two are changed.
        origin: (k,) ascending, for which policy each was tried.
        tried: (k, d), not all legal or feasible.
    """
    used = utilisation(tried, caps)
    allowed = (used <= 1) & (used >= floor[origin]) & bound.space.is_legal(tried)
    reached = np.full(len(tried), -np.inf)
    reached[allowed] = bound(tried[allowed])
    rows, first = np.unique(origin, return_index=True)
    order = np.lexsort((-reached, origin))[first]
    better = reached[order] > value[rows] + TOLERANCE
    policies[rows[better]], value[rows[better]] = tried[order[better]], reached[order[better]]
    return rows[better]


def _rated_exchanges(policies: Policies, bound: Bound, caps: tuple[Cap, ...], rng: np.random.Generator) -> Policies:
    """(b, d) -> (b, k, d): the exchanges most promising to first order, and random ones; not all legal or feasible."""
    space = bound.space
    batch, groups = policies.shape
    slope, price = bound.slope(policies), _prices(policies, space, caps)  # (b, d), (b, c, d)
    slack = 1 - costs_of(policies, caps)
    room = (space.high - policies) // space.step
    spare = np.maximum(policies // space.step - 1, 0)
    stride = np.array(STRIDES)[None, :, None, None]  # (b, stride, i grows, j shrinks)
    need = np.zeros((batch, len(STRIDES), groups, groups))
    for cap in range(len(caps)):
        over = stride * price[:, cap, None, :, None] - slack[:, cap, None, None, None]
        need = np.maximum(need, np.ceil(over / np.maximum(price[:, cap, None, None, :], 1e-12) - 1e-9))
    need = np.maximum(need, 1)
    rating = stride * slope[:, None, :, None] - need * slope[:, None, None, :]
    possible = (room[:, None, :, None] >= stride) & (spare[:, None, None, :] >= need)
    possible &= ~np.eye(groups, dtype=np.bool_)
    rating = np.where(possible, rating, -np.inf).reshape(batch, -1)
    top = min(TRIED, rating.shape[-1])
    chosen = np.argpartition(-rating, top - 1, axis=-1)[:, :top]
    chosen = np.concatenate([chosen, rng.integers(rating.shape[-1], size=(batch, TRIED // 3))], axis=-1)
    which, grows, shrinks = np.unravel_index(chosen, need.shape[1:])
    row = np.arange(batch)[:, None]
    taken = np.minimum(need[row, which, grows, shrinks], spare[row, shrinks]).astype(np.int64)
    tried = np.repeat(policies[:, None, :], chosen.shape[-1], axis=1)
    column = np.arange(chosen.shape[-1])[None]
    tried[row, column, grows] += np.array(STRIDES)[which] * space.step[grows]
    tried[row, column, shrinks] -= taken * space.step[shrinks]
    return tried


def _prices(policies: Policies, space: Space, caps: tuple[Cap, ...]) -> Reals:
    """First-order cost of one level of each group in units of the limit, (b, c, d)."""
    prices = []
    for cap in caps:
        counts = torch.as_tensor(policies, dtype=torch.float64).requires_grad_()
        (gradient,) = torch.autograd.grad(cap.cost(counts).sum(), counts)
        prices.append(gradient.numpy() * space.step / cap.limit)
    return np.stack(prices, axis=1)
