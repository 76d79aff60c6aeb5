"""What policies cost and how often they are right, and the best ones over all costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from amc.cascade.policy import NEVER, Policy, Scorer, Walk, scores_of, walk
from amc.cascade.records import Records
from amc.cascade.thresholds import Board, Found, together
from amc.cost.budget import format_macs
from amc.system.errors import BudgetUnreachable

FRONT = 256  # points that a sweep keeps at most
MOVED = 48  # of the best so far, those whose thresholds are moved one at a time
ROUNDS = 2  # of such moves


@dataclass(frozen=True, eq=False)
class Point:
    """What a policy does on the records on which it was evaluated.

    Attributes:
        mean_cost, accuracy: over the examples.
        max_cost: of an example that visits every stage that the policy can reach on any input, seen here or not.
        shares: of the examples, how many stopped at each stage.
    """

    policy: Policy
    mean_cost: float
    accuracy: float
    max_cost: float
    shares: tuple[float, ...]


def evaluate(records: Records, policy: Policy, added: Sequence[float], scores: Tensor | None = None) -> Point:
    """The point of one policy; arguments as in `amc.cascade.policy.walk`."""
    return point_of(walk(records, policy, added, scores), policy, added)


def point_of(walked: Walk, policy: Policy, added: Sequence[float]) -> Point:
    """The point of a walk that was planned already."""
    ends = [stage for stage, threshold in enumerate(policy.thresholds) if threshold == -NEVER]  # all stop there
    deepest = min(ends, default=len(added) - 1)
    shares = tuple(walked.shares(len(added)).tolist())
    return Point(policy, walked.mean_cost, walked.accuracy, sum(added[: deepest + 1]), shares)


def sweep(
    records: Records, added: Sequence[float], scorer: Scorer, best: bool = False, at_most: int = FRONT
) -> list[Point]:
    """The best policies found over all costs, cheapest first: each is more accurate than all cheaper ones.

    The stages and the scorer are given, the thresholds are searched in three ways (`amc.cascade.thresholds`): one for
    all stages, every one that differs; shares that fall as p^k; and a price on cost, followed by moving one threshold
    at a time. With two stages the first alone is exhaustive.

    Args:
        records: of the policy-fit half, with at least one example.
        added: S costs, what visiting each stage adds.
        best: as in `Policy`.
        at_most: points kept, spread evenly over the costs; all of them where they are fewer.
    """
    scores = scores_of(records, scorer)
    board = Board(records, added, scores, best)
    found = board.common()
    if len(added) > 2:
        found = together([found, board.geometric(), board.priced()]).front()
        for _ in range(ROUNDS):
            found = together([found, board.moved(found.thinned(MOVED))]).front()
    return pareto(_points(records, added, scorer, best, scores, found.front().thinned(at_most)))


def pareto(points: Sequence[Point]) -> list[Point]:
    """Those more accurate than all that cost the same or less, cheapest first; one of equals."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.mean_cost, -point.accuracy)):
        if not kept or point.accuracy > kept[-1].accuracy:
            kept.append(point)
    return kept


def best_under(points: Sequence[Point], cost: float) -> Point:
    """The most accurate of those whose mean cost is at most `cost`, the cheapest of equals.

    A larger cost chooses among more points, so it never gives a lower accuracy.

    Raises:
        BudgetUnreachable: all cost more; the message names the cheapest.
    """
    within = [point for point in points if point.mean_cost <= cost]
    if not within:
        least = min((point.mean_cost for point in points), default=NEVER)
        raise BudgetUnreachable(
            f"the mean cost must be at most {format_macs(cost)}, but the cheapest policy costs {format_macs(least)}; "
            "raise the budget or add a cheaper stage"
        )
    return max(within, key=lambda point: (point.accuracy, -point.mean_cost))


def cheapest_at(points: Sequence[Point], accuracy: float) -> Point:
    """The cheapest of those that are right at least as often as asked, the most accurate of equals.

    Raises:
        BudgetUnreachable: none is; the message names the best.
    """
    enough = [point for point in points if point.accuracy >= accuracy]
    if not enough:
        most = max((point.accuracy for point in points), default=0.0)
        raise BudgetUnreachable(
            f"the accuracy must be at least {accuracy:.2%}, but the best policy reaches {most:.2%}; "
            "ask for less or add a better stage"
        )
    return min(enough, key=lambda point: (point.mean_cost, -point.accuracy))


def _points(
    records: Records, added: Sequence[float], scorer: Scorer, best: bool, scores: Tensor, found: Found
) -> list[Point]:
    policies = [Policy(scorer, tuple(row), best) for row in found.thresholds.tolist()]
    return [evaluate(records, policy, added, scores) for policy in policies]
