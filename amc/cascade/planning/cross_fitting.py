"""Stop rules of each candidate, and what each does on calibration examples that had no part in making it.

Of thousands of stop rules the one that looks best on the examples it was chosen on flatters itself, the more so the
more stages and parameters it has. So every variant is cross-fitted: what a stop rule made of all examples does is told
from stop rules as costly that were made, scorer and thresholds, without the fold of the example looked at.
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

from amc.cascade.certificates.risk_control import threshold_ladder
from amc.cascade.planning.constraint_tests import ConstraintTest, constraint_tests, least_margin
from amc.cascade.planning.constraints import AbsoluteConstraints
from amc.cascade.rules.operating_points import sweep
from amc.cascade.rules.scorers import SCORERS
from amc.cascade.rules.stop_rule import Outcomes, StopRule, scores_of, simulate
from amc.cascade.stages.candidate import Candidate
from amc.cascade.stages.holdout import folds_of
from amc.cascade.stages.records import Records

FOLDS, COMPARED, FOLDS_SEED = 5, 3, 1  # folds; where many variants are compared
TRIED, MATCHED = 32, 96  # stop rules of a variant; of a fold, of which the one of nearest cost is taken for each
CAREFUL = 24  # rungs of the ladder from which more careful stop rules are taken
WINDOW = 3  # stop rules next to each other in cost whose figures are averaged: one by itself is too noisy
TIE = 1e-9  # of accuracy, that the dense network's whole cost is worth: decides between equals
LARGEST_MARGIN = 1e6  # standard errors
LIKELY = 0.5  # standard errors from a limit, at which a stop rule is worth a test


@dataclass(frozen=True, eq=False)
class Variant:
    """A candidate with a scorer; `best` as in `StopRule`."""

    candidate: Candidate
    scorer: str
    best: bool = False

    @property
    def name(self) -> str:
        return f"{self.candidate.name} ({self.scorer}{', best visited' if self.best else ''})"


@dataclass(frozen=True, eq=False)
class Option:
    """One stop rule of one candidate, made of all calibration examples.

    Attributes:
        name: of the variant that it belongs to.
        fit: what such a stop rule does on each calibration example that had no part in making it.
    """

    name: str
    candidate: Candidate
    rule: StopRule
    calibration: Outcomes

    @property
    def is_static(self) -> bool:
        return len(self.candidate.stages) == 1

    @cached_property
    def holdout(self) -> Outcomes:
        """On the holdout examples."""
        return simulate(self.candidate.holdout, self.rule, self.candidate.added)

    @property
    def cost(self) -> float:
        """Mean, on the calibration examples."""
        return self.calibration.mean_cost

    @property
    def accuracy(self) -> float:
        """On the calibration examples."""
        return self.calibration.accuracy

    @cached_property
    def pooled(self) -> tuple[float, float]:
        """Mean cost and accuracy on calibration and holdout examples together."""
        share = len(self.calibration.cost) / (len(self.calibration.cost) + len(self.holdout.cost))
        both = zip(
            (self.calibration.mean_cost, self.calibration.accuracy),
            (self.holdout.mean_cost, self.holdout.accuracy),
            strict=True,
        )
        cost, accuracy = (share * calibration + (1 - share) * holdout for calibration, holdout in both)
        return cost, accuracy


@dataclass(frozen=True, eq=False)
class PlanProblem:
    """What a plan is to reach.

    Attributes:
        dense: the dense network run whole, which a drop is measured against.
    """

    limits: AbsoluteConstraints
    dense: Candidate

    def objective(self, cost: float, accuracy: float) -> float:
        """What is to be large: minus the mean cost, or the accuracy; the other decides between equals."""
        share = cost / self.dense.max_cost
        if self.limits.wants_cheapest:
            return -share + TIE * accuracy
        return accuracy - TIE * share

    def objective_of(self, option: Option) -> float:
        """On the calibration examples."""
        return self.objective(option.cost, option.accuracy)

    def pooled_objective(self, option: Option) -> float:
        """On calibration and holdout examples together."""
        return self.objective(*option.pooled)

    def margin(self, option: Option, limits: AbsoluteConstraints | None = None) -> float:
        """Standard errors by which the option keeps to its worst constraint, on calibration examples.

        Args:
            limits: other constraints than the goal's.
        """
        return min(max(least_margin(self._claims(option, limits or self.limits)), -LARGEST_MARGIN), LARGEST_MARGIN)

    def cost_margin(self, option: Option) -> float:
        """The same of the mean cost alone."""
        return self.margin(option, replace(self.limits, accuracy=None, drop=None))

    def is_certain(self, option: Option) -> bool:
        """Whether the option keeps to the constraints whatever the examples say."""
        return all(test.certain for test in self._claims(option, self.limits))

    def is_dense(self, option: Option) -> bool:
        """Whether the option is the dense network itself."""
        return option.is_static and option.candidate.stages[0].name == self.dense.stages[0].name

    def _claims(self, option: Option, limits: AbsoluteConstraints) -> list[ConstraintTest]:
        candidate, logits = option.candidate, self.dense.calibration.logits[0]
        return constraint_tests(
            candidate.calibration, option.calibration, candidate.added, limits, logits, self.is_dense(option)
        )


def static_option(candidate: Candidate) -> Option:
    """A network run whole: nothing of it was chosen on any of the calibration examples."""
    rule = StopRule(SCORERS["confidence"](candidate.calibration), ())
    return Option(candidate.name, candidate, rule, simulate(candidate.calibration, rule, candidate.added))


def options_of(variant: Variant, careful: bool = True, count: int = FOLDS) -> list[Option]:
    """Its stop rules, cheapest first on the examples that they were made of.

    Args:
        careful: after the most accurate one come more careful ones still: what looks most accurate on few examples is
            a lucky one, and a test needs a start that is safe.
        count: folds.
    """
    candidate, calibration = variant.candidate, variant.candidate.calibration
    _ = calibration.features  # once, for all folds
    rungs = _rungs(variant, calibration, TRIED, careful)
    walks: list[list[Outcomes]] = [[] for _ in rungs]
    folds = folds_of(len(calibration), count, FOLDS_SEED, calibration.groups)
    for fold in folds:
        known = torch.ones(len(calibration), dtype=torch.bool)
        known[fold] = False
        held, others = calibration.take(fold), _rungs(variant, calibration.take(known), MATCHED, careful)
        scores = scores_of(held, others[0].rule.scorer)
        for rung, found in zip(rungs, walks, strict=True):
            match = min(others, key=lambda other: abs(other.cost - rung.cost))
            found.append(simulate(held, match.rule, candidate.added, scores))
    order = torch.cat(folds).argsort()
    return [
        Option(variant.name, candidate, rung.rule, _whole(found, order))
        for rung, found in zip(rungs, walks, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class _Rung:
    """A stop rule and its mean cost on the examples that it was made of."""

    rule: StopRule
    cost: float


def _rungs(variant: Variant, records: Records, at_most: int, careful: bool) -> list[_Rung]:
    """Stop rules made of `records`, by rising cost."""
    scorer, added = SCORERS[variant.scorer](records), variant.candidate.added
    found = [_Rung(point.rule, point.mean_cost) for point in sweep(records, added, scorer, variant.best, at_most)]
    if careful:
        scores = scores_of(records, scorer)
        for rule in threshold_ladder(records, scorer, CAREFUL, variant.best)[::-1]:
            cost = simulate(records, rule, added, scores).mean_cost
            if cost > found[-1].cost:
                found.append(_Rung(rule, cost))
    return found


def _whole(walks: Sequence[Outcomes], order: Tensor) -> Outcomes:
    """Walks of disjoint folds as one of all examples, put in `order`."""
    names = ("stop", "answered", "predictions", "right", "cost")
    return Outcomes(*(torch.cat([getattr(each, name) for each in walks])[order] for name in names))


def expected_gain(variant: Variant, problem: PlanProblem, fallback: float) -> float:
    """By how much its best stop rule beats `fallback`, times the chance that it passes the tests of the constraints.

    The chance takes what is seen on the calibration examples for no more than it is: an estimate with an error, as the
    test on the holdout examples will be another.
    """
    options = options_of(variant, False, COMPARED)
    needed = NormalDist().inv_cdf(1 - problem.limits.delta)
    scale = math.sqrt(len(variant.candidate.holdout) / max(len(variant.candidate.calibration), 1))
    margins = _smoothed([problem.margin(option) for option in options])
    accuracies = _smoothed([option.accuracy for option in options])
    chances = [NormalDist().cdf((margin * scale - needed) / math.sqrt(1 + scale**2)) for margin in margins]
    if (
        problem.limits.wants_cheapest
    ):  # the more expensive ones that are worth a test are tested before, and must pass as well
        before = [
            probability if margin >= LIKELY else 1.0 for probability, margin in zip(chances, margins, strict=True)
        ]
        chances = list(np.minimum(chances, np.minimum.accumulate(before[::-1])[::-1]))
    gains = [
        problem.objective(option.cost, accuracy) - fallback
        for option, accuracy in zip(options, accuracies, strict=True)
    ]
    return max(probability * gain for probability, gain in zip(chances, gains, strict=True))


def _smoothed(values: Sequence[float]) -> list[float]:
    """The median of each value and its neighbours, those at the ends with fewer."""
    half = WINDOW // 2
    return [float(np.median(values[max(0, place - half) : place + half + 1])) for place in range(len(values))]
