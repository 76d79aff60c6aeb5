"""Ways to make a cascade stop, what each is worth, and the policies that each offers; all on policy-fit examples.

Of thousands of policies the one that looks best on the examples it was chosen on flatters itself, the more so the more
stages and parameters it has. So the policy-fit examples are parted once more: thresholds and scorers come from one
part, figures from the other. Ways are compared by both turns of that; the policies of the best come from the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from amc.dynamic.candidate import Candidate
from amc.dynamic.claims import claims_of, least_safety
from amc.dynamic.points import sweep
from amc.dynamic.policy import Policy, Walk, walk
from amc.dynamic.records import Records, parts_of
from amc.dynamic.risk import ladder
from amc.dynamic.scores import SCORERS
from amc.dynamic.terms import Limits

PARTS_SEED = 1
TRIED = 32  # policies of a way that are carried from one part to the other
CAREFUL = 24  # rungs of the ladder from which more careful policies are taken
WINDOW = 3  # policies next to each other in cost whose figures are averaged: one by itself is too noisy
TIE = 1e-9  # of accuracy, that the dense network's whole cost is worth: decides between equals
NOTHING = -float("inf")
MOST_SAFE = 1e6  # standard errors


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
    """One policy of one candidate, and what it does on policy-fit examples that had no part in making it.

    Attributes:
        name: of the way that it belongs to.
        places: (k,) of these examples among the policy-fit ones.
    """

    name: str
    candidate: Candidate
    policy: Policy
    places: Tensor

    @property
    def is_static(self) -> bool:
        return len(self.candidate.stages) == 1

    @cached_property
    def held(self) -> Records:
        return self.candidate.fit.take(self.places)

    @cached_property
    def held_walk(self) -> Walk:
        return walk(self.held, self.policy, self.candidate.added)

    @cached_property
    def risk(self) -> Walk:
        """On the risk-test examples."""
        return walk(self.candidate.risk, self.policy, self.candidate.added)

    @cached_property
    def cost(self) -> float:
        """Mean, on `held`."""
        return self.held_walk.mean_cost

    @cached_property
    def accuracy(self) -> float:
        """On `held`."""
        return self.held_walk.accuracy


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
        """On the policy-fit examples that the option was not made of."""
        return self.merit(option.cost, option.accuracy)

    def safety(self, option: Option, limits: Limits | None = None) -> float:
        """By how many standard errors the option keeps to the terms on these examples: to that which stands worst.

        Args:
            limits: other terms than the goal's.
        """
        claims = claims_of(
            option.held, option.held_walk, option.candidate.added, limits or self.limits,
            self.dense.fit.take(option.places).logits[0], self.is_dense(option),
        )  # fmt: skip
        return min(max(least_safety(claims), -MOST_SAFE), MOST_SAFE)

    def cost_safety(self, option: Option) -> float:
        """The same of the mean cost alone."""
        return self.safety(option, replace(self.limits, accuracy=None, drop=None))

    def is_dense(self, option: Option) -> bool:
        """Whether the option is the dense network itself."""
        return option.is_static and option.candidate.stages[0].name == self.dense.stages[0].name


def static_option(candidate: Candidate) -> Option:
    """A network run whole: nothing of it was chosen on any of the policy-fit examples."""
    policy, places = Policy(SCORERS["confidence"](candidate.fit), ()), torch.arange(len(candidate.fit))
    return Option(candidate.name, candidate, policy, places)


def options_of(way: Way) -> list[Option]:
    """Its policies, cheapest first on the examples that they were made of.

    After the most accurate one come more careful ones still: what looks most accurate on few examples is a lucky one,
    and a test needs a start that is safe.
    """
    known, held = _parts(way.candidate)
    found = _made(way, known, held)
    records, added = way.candidate.fit.take(known), way.candidate.added
    dearest = walk(records, found[-1].policy, added).mean_cost
    careful = ladder(records, found[-1].policy.scorer, CAREFUL, way.best)[::-1]
    return found + [
        Option(way.name, way.candidate, policy, held)
        for policy in careful
        if walk(records, policy, added).mean_cost > dearest
    ]


def expected_merit(way: Way, goal: Goal) -> float:
    """Of its best policy that will be found to keep to the terms; -inf where none is likely to be."""
    first, second = _parts(way.candidate)
    return float(np.mean([_best_merit(_made(way, *turn), goal) for turn in ((first, second), (second, first))]))


def _parts(candidate: Candidate) -> tuple[Tensor, Tensor]:
    return parts_of(len(candidate.fit), PARTS_SEED)


def _made(way: Way, known: Tensor, held: Tensor) -> list[Option]:
    """Policies from the examples `known`, to be judged on `held`."""
    candidate, records = way.candidate, way.candidate.fit.take(known)
    points = sweep(records, candidate.added, SCORERS[way.scorer](records), way.best, TRIED)
    return [Option(way.name, candidate, point.policy, held) for point in points]


def _best_merit(options: Sequence[Option], goal: Goal) -> float:
    """Of those that are safe enough to pass a test on the risk-test examples, were they just what they seem."""
    needed = NormalDist().inv_cdf(1 - goal.limits.delta)
    scale = [np.sqrt(len(option.candidate.risk) / max(len(option.held), 1)) for option in options]
    safeties = _smoothed([goal.safety(option) * by for option, by in zip(options, scale, strict=True)])
    accuracies = _smoothed([option.accuracy for option in options])
    merits = [
        goal.merit(option.cost, accuracy)
        for option, safety, accuracy in zip(options, safeties, accuracies, strict=True)
        if safety >= needed
    ]
    return max(merits, default=NOTHING)


def _smoothed(values: Sequence[float]) -> list[float]:
    """The median of each value and its neighbours, those at the ends with fewer."""
    half = WINDOW // 2
    return [float(np.median(values[max(0, place - half) : place + half + 1])) for place in range(len(values))]
