"""Greedy search by sensitivity: score every group, spend the cap where it helps most, then exchange."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from amc_search.baselines.problem import Problem
from amc_search.baselines.projection import projected
from amc_search.depth import switched
from amc_search.repair import Reals, uniform
from amc_search.space import Policies, costs_of

# Of the trials, what one round of scores may take: with more groups than that, neighbours share a score.
SCORED = 0.5
# What a group is scored by: this share of its channels is kept, at least one step less.
SHRUNK = 0.6
# How far a spending of the cap may take a group from the policy that was scored, as a factor: the first, then on.
REACHES = (1.7, 3.0, 8.0)
NEARER = (1.3, 1.12)
# What a group gives in one exchange.
GIVEN = (0.75, 0.9)
# After an exchange that failed, its groups' scores count less or more by this.
DISCOUNT = 0.85


def greedy(problem: Problem) -> None:
    """Sensitivity of every group, best spending of the cap by it, then exchanges between groups by measured values.

    1. From the best policy so far, at first uniform ratios, each group alone is shrunk and measured: one score a
       group, the value lost per log of what is kept. Where trials are few, neighbouring groups share one; where they
       are not, removable groups are measured without as well.
    2. Scores, taken as additive, spend the cap: from the largest sizes within a reach of that policy, step by step
       what loses the least score for the cost it frees is taken away, until all caps hold. The results for several
       reaches are measured. While trials last for another round of scores, and the last helped, 1 and 2 repeat.
    3. The remaining trials go to exchanges, the most promising first: a group gives, another takes the room under the
       caps; removable groups are dropped or taken back. What is better is kept.

    Scores are taken at the cap and not at the dense network, as what matters changes on the way there.

    Source: sensitivity scores under a constraint: FastNAS of nvidia-modelopt and Li et al., arXiv 1608.08710; steps by
    measured values from the network at hand: NetAdapt, arXiv 1804.03230.
    """
    search = _Greedy(problem)
    while search.can_score():
        before = search.value
        search.score()
        search.spend()
        if not search.value > before:
            break
    search.exchange_all()


class _Greedy:
    """The best policy so far and its value, and what groups are worth around it.

    Attributes:
        blocks: groups that share a score.
        drops: removable groups that are scored without.
        slope: (d,) value lost per unit of log fraction, positive.
        loss: (d,) value lost without the group; not finite where it is unknown.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem, self.space = problem, problem.space
        self.policy = uniform(problem.space, problem.caps)
        self.value = problem.measure(self.policy)
        affordable, groups = int(SCORED * problem.trials), len(self.space)
        self.blocks = np.array_split(np.arange(groups), min(groups, max(1, affordable)))
        (removable,) = np.nonzero(self.space.may_drop)
        self.drops = removable[: len(removable) if groups + len(removable) <= affordable else 0]
        self.slope, self.loss = np.ones(groups), np.full(groups, np.inf)

    def can_score(self) -> bool:
        return self.problem.left >= len(self.blocks) + len(self.drops) + len(REACHES)

    def score(self) -> None:
        """Measure the slopes and losses around the policy."""
        slope = np.zeros(len(self.space))
        for block in self.blocks:
            shrunk = self.policy.astype(np.float64)
            shrunk[block] = np.minimum(SHRUNK * shrunk[block], shrunk[block] - self.space.step[block])
            tried = self.space.nearest(shrunk, np.minimum(self.space.step, self.policy))
            moved = self.space.log_fractions(self.policy) - self.space.log_fractions(tried)
            if moved.sum() > 0:
                slope[block] = (self.value - self.problem.measure(tried)) / moved[block].sum()
        # A group that seems not to matter still matters a little: values are noisy, and blocks are means.
        floor = 0.1 * float(np.mean(np.maximum(slope, 0))) + 1e-12
        self.slope = np.maximum(slope, floor)
        for group in self.drops[self.policy[self.drops] > 0]:
            without = self.policy.copy()
            without[group] = 0
            self.loss[group] = max(self.value - self.problem.measure(without), floor)

    def spend(self) -> None:
        """Measure the best spendings of the caps within growing reaches, or shrinking ones if the first is no good."""
        origin = self.policy
        first, *further = REACHES
        for reach in further if self._try(self._spent(origin, first)) else NEARER:
            if not self._try(self._spent(origin, reach)) and reach in further:
                break

    def _spent(self, origin: NDArray[np.int64], reach: float) -> NDArray[np.int64]:
        """The policy (d,) under all caps that loses the least score within the reach, greedily."""
        space = self.space
        lowest = space.nearest(np.asarray(origin / reach, dtype=np.float64), np.minimum(space.step, origin))
        policy: NDArray[np.int64] = space.nearest(np.asarray(origin * reach, dtype=np.float64))
        stride = np.maximum(policy // 24 // space.step, 1) * space.step
        over = _excess(policy[None], self.problem)[0]
        while over > 0:
            smaller = np.minimum(policy, np.maximum(policy - np.diag(stride), lowest))
            without = np.where(np.eye(len(space), dtype=np.bool_), 0, policy)[np.isfinite(self.loss) & (policy > 0)]
            moves = np.concatenate([smaller[(smaller != policy).any(axis=-1)], without])
            if not len(moves):
                break
            excess = _excess(moves, self.problem)
            lost = -self._gain(policy, moves, origin)
            chosen = int(np.argmin(np.maximum(lost, 1e-12) / (over - excess + 1e-15)))
            policy, over = moves[chosen], excess[chosen]
        spent: NDArray[np.int64] = projected(policy[None], self.problem)[0]
        return spent

    def _gain(self, policy: NDArray[np.int64], moves: Policies, origin: NDArray[np.int64]) -> Reals:
        """What each of the moves (k, d) from a policy (d,) gains in score, (k,), if scores at the origin add up."""
        logs = self.space.log_fractions
        gain = self.slope * (logs(moves) - logs(policy))
        # What a group lost by shrinking since it was scored is not lost again when it is dropped.
        without = self.slope * (logs(origin) - logs(policy)) - self.loss
        dropped = (moves == 0) & (policy > 0) & np.isfinite(self.loss)
        total: Reals = np.where(dropped, without, gain).sum(axis=-1)
        return total

    def _try(self, policy: NDArray[np.int64]) -> bool:
        """Measure a policy and move to it if it is better."""
        value = self.problem.measure(policy)
        better = value > self.value
        if better:
            self.policy, self.value = policy, value
        return better

    def exchange_all(self) -> None:
        """Exchanges, the most promising first, until the trials are spent or none is left."""
        while True:
            tried = next((move for move in self._exchanges() if not self.problem.is_known(move[0])), None)
            if tried is None:
                return
            policy, gave, took = tried
            if not self._try(policy):
                self.slope[gave] /= DISCOUNT
                self.loss[gave] /= DISCOUNT
                self.slope[took] *= DISCOUNT

    def _exchanges(self) -> Iterator[tuple[NDArray[np.int64], list[int], list[int]]]:
        """(policy, groups that gave, groups that took), by falling gain in score."""
        moves = np.concatenate([self._gifts(), switched(self.policy[None], self.space, self.problem.caps, 1.0)[1]])
        change = self.space.log_fractions(moves) - self.space.log_fractions(self.policy)
        gain = self._gain(self.policy, moves, self.policy)
        for index in np.argsort(-gain, kind="stable"):
            gave, took = (np.flatnonzero(sign * change[index] > 0).tolist() for sign in (-1, 1))
            yield moves[index], gave, took

    def _gifts(self) -> Policies:
        """Every pair of groups, the one shrunk, the other grown as far as the caps allow, (k, d)."""
        space, groups = self.space, len(self.space)
        gave, took = np.nonzero(~np.eye(groups, dtype=np.bool_))
        found = []
        for kept in GIVEN:
            smaller = np.minimum(kept * self.policy, self.policy - space.step)
            given = space.nearest(smaller, np.minimum(space.step, self.policy))
            moves = np.repeat(self.policy[None], len(gave), axis=0)
            moves[np.arange(len(gave)), gave] = given[gave]
            found.append(_grown(moves, took, self.policy, self.problem))
        moves = np.concatenate(found)
        changed = (moves < self.policy).any(axis=-1) & (moves > self.policy).any(axis=-1)
        return moves[changed]


def _excess(policies: Policies, problem: Problem) -> Reals:
    """What (b, d) policies use beyond the caps, in units of each, summed, (b,)."""
    excess: Reals = np.maximum(costs_of(policies, problem.caps) - 1, 0).sum(axis=-1)
    return excess


def _grown(moves: Policies, took: NDArray[np.int64], policy: NDArray[np.int64], problem: Problem) -> Policies:
    """Each of (k, d) with the group that takes as large as the caps allow, by bisection over its levels."""
    rows, step, high = np.arange(len(moves)), problem.space.step[took], problem.space.high[took]
    # What is dropped is not taken back by an exchange: there is a move for that.
    fits = policy[took] // step
    fails = np.where(policy[took] > 0, high, policy[took]) // step + 1
    grown = moves.copy()
    while (fails - fits > 1).any():
        middle = (fits + fails) // 2
        grown[rows, took] = middle * step
        under = _excess(grown, problem) <= 0
        fits, fails = np.where(under, middle, fits), np.where(under, fails, middle)
    grown[rows, took] = fits * step
    return grown
