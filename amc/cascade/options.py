"""Ways to make a cascade stop, what each is worth, and the policies that each offers; all on policy-fit examples.

Of thousands of policies the one that looks best on the examples it was chosen on flatters itself, the more so the more
stages and parameters it has. So every way is cross-fitted: what a policy made of all examples does is told from
policies as costly that were made, scorer and thresholds, without the fold of the example looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from amc.cascade.candidate import Candidate
from amc.cascade.claims import Claim, claims_of, least_safety
from amc.cascade.division import folds_of
from amc.cascade.points import sweep
from amc.cascade.policy import Policy, Walk, scores_of, walk
from amc.cascade.records import Records
from amc.cascade.risk import ladder
from amc.cascade.scores import SCORERS
from amc.cascade.terms import Limits

FOLDS, COMPARED, FOLDS_SEED = 5, 3, 1  # folds; where many ways are compared
TRIED, MATCHED = 32, 96  # policies of a way; those of a fold, of which the one as costly is taken for each
CAREFUL = 24  # rungs of the ladder from which more careful policies are taken
WINDOW = 3  # policies next to each other in cost whose figures are averaged: one by itself is too noisy
TIE = 1e-9  # of accuracy, that the dense network's whole cost is worth: decides between equals
MOST_SAFE = 1e6  # standard errors
LIKELY = 0.5  # standard errors from a limit, at which a policy is worth a test


@dataclass(frozen=True, eq=False)
class Way:
    """A candidate with a scorer; `best` as in `Policy`."""

    candidate: Candidate
    scorer: str
    best: bool = False

    @property
    def name(self) -> str:
        return f"{self.candidate.name} ({self.scorer}{', best visited' if self.best else ''})"


@dataclass(frozen=True, eq=False)
class Option:
    """One policy of one candidate, made of all policy-fit examples.

    Attributes:
        name: of the way that it belongs to.
        fit: what such a policy does on each policy-fit example that had no part in making it.
    """

    name: str
    candidate: Candidate
    policy: Policy
    fit: Walk

    @property
    def is_static(self) -> bool:
        return len(self.candidate.stages) == 1

    @cached_property
    def risk(self) -> Walk:
        """On the risk-test examples."""
        return walk(self.candidate.risk, self.policy, self.candidate.added)

    @property
    def cost(self) -> float:
        """Mean, on the policy-fit examples."""
        return self.fit.mean_cost

    @property
    def accuracy(self) -> float:
        """On the policy-fit examples."""
        return self.fit.accuracy

    @cached_property
    def pooled(self) -> tuple[float, float]:
        """Mean cost and accuracy on policy-fit and risk-test examples together."""
        share = len(self.fit.cost) / (len(self.fit.cost) + len(self.risk.cost))
        both = zip((self.fit.mean_cost, self.fit.accuracy), (self.risk.mean_cost, self.risk.accuracy), strict=True)
        cost, accuracy = (share * fit + (1 - share) * risk for fit, risk in both)
        return cost, accuracy


@dataclass(frozen=True, eq=False)
class Goal:
    """What a plan is to reach.

    Attributes:
        dense: the dense network run whole, which a drop is measured against.
    """

    limits: Limits
    dense: Candidate

    def merit(self, cost: float, accuracy: float) -> float:
        """What is to be large: minus the mean cost, or the accuracy; the other decides between equals."""
        share = cost / self.dense.max_cost
        if self.limits.wants_cheapest:
            return -share + TIE * accuracy
        return accuracy - TIE * share

    def merit_of(self, option: Option) -> float:
        """On the policy-fit examples."""
        return self.merit(option.cost, option.accuracy)

    def pooled_merit(self, option: Option) -> float:
        """On policy-fit and risk-test examples together."""
        return self.merit(*option.pooled)

    def safety(self, option: Option, limits: Limits | None = None) -> float:
        """By how many standard errors the option keeps to the terms on policy-fit examples: to that which stands worst.

        Args:
            limits: other terms than the goal's.
        """
        return min(max(least_safety(self._claims(option, limits or self.limits)), -MOST_SAFE), MOST_SAFE)

    def cost_safety(self, option: Option) -> float:
        """The same of the mean cost alone."""
        return self.safety(option, replace(self.limits, accuracy=None, drop=None))

    def is_certain(self, option: Option) -> bool:
        """Whether the option keeps to the terms whatever the examples say."""
        return all(claim.certain for claim in self._claims(option, self.limits))

    def is_dense(self, option: Option) -> bool:
        """Whether the option is the dense network itself."""
        return option.is_static and option.candidate.stages[0].name == self.dense.stages[0].name

    def _claims(self, option: Option, limits: Limits) -> list[Claim]:
        candidate, logits = option.candidate, self.dense.fit.logits[0]
        return claims_of(candidate.fit, option.fit, candidate.added, limits, logits, self.is_dense(option))


def static_option(candidate: Candidate) -> Option:
    """A network run whole: nothing of it was chosen on any of the policy-fit examples."""
    policy = Policy(SCORERS["confidence"](candidate.fit), ())
    return Option(candidate.name, candidate, policy, walk(candidate.fit, policy, candidate.added))


def options_of(way: Way, careful: bool = True, count: int = FOLDS) -> list[Option]:
    """Its policies, cheapest first on the examples that they were made of.

    Args:
        careful: after the most accurate one come more careful ones still: what looks most accurate on few examples is
            a lucky one, and a test needs a start that is safe.
        count: folds.
    """
    candidate, fit = way.candidate, way.candidate.fit
    _ = fit.features  # once, for all folds
    rungs = _rungs(way, fit, TRIED, careful)
    walks: list[list[Walk]] = [[] for _ in rungs]
    folds = folds_of(len(fit), count, FOLDS_SEED, fit.groups)
    for fold in folds:
        known = torch.ones(len(fit), dtype=torch.bool)
        known[fold] = False
        held, others = fit.take(fold), _rungs(way, fit.take(known), MATCHED, careful)
        scores = scores_of(held, others[0].policy.scorer)
        for rung, found in zip(rungs, walks, strict=True):
            match = min(others, key=lambda other: abs(other.cost - rung.cost))
            found.append(walk(held, match.policy, candidate.added, scores))
    order = torch.cat(folds).argsort()
    return [
        Option(way.name, candidate, rung.policy, _whole(found, order)) for rung, found in zip(rungs, walks, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class _Rung:
    """A policy and its mean cost on the examples that it was made of."""

    policy: Policy
    cost: float


def _rungs(way: Way, records: Records, at_most: int, careful: bool) -> list[_Rung]:
    """Policies made of `records`, by rising cost."""
    scorer, added = SCORERS[way.scorer](records), way.candidate.added
    found = [_Rung(point.policy, point.mean_cost) for point in sweep(records, added, scorer, way.best, at_most)]
    if careful:
        scores = scores_of(records, scorer)
        for policy in ladder(records, scorer, CAREFUL, way.best)[::-1]:
            cost = walk(records, policy, added, scores).mean_cost
            if cost > found[-1].cost:
                found.append(_Rung(policy, cost))
    return found


def _whole(walks: Sequence[Walk], order: Tensor) -> Walk:
    """Walks of disjoint folds as one of all examples, put in `order`."""
    names = ("stop", "answered", "predictions", "right", "cost")
    return Walk(*(torch.cat([getattr(each, name) for each in walks])[order] for name in names))


def expected_merit(way: Way, goal: Goal, fallback: float) -> float:
    """How much better than `fallback` its best policy is, times the chance that it will be found to keep to the terms.

    The chance takes what is seen on the policy-fit examples for no more than it is: an estimate with an error, as the
    test on the risk-test examples will be another.
    """
    options = options_of(way, False, COMPARED)
    needed = NormalDist().inv_cdf(1 - goal.limits.delta)
    scale = math.sqrt(len(way.candidate.risk) / max(len(way.candidate.fit), 1))
    safeties = _smoothed([goal.safety(option) for option in options])
    accuracies = _smoothed([option.accuracy for option in options])
    chances = [NormalDist().cdf((safety * scale - needed) / math.sqrt(1 + scale**2)) for safety in safeties]
    if goal.limits.wants_cheapest:  # the dearer ones that are worth a test are tested before, and must pass as well
        before = [chance if safety >= LIKELY else 1.0 for chance, safety in zip(chances, safeties, strict=True)]
        chances = list(np.minimum(chances, np.minimum.accumulate(before[::-1])[::-1]))
    gains = [goal.merit(option.cost, accuracy) - fallback for option, accuracy in zip(options, accuracies, strict=True)]
    return max(chance * gain for chance, gain in zip(chances, gains, strict=True))


def _smoothed(values: Sequence[float]) -> list[float]:
    """The median of each value and its neighbours, those at the ends with fewer."""
    half = WINDOW // 2
    return [float(np.median(values[max(0, place - half) : place + half + 1])) for place in range(len(values))]
