"""Whether a plan keeps to terms: judged on held-out examples, with tests that are valid for every number of them.

A plan breaks its terms if it breaks any of them, so it is cleared only where each single test rejects that it does: an
intersection-union test (Berger 1982), whose p-value is the largest of theirs. No level is spent twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from amc.cascade.means import Losses
from amc.cascade.policy import Walk
from amc.cascade.records import Records
from amc.cascade.risk import RISKS
from amc.cascade.terms import Limits


@dataclass(frozen=True, eq=False)
class Claim:
    """That the expected loss is at most a limit; `certain`: it is, whatever the examples say."""

    losses: Losses
    limit: float
    certain: bool = False

    def p_value(self, delta: float) -> float:
        """Of the hypothesis that the claim is false."""
        return 0.0 if self.certain else self.losses.p_value(self.limit, delta)

    @property
    def safety(self) -> float:
        """By how many standard errors the mean seen lies below the limit: orders claims, and tests nothing."""
        if self.certain:
            return math.inf
        slack, spread = self.limit - self.losses.mean, float(self.losses.values.std())
        if spread == 0:
            return math.copysign(math.inf, slack) if slack else 0.0
        return slack / (spread / math.sqrt(len(self.losses.values)))


def claims_of(
    records: Records, walked: Walk, added: Sequence[float], limits: Limits, reference: Tensor, is_reference: bool
) -> list[Claim]:
    """What the terms ask of a plan, on the examples of a walk.

    Args:
        reference: (n, classes) logits of the dense network on the same examples.
        is_reference: the plan is the dense network, whose drop is zero whatever the examples are.
    """
    found = []
    if limits.mean_cost is not None:
        losses = RISKS["cost"].losses(records, walked, added)
        found.append(Claim(losses, limits.mean_cost, certain=losses.support.high <= limits.mean_cost))
    if limits.accuracy is not None:
        found.append(Claim(RISKS["accuracy"].losses(records, walked, added), 1 - limits.accuracy))
    if limits.drop is not None:
        found.append(Claim(RISKS["gap"].losses(records, walked, added, reference), limits.drop, is_reference))
    return found


def largest_p_value(claims: Sequence[Claim], delta: float) -> float:
    """Of the hypothesis that any of the claims is false; 0 where nothing is claimed."""
    return max((claim.p_value(delta) for claim in claims), default=0.0)


def least_safety(claims: Sequence[Claim]) -> float:
    """Of the claim that stands worst; infinite where nothing is claimed."""
    return min((claim.safety for claim in claims), default=math.inf)


def bounds_of(
    records: Records, walked: Walk, added: Sequence[float], reference: Tensor, is_reference: bool, delta: float
) -> dict[str, Any]:
    """One-sided bounds of a plan, each by itself with confidence 1 - delta; `max_cost` is no estimate.

    `accuracy` from below, `mean_cost` and `drop` (against the dense network) from above. All of them take the examples
    for independent draws, those of one of the `groups` (None: there are none) as well.
    """
    error, cost, gap = (
        RISKS[name].losses(records, walked, added, reference).upper(delta) for name in ("accuracy", "cost", "gap")
    )
    return {
        "examples": len(records),
        "groups": None if records.groups is None else len(set(records.groups.tolist())),
        "confidence": 1 - delta,
        "accuracy": 1 - error,
        "mean_cost": min(cost, sum(added)),
        "drop": 0.0 if is_reference else gap,
        "max_cost": sum(added),
    }
