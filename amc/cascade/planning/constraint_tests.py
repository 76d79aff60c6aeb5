"""Whether a plan keeps to constraints: judged on held-out examples, with tests that are valid for every number of them.

A plan breaks its constraints if it breaks any of them, so it is cleared only where each single test rejects that it
does: an intersection-union test (Berger 1982), whose p-value is the largest of theirs. No level is spent twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from amc.cascade.certificates.mean_tests import Losses
from amc.cascade.certificates.risk_control import RISKS
from amc.cascade.planning.constraints import AbsoluteConstraints
from amc.cascade.rules.stop_rule import Outcomes
from amc.cascade.stages.records import Records


@dataclass(frozen=True, eq=False)
class ConstraintTest:
    """That the expected loss is at most a limit; `certain`: it is, whatever the examples say."""

    losses: Losses
    limit: float
    certain: bool = False

    def p_value(self, delta: float) -> float:
        """Of the hypothesis that the constraint is broken."""
        return 0.0 if self.certain else self.losses.p_value(self.limit, delta)

    @property
    def margin(self) -> float:
        """By how many standard errors the mean seen lies below the limit: orders tests, and tests nothing."""
        if self.certain:
            return math.inf
        slack, spread = self.limit - self.losses.mean, float(self.losses.values.std())
        if spread == 0:
            return math.copysign(math.inf, slack) if slack else 0.0
        return slack / (spread / math.sqrt(len(self.losses.values)))


def constraint_tests(
    records: Records,
    outcomes: Outcomes,
    added: Sequence[float],
    limits: AbsoluteConstraints,
    reference: Tensor,
    is_reference: bool,
) -> list[ConstraintTest]:
    """What the constraints ask of a plan, on the examples of a walk.

    Args:
        reference: (n, classes) logits of the dense network on the same examples.
        is_reference: the plan is the dense network, whose drop is zero whatever the examples are.
    """
    found = []
    if limits.mean_cost is not None:
        losses = RISKS["cost"].losses(records, outcomes, added)
        found.append(ConstraintTest(losses, limits.mean_cost, certain=losses.support.high <= limits.mean_cost))
    if limits.accuracy is not None:
        found.append(ConstraintTest(RISKS["accuracy"].losses(records, outcomes, added), 1 - limits.accuracy))
    if limits.drop is not None:
        found.append(
            ConstraintTest(RISKS["gap"].losses(records, outcomes, added, reference), limits.drop, is_reference)
        )
    return found


def largest_p_value(tests: Sequence[ConstraintTest], delta: float) -> float:
    """Of the hypothesis that any of the constraints is broken; 0 where there is none."""
    return max((test.p_value(delta) for test in tests), default=0.0)


def least_margin(tests: Sequence[ConstraintTest]) -> float:
    """Of the constraint that is nearest to being broken; infinite where there is none."""
    return min((test.margin for test in tests), default=math.inf)
