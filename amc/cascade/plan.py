"""The best plan under the user's terms: chosen on policy-fit examples, tested on risk-test examples.

As in Pareto testing (Laufer-Goldshtein et al., arXiv 2210.07913), the policies of the best ways (`options`) are put in
order from the safest to the best, as far as the policy-fit examples tell. On the risk-test examples, which had no part
in any of it, they are tested one after the other up to the first that fails (fixed-sequence testing, arXiv 2110.01052).
That any of those that passed breaks a certified term has a probability of 1 - confidence at most, so each of them may
be the plan. Networks run whole stand in the same order: where no cascade passes, or none beats the best of them on all
held-out examples together, one of them is the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from amc.cascade.candidate import Candidate
from amc.cascade.claims import Claim, bounds_of, claims_of, largest_p_value
from amc.cascade.options import LIKELY, Goal, Option, Way, expected_merit, options_of, static_option
from amc.cascade.risk import learn_then_test
from amc.cascade.terms import Limits
from amc.cost.budget import format_macs
from amc.study.pareto import non_dominated
from amc.system.errors import BudgetUnreachable

FIRST = "confidence"  # the scorer by which candidates are compared before any other is fitted
SHORTLIST = 6  # candidates of which all ways are compared
SURE = 3.0  # standard errors from a limit
TESTED = 2  # ways whose policies are tested where accuracy is not promised; where it is, each costs power: one


@dataclass(frozen=True, eq=False)
class Plan:
    """What was chosen, and what it was chosen from.

    Attributes:
        option: the plan.
        static: the best network run whole under the same terms; None where none keeps to them.
        tested: the options that passed on the risk-test examples, from the safest to the best.
        failed: the option at which testing ended; None where all passed.
        rivals: the best option of each way that was looked at closely, best way first.
        why: where the plan is a static network although cascades were looked at: the reason, in a sentence.
    """

    option: Option
    static: Option | None
    tested: tuple[Option, ...]
    failed: Option | None
    rivals: tuple[Option, ...]
    why: str | None


def make_plan(candidates: Sequence[Candidate], goal: Goal) -> Plan:
    """The best plan that keeps to the terms with the confidence asked for.

    Args:
        candidates: networks run whole (one stage) among them.

    Raises:
        BudgetUnreachable: nothing keeps to the terms; the message names the best that can be had.
    """
    limits = goal.limits
    allowed = [each for each in candidates if limits.max_cost is None or each.max_cost <= limits.max_cost]
    static = [static_option(each) for each in allowed if len(each.stages) == 1]
    if not static:
        raise _too_dear(candidates, limits)
    ways = shortlist([each for each in allowed if len(each.stages) > 1], goal, _fallback(static, goal))
    found = [options_of(way) for way in ways]
    offered = found[: 1 if limits.wants_cheapest else TESTED]
    tested, failed = _tested(_in_order(static, offered, goal), goal)
    if not tested:
        raise _unreachable([*static, *(option for group in offered for option in group)], goal)
    whole = [option for option in tested if option.is_static]
    chosen, why = _decide(tested, failed, goal, bool(ways))
    rivals = (_likely(options, goal) for options in found)
    return Plan(
        chosen,
        max(whole, key=goal.pooled_merit) if whole else _likely(static, goal),
        tuple(tested),
        failed,
        tuple(option for option in rivals if option is not None),
        why,
    )


def risk_claims(option: Option, goal: Goal) -> list[Claim]:
    """What the terms ask of an option, on the risk-test examples."""
    candidate, logits = option.candidate, goal.dense.risk.logits[0]
    return claims_of(candidate.risk, option.risk, candidate.added, goal.limits, logits, goal.is_dense(option))


def risk_bounds(option: Option, goal: Goal) -> dict[str, Any]:
    """As `amc.cascade.claims.bounds_of`, on the risk-test examples."""
    candidate, logits = option.candidate, goal.dense.risk.logits[0]
    return bounds_of(candidate.risk, option.risk, candidate.added, logits, goal.is_dense(option), goal.limits.delta)


def shortlist(candidates: Sequence[Candidate], goal: Goal, fallback: float) -> list[Way]:
    """The ways whose expected merit is best, the best first: at most one for each candidate.

    Args:
        fallback: the merit of what is taken where nothing passes.
    """
    first = [Way(each, FIRST if FIRST in each.scorers else each.scorers[0]) for each in candidates]
    merits = [(expected_merit(way, goal, fallback), way) for way in first]
    ranked = [way for merit, way in sorted(merits, key=lambda pair: -pair[0]) if merit > 0]
    best: list[tuple[float, Way]] = []
    for way in ranked[:SHORTLIST]:
        ways = [Way(way.candidate, scorer, recall) for scorer in way.candidate.scorers for recall in (False, True)]
        best.append(max(((expected_merit(each, goal, fallback), each) for each in ways), key=lambda pair: pair[0]))
    return [way for _, way in sorted(best, key=lambda pair: -pair[0])]


def _fallback(static: Sequence[Option], goal: Goal) -> float:
    """The merit of the best network that is likely to keep to the terms; where there is none, of the worst there is."""
    best = _likely(static, goal)
    return min(goal.merit_of(option) for option in static) if best is None else goal.merit_of(best)


def _likely(options: Sequence[Option], goal: Goal) -> Option | None:
    """The best of those that keep to the terms at face value."""
    return max((option for option in options if goal.safety(option) >= 0), key=goal.merit_of, default=None)


def _in_order(static: Sequence[Option], offered: Sequence[Sequence[Option]], goal: Goal) -> list[Option]:
    """What is to be tested, the safest first.

    Where accuracy is promised, a way's policies come in the order of their cost, the dearest first: the more often the
    last stages answer the nearer is it to them, while the safety seen is partly luck. Where the mean cost alone is,
    they come by safety, and those that others of the group beat in both safety and merit are left out. A network that
    a cascade beats in both is tested only where it will hardly fail: a failure ends the test for all that come after.
    What cannot fail, such as the dense network where a drop is limited, comes first.
    """
    entries = [[(-goal.safety(option), goal.merit_of(option), option) for option in group] for group in offered]
    whole = [entry for entry in ((-goal.safety(o), goal.merit_of(o), o) for o in static) if entry[0] <= 0]
    whole = [whole[index] for index in _front(whole)]
    if goal.limits.wants_cheapest:
        kept = [entry for group in entries for entry in group if entry[0] <= -LIKELY]
        kept = [entry for entry in kept if goal.cost_safety(entry[2]) >= SURE]  # the dearest come first
        front = {id(entry[2]) for entry in whole if all(entry[1] > other[1] for other in kept)}
    else:
        fitting = [[entry for entry in group if entry[0] <= 0] for group in entries]
        kept = [group[index] for group in fitting for index in _front(group)]
        both = [*whole, *kept]
        front = {id(both[index][2]) for index in _front(both)}
    whole = [entry for entry in whole if entry[0] <= -SURE or id(entry[2]) in front]
    by_cost = goal.limits.wants_cheapest
    ordered = sorted([*whole, *kept], key=lambda entry: -entry[2].cost if by_cost else entry[0])
    ordered.sort(key=lambda entry: not goal.is_certain(entry[2]))  # what cannot fail costs those after it nothing
    return [option for _, _, option in ordered]


def _front(entries: Sequence[tuple[float, float, Option]]) -> list[np.intp]:
    return list(non_dominated([entry[0] for entry in entries], [entry[1] for entry in entries]))


def _tested(order: Sequence[Option], goal: Goal) -> tuple[list[Option], Option | None]:
    """The options before the first one that fails on the risk-test examples, and that one."""
    delta = goal.limits.delta
    last = learn_then_test((largest_p_value(risk_claims(option, goal), delta) for option in order), delta)
    passed = 0 if last is None else last + 1
    return list(order[:passed]), order[passed] if passed < len(order) else None


def _decide(tested: Sequence[Option], failed: Option | None, goal: Goal, looked: bool) -> tuple[Option, str | None]:
    """The best of what passed; a cascade only if it beats every network.

    Whichever of them is taken, and by whatever figures, the promise holds. So the best is told by as many examples as
    there are, the policy-fit ones (cross-fitted) and the risk-test ones together: half as many tell little.
    """
    cascades = [option for option in tested if not option.is_static]
    static = max((option for option in tested if option.is_static), key=goal.pooled_merit, default=None)
    if not cascades:
        assert static is not None
        if not looked:
            return static, "no cascade is likely to keep to the terms, by the policy-fit examples"
        if failed is None:
            return static, "no cascade keeps to the terms better, by the policy-fit examples"
        return static, f"no cascade passed the test on the risk-test examples: {failed.name} did not"
    chosen = max(cascades, key=goal.pooled_merit)
    if static is None or _beats(chosen, static, goal):
        return chosen, None
    return static, f"on all held-out examples {chosen.name} is no better than {static.name}, which is simpler"


def _beats(chosen: Option, static: Option, goal: Goal) -> bool:
    figure = 0 if goal.limits.wants_cheapest else 1
    ours, theirs = chosen.pooled[figure], static.pooled[figure]
    return ours < theirs if goal.limits.wants_cheapest else ours > theirs


def _too_dear(candidates: Sequence[Candidate], limits: Limits) -> BudgetUnreachable:
    cheapest = min(candidates, key=lambda each: each.max_cost)
    cap = format_macs(limits.max_cost or 0.0)
    return BudgetUnreachable(
        f"--max-cost must allow some network, but {cap} is below the cheapest one's {format_macs(cheapest.max_cost)} "
        f"({cheapest.name}); raise --max-cost"
    )


def _unreachable(options: Sequence[Option], goal: Goal) -> BudgetUnreachable:
    """The terms cannot be met with confidence: what can be had, said of one option chosen on policy-fit examples."""
    limits = goal.limits
    affordable = [each for each in options if limits.mean_cost is None or each.cost <= limits.mean_cost]
    if not affordable:
        cheapest = min(options, key=lambda each: each.cost)
        return BudgetUnreachable(
            f"--budget must be reachable, but {format_macs(limits.mean_cost or 0.0)} is below the least mean cost, "
            f"{format_macs(cheapest.cost)} ({cheapest.name}); raise --budget, or let more networks be trained"
        )
    best = max(affordable, key=lambda each: (each.accuracy, -each.cost))
    bounds = risk_bounds(best, goal)
    return BudgetUnreachable(
        f"the terms must be reachable with confidence {1 - limits.delta:.0%}, but are not: the best certified on "
        f"{bounds['examples']} risk-test examples is accuracy {bounds['accuracy']:.2%} (measured "
        f"{best.risk.accuracy:.2%}), drop {bounds['drop']:.2%}, mean cost {format_macs(bounds['mean_cost'])} "
        f"({best.name}); ask for less, lower --confidence, or take a larger validation split"
    )
