"""What stop rules cost and how often they are right, and the best ones over all costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from amc.cascade.rules.stop_rule import NEVER, Outcomes, Scorer, StopRule, scores_of, simulate
from amc.cascade.rules.thresholds import ThresholdSearch, ThresholdSets, together
from amc.cascade.stages.records import Records
from amc.cost.budget import format_macs
from amc.system.errors import BudgetUnreachable

FRONT = 256  # points that a sweep keeps at most
MOVED = 48  # of the best so far, those whose thresholds are moved one at a time
ROUNDS = 2  # of such moves


@dataclass(frozen=True, eq=False)
class OperatingPoint:
    """What a stop rule does on the records on which it was evaluated.

    Attributes:
        mean_cost, accuracy: over the examples.
        max_cost: of an example that visits every stage that the stop rule can reach on any input, seen here or not.
        shares: of the examples, how many stopped at each stage.
    """

    rule: StopRule
    mean_cost: float
    accuracy: float
    max_cost: float
    shares: tuple[float, ...]


def evaluate(records: Records, rule: StopRule, added: Sequence[float], scores: Tensor | None = None) -> OperatingPoint:
    """The point of one stop rule; arguments as in `amc.cascade.rules.stop_rule.walk`."""
    return point_of(simulate(records, rule, added, scores), rule, added)


def point_of(outcomes: Outcomes, rule: StopRule, added: Sequence[float]) -> OperatingPoint:
    """The point of a walk that was planned already."""
    ends = [stage for stage, threshold in enumerate(rule.thresholds) if threshold == -NEVER]  # all stop there
    deepest = min(ends, default=len(added) - 1)
    shares = tuple(outcomes.shares(len(added)).tolist())
    return OperatingPoint(rule, outcomes.mean_cost, outcomes.accuracy, sum(added[: deepest + 1]), shares)


def sweep(
    records: Records, added: Sequence[float], scorer: Scorer, best: bool = False, at_most: int = FRONT
) -> list[OperatingPoint]:
    """The best stop rules found over all costs, cheapest first: each is more accurate than all cheaper ones.

    The stages and the scorer are given, the thresholds are searched in three ways (`amc.cascade.rules.thresholds`): one
    for all stages, every one that differs; shares that fall as p^k; and a price on cost, followed by moving one
    threshold at a time. With two stages the first alone is exhaustive.

    Args:
        records: of the calibration split, with at least one example.
        added: S costs, what visiting each stage adds.
        best: as in `StopRule`.
        at_most: points kept, spread evenly over the costs; all of them where they are fewer.
    """
    scores = scores_of(records, scorer)
    board = ThresholdSearch(records, added, scores, best)
    found = board.common()
    if len(added) > 2:
        found = together([found, board.geometric(), board.priced()]).front()
        for _ in range(ROUNDS):
            found = together([found, board.moved(found.thinned(MOVED))]).front()
    return pareto(_points(records, added, scorer, best, scores, found.front().thinned(at_most)))


def pareto(points: Sequence[OperatingPoint]) -> list[OperatingPoint]:
    """Those more accurate than all that cost the same or less, cheapest first; one of equals."""
    kept: list[OperatingPoint] = []
    for point in sorted(points, key=lambda point: (point.mean_cost, -point.accuracy)):
        if not kept or point.accuracy > kept[-1].accuracy:
            kept.append(point)
    return kept


def best_under(points: Sequence[OperatingPoint], cost: float) -> OperatingPoint:
    """The most accurate of those whose mean cost is at most `cost`, the cheapest of equals.

    A larger cost chooses among more points, so it never gives a lower accuracy.

    Raises:
        BudgetUnreachable: all cost more; the message names the cheapest.
    """
    within = [point for point in points if point.mean_cost <= cost]
    if not within:
        least = min((point.mean_cost for point in points), default=NEVER)
        raise BudgetUnreachable(
            f"the mean cost must be at most {format_macs(cost)}, but the cheapest rule costs {format_macs(least)}; "
            "raise the budget or add a cheaper stage"
        )
    return max(within, key=lambda point: (point.accuracy, -point.mean_cost))


def cheapest_at(points: Sequence[OperatingPoint], accuracy: float) -> OperatingPoint:
    """The cheapest of those that are right at least as often as asked, the most accurate of equals.

    Raises:
        BudgetUnreachable: none is; the message names the best.
    """
    enough = [point for point in points if point.accuracy >= accuracy]
    if not enough:
        most = max((point.accuracy for point in points), default=0.0)
        raise BudgetUnreachable(
            f"the accuracy must be at least {accuracy:.2%}, but the best stop rule reaches {most:.2%}; "
            "ask for less or add a better stage"
        )
    return min(enough, key=lambda point: (point.mean_cost, -point.accuracy))


def _points(
    records: Records, added: Sequence[float], scorer: Scorer, best: bool, scores: Tensor, found: ThresholdSets
) -> list[OperatingPoint]:
    rules = [StopRule(scorer, tuple(row), best) for row in found.thresholds.tolist()]
    return [evaluate(records, rule, added, scores) for rule in rules]
