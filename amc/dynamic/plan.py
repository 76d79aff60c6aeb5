"""The best plan under the user's terms: chosen on policy-fit examples, tested on risk-test examples.

As Pareto testing does (Laufer-Goldshtein et al., arXiv 2210.07913): of all policies of all candidates, those that no
other beats both in merit and in how safely they keep to the terms, as far as the policy-fit examples tell, are put in
order from the safest to the best. On the risk-test examples, which had no part in any of it, they are tested one after
the other up to the first that fails (fixed-sequence testing, arXiv 2110.01052); the last that passed is the plan. So
the plan breaks a certified term with a probability of at most 1 - confidence, however many policies were looked at.
Networks run whole stand in the same order: where no cascade passes, or none is better, one of them is the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

from amc.budget import format_macs
from amc.dynamic.candidate import Candidate
from amc.dynamic.claims import Claim, bounds_of, claims_of, largest_p_value, least_safety
from amc.dynamic.part import joined
from amc.dynamic.points import Point, sweep
from amc.dynamic.policy import Policy, Walk, walk
from amc.dynamic.risk import learn_then_test
from amc.dynamic.scores import SCORERS
from amc.dynamic.terms import Limits
from amc.errors import BudgetUnreachable
from amc.pareto import non_dominated

STATIC = "static"
FIRST = "confidence"  # the scorer by which candidates are compared before any other is fitted
SHORTLIST = 6  # candidates that are planned with all their scorers
MOST_STAGES = 3  # whole networks in one cascade
TIE = 1e-9  # of accuracy, that the dense network's whole cost is worth: decides between equals


@dataclass(frozen=True, eq=False)
class Option:
    """One policy of one candidate.

    Attributes:
        cost, accuracy: means on the policy-fit examples.
        max_cost: of any example that there may be.
    """

    candidate: Candidate
    policy: Policy
    cost: float
    accuracy: float
    max_cost: float

    @property
    def is_static(self) -> bool:
        return len(self.candidate.stages) == 1

    @property
    def name(self) -> str:
        return self.candidate.name + ("" if self.is_static else f" ({self.policy.scorer.kind})")

    @cached_property
    def fit(self) -> Walk:
        return walk(self.candidate.fit, self.policy, self.candidate.added)

    @cached_property
    def risk(self) -> Walk:
        return walk(self.candidate.risk, self.policy, self.candidate.added)


@dataclass(frozen=True, eq=False)
class Reference:
    """The dense network run whole: what a drop is measured against."""

    dense: Candidate

    @property
    def macs(self) -> float:
        return self.dense.max_cost

    @property
    def accuracy(self) -> float:
        """On the policy-fit examples."""
        return float(self.dense.fit.accuracies[0])

    def is_same(self, option: Option) -> bool:
        """Whether the option is the dense network itself."""
        return option.is_static and option.candidate.stages[0].name == self.dense.stages[0].name

    def fit_claims(self, option: Option, limits: Limits) -> list[Claim]:
        """What the terms ask of it, on the policy-fit examples."""
        candidate = option.candidate
        logits = self.dense.fit.logits[0]
        return claims_of(candidate.fit, option.fit, candidate.added, limits, logits, self.is_same(option))

    def risk_claims(self, option: Option, limits: Limits) -> list[Claim]:
        """The same, on the risk-test examples."""
        candidate = option.candidate
        logits = self.dense.risk.logits[0]
        return claims_of(candidate.risk, option.risk, candidate.added, limits, logits, self.is_same(option))

    def bounds(self, option: Option, delta: float) -> dict[str, Any]:
        """As `bounds_of`, on the risk-test examples."""
        candidate = option.candidate
        logits = self.dense.risk.logits[0]
        return bounds_of(candidate.risk, option.risk, candidate.added, logits, self.is_same(option), delta)


@dataclass(frozen=True, eq=False)
class Plan:
    """What was chosen, and what it was chosen from.

    Attributes:
        option: the plan.
        static: the best network run whole under the same terms; None where none keeps to them.
        tested: the options that passed on the risk-test examples, from the safest to the best.
        failed: the option at which testing ended; None where all passed.
        rivals: the best option of each candidate that was looked at closely, best first.
        why: where the plan is a static network although cascades were looked at: the reason, in a sentence.
    """

    option: Option
    static: Option | None
    tested: tuple[Option, ...]
    failed: Option | None
    rivals: tuple[Option, ...]
    why: str | None


def subsets(members: Sequence[Candidate], most: int = MOST_STAGES) -> list[tuple[Candidate, ...]]:
    """Every choice of 2 to `most` whole networks, cheapest first."""
    ordered = sorted(members, key=lambda member: member.max_cost)
    return [choice for size in range(2, most + 1) for choice in combinations(ordered, size)]


def make_plan(candidates: Sequence[Candidate], reference: Reference, limits: Limits) -> Plan:
    """The best plan that keeps to the terms with the confidence asked for.

    Args:
        candidates: networks run whole (`static`) among them.

    Raises:
        BudgetUnreachable: nothing keeps to the terms; the message names the best that can be had.
    """
    allowed = [each for each in candidates if limits.max_cost is None or each.max_cost <= limits.max_cost]
    static = [option for each in allowed if len(each.stages) == 1 for option in options_of(each, FIRST)]
    if not allowed or not static:
        raise _too_dear(candidates, limits)
    merit = _merit_for(limits, reference)
    best = _shortlist([each for each in allowed if len(each.stages) > 1], limits, reference, merit)
    groups = [[option for name in each.scorers for option in options_of(each, name)] for each in best]
    options = [*static, *(option for group in groups for option in group)]
    order = _in_order(options, reference, limits, merit)
    tested, failed = _tested(order, reference, limits)
    if not tested:
        raise _unreachable(options, reference, limits)
    rivals = [max(group, key=merit) for group in map(_meeting(limits, reference), groups) if group]
    whole = [option for option in tested if option.is_static]
    chosen, why = _decide(tested, failed, limits, bool(best))
    return Plan(
        chosen,
        whole[-1] if whole else _most_likely(static, reference, limits, merit),
        tuple(tested),
        failed,
        tuple(sorted(rivals, key=merit, reverse=True)),
        why,
    )


def options_of(candidate: Candidate, scorer: str, answers: Sequence[bool] = (False, True)) -> list[Option]:
    """Policies of a candidate that no other one with this scorer beats on the policy-fit examples.

    Args:
        answers: whether the best visited stage may answer instead of the last (`Policy.best`).
    """
    if len(candidate.stages) == 1:
        policy = Policy(SCORERS[FIRST](candidate.fit), ())
        return [Option(candidate, policy, candidate.max_cost, float(candidate.fit.accuracies[0]), candidate.max_cost)]
    fitted = SCORERS[scorer](candidate.fit)
    points = [point for best in answers for point in sweep(candidate.fit, candidate.added, fitted, best)]
    kept = non_dominated([point.mean_cost for point in points], [point.accuracy for point in points])
    return [_option(candidate, points[index]) for index in kept]


def _option(candidate: Candidate, point: Point) -> Option:
    return Option(candidate, point.policy, point.mean_cost, point.accuracy, point.max_cost)


Merit = Callable[[Option], float]


def _merit_for(limits: Limits, reference: Reference) -> Merit:
    """What is to be as large as possible: minus the mean cost, or the accuracy; the other decides between equals."""
    if limits.wants_cheapest:
        return lambda option: -option.cost / reference.macs + TIE * option.accuracy
    return lambda option: option.accuracy - TIE * option.cost / reference.macs


def _meeting(limits: Limits, reference: Reference) -> Callable[[Sequence[Option]], list[Option]]:
    """What keeps to the terms on the policy-fit examples, taken at face value."""
    least = max(limits.accuracy or 0.0, 0.0 if limits.drop is None else reference.accuracy - limits.drop)
    most = float("inf") if limits.mean_cost is None else limits.mean_cost

    def meeting(options: Sequence[Option]) -> list[Option]:
        return [option for option in options if option.cost <= most and option.accuracy >= least - 1e-12]

    return meeting


def _shortlist(candidates: Sequence[Candidate], limits: Limits, reference: Reference, merit: Merit) -> list[Candidate]:
    """The candidates whose best policy is best, by the first of their scorers; none that keeps to no term."""
    meeting = _meeting(limits, reference)
    found = []
    for each in candidates:
        name = FIRST if FIRST in each.scorers else each.scorers[0]
        fitting = meeting(options_of(each, name, answers=(False,)))
        if fitting:
            found.append((max(map(merit, fitting)), each))
    found.sort(key=lambda pair: pair[0], reverse=True)
    kept = [each for _, each in found[:SHORTLIST]]
    methods = {each.method for each in kept}
    for _, each in found[SHORTLIST:]:  # each method is looked at closely at least once
        if each.method not in methods:
            kept.append(each)
            methods.add(each.method)
    return kept


def _in_order(options: Sequence[Option], reference: Reference, limits: Limits, merit: Merit) -> list[Option]:
    """What keeps to the terms on the policy-fit examples, and none beats in safety and merit, safest first.

    Networks run whole are beaten only by each other: each cascade is to be compared with one.
    """
    meeting = _meeting(limits, reference)(options)
    unsafe = {id(option): -_finite(least_safety(reference.fit_claims(option, limits))) for option in meeting}
    kept: list[Option] = []
    for group in (meeting, [option for option in meeting if option.is_static]):
        front = non_dominated([unsafe[id(option)] for option in group], [merit(option) for option in group])
        kept += [group[index] for index in front if all(group[index] is not each for each in kept)]
    return sorted(kept, key=lambda option: (unsafe[id(option)], merit(option)))


def _finite(safety: float) -> float:
    return min(max(safety, -1e9), 1e9)


def _tested(order: Sequence[Option], reference: Reference, limits: Limits) -> tuple[list[Option], Option | None]:
    """The options before the first one that fails on the risk-test examples, and that one."""
    p_values = (largest_p_value(reference.risk_claims(option, limits), limits.delta) for option in order)
    last = learn_then_test(p_values, limits.delta)
    passed = 0 if last is None else last + 1
    return list(order[:passed]), order[passed] if passed < len(order) else None


def _decide(tested: Sequence[Option], failed: Option | None, limits: Limits, looked: bool) -> tuple[Option, str | None]:
    """The last that passed, unless it is a cascade that the risk-test examples show to be no better than a network."""
    chosen = tested[-1]
    static = next((option for option in reversed(tested) if option.is_static), None)
    if chosen.is_static:
        if not looked:
            return chosen, "no cascade keeps to the terms on the policy-fit examples"
        if failed is not None:
            return chosen, f"no better cascade passed the test on the risk-test examples: {failed.name} did not"
        return chosen, "no cascade is better on the policy-fit examples"
    if static is None:
        return chosen, None
    if limits.wants_cheapest:
        beaten = chosen.risk.mean_cost < static.risk.mean_cost
    else:
        beaten = chosen.risk.accuracy > static.risk.accuracy
    if beaten:
        return chosen, None
    return static, f"on the risk-test examples {chosen.name} is no better than {static.name}, which is simpler"


def _most_likely(static: Sequence[Option], reference: Reference, limits: Limits, merit: Merit) -> Option | None:
    """The best network by the policy-fit examples, tested or not."""
    return max(_meeting(limits, reference)(static), key=merit, default=None)


def _too_dear(candidates: Sequence[Candidate], limits: Limits) -> BudgetUnreachable:
    cheapest = min(candidates, key=lambda each: each.max_cost)
    cap = format_macs(limits.max_cost or 0.0)
    return BudgetUnreachable(
        f"--max-cost must allow some network, but {cap} is below the cheapest one's {format_macs(cheapest.max_cost)} "
        f"({cheapest.name}); raise --max-cost"
    )


def _unreachable(options: Sequence[Option], reference: Reference, limits: Limits) -> BudgetUnreachable:
    """The terms cannot be met with confidence: what can be had, said of one option chosen on policy-fit examples."""
    affordable = [each for each in options if limits.mean_cost is None or each.cost <= limits.mean_cost]
    if not affordable:
        cheapest = min(options, key=lambda each: each.cost)
        return BudgetUnreachable(
            f"--budget must be reachable, but {format_macs(limits.mean_cost or 0.0)} is below the least mean cost, "
            f"{format_macs(cheapest.cost)} ({cheapest.name}); raise --budget, or let more networks be trained"
        )
    best = max(affordable, key=lambda each: (each.accuracy, -each.cost))
    bounds = reference.bounds(best, limits.delta)
    return BudgetUnreachable(
        f"the terms must be reachable with confidence {1 - limits.delta:.0%}, but are not: the best certified on "
        f"{bounds['examples']} risk-test examples is accuracy {bounds['accuracy']:.2%} (measured "
        f"{best.risk.accuracy:.2%}), drop {bounds['drop']:.2%}, mean cost {format_macs(bounds['mean_cost'])} "
        f"({best.name}); ask for less, lower --confidence, or take a larger measure split"
    )


def in_a_row(method: str, members: Sequence[Candidate], scorers: tuple[str, ...]) -> Candidate:
    """One candidate of all the stages of others, which share no chain, in the order given."""
    return Candidate(
        method,
        tuple(stage for each in members for stage in each.stages),
        joined([each.fit for each in members]),
        joined([each.risk for each in members]),
        scorers,
        tuple(part for each in members for part in each.parts),
    )
