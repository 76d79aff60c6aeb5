"""The best plan under the user's constraints: chosen on calibration examples, tested on holdout examples.

As in Pareto testing (Laufer-Goldshtein et al., arXiv 2210.07913), the stop rules of the best variants are put
in order from the safest to the best, as far as the calibration examples tell. On the holdout examples, which had no
part in any of it, they are tested one after the other up to the first that fails (fixed-sequence testing, arXiv
2110.01052). That any of those that passed breaks a certified constraint has a probability of 1 - confidence at most, so
each of them may be the plan. Networks run whole stand in the same order: where no cascade passes, or none beats the
best of them on all held-out examples together, one of them is the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from amc.cascade.certificates.certified_bounds import bounds_of
from amc.cascade.certificates.risk_control import learn_then_test
from amc.cascade.planning.constraint_tests import ConstraintTest, constraint_tests, largest_p_value
from amc.cascade.planning.constraints import AbsoluteConstraints
from amc.cascade.planning.cross_fitting import (
    LIKELY,
    Option,
    PlanProblem,
    Variant,
    expected_gain,
    options_of,
    static_option,
)
from amc.cascade.stages.candidate import Candidate
from amc.cost.budget import format_macs
from amc.study.pareto import non_dominated
from amc.system.errors import BudgetUnreachable

FIRST = "confidence"  # the scorer by which candidates are compared before any other is fitted
SHORTLIST = 6  # candidates of which all variants are compared
SURE = 3.0  # standard errors from a limit
TESTED = 2  # variants whose stop rules are tested where accuracy is not promised; where it is, each costs power: one


@dataclass(frozen=True, eq=False)
class Plan:
    """What was chosen, and what it was chosen from.

    Attributes:
        option: the plan.
        static: the best network run whole under the same constraints; None where none keeps to them.
        tested: the options that passed on the holdout examples, from the safest to the best.
        failed: the option at which testing ended; None where all passed.
        alternatives: the best option of each variant that was looked at closely, best first.
        why: where the plan is a static network although cascades were looked at: the reason, in a sentence.
    """

    option: Option
    static: Option | None
    tested: tuple[Option, ...]
    failed: Option | None
    alternatives: tuple[Option, ...]
    why: str | None


def make_plan(candidates: Sequence[Candidate], problem: PlanProblem) -> Plan:
    """The best plan that keeps to the constraints with the confidence asked for.

    Args:
        candidates: networks run whole (one stage) among them.

    Raises:
        BudgetUnreachable: nothing keeps to the constraints; the message names the best that can be had.
    """
    limits = problem.limits
    allowed = [each for each in candidates if limits.max_cost is None or each.max_cost <= limits.max_cost]
    static = [static_option(each) for each in allowed if len(each.stages) == 1]
    if not static:
        raise _too_expensive(candidates, limits)
    variants = shortlist([each for each in allowed if len(each.stages) > 1], problem, _fallback(static, problem))
    found = [options_of(variant) for variant in variants]
    offered = found[: 1 if limits.wants_cheapest else TESTED]
    tested, failed = _tested(_in_order(static, offered, problem), problem)
    if not tested:
        raise _unreachable([*static, *(option for group in offered for option in group)], problem)
    whole = [option for option in tested if option.is_static]
    chosen, why = _decide(tested, failed, problem, bool(variants))
    alternatives = (_likely(options, problem) for options in found)
    return Plan(
        chosen,
        max(whole, key=problem.pooled_objective) if whole else _likely(static, problem),
        tuple(tested),
        failed,
        tuple(option for option in alternatives if option is not None),
        why,
    )


def holdout_tests(option: Option, problem: PlanProblem) -> list[ConstraintTest]:
    """What the constraints ask of an option, on the holdout examples."""
    candidate, logits = option.candidate, problem.dense.holdout.logits[0]
    return constraint_tests(
        candidate.holdout, option.holdout, candidate.added, problem.limits, logits, problem.is_dense(option)
    )


def holdout_bounds(option: Option, problem: PlanProblem) -> dict[str, Any]:
    """As `amc.cascade.certificates.certified_bounds.bounds_of`, on the holdout examples."""
    candidate, logits = option.candidate, problem.dense.holdout.logits[0]
    return bounds_of(
        candidate.holdout, option.holdout, candidate.added, logits, problem.is_dense(option), problem.limits.delta
    )


def shortlist(candidates: Sequence[Candidate], problem: PlanProblem, fallback: float) -> list[Variant]:
    """The variants whose expected gain is best, the best first: at most one for each candidate.

    Args:
        fallback: the objective of what is taken where nothing passes.
    """
    first = [Variant(each, FIRST if FIRST in each.scorers else each.scorers[0]) for each in candidates]
    objectives = [(expected_gain(variant, problem, fallback), variant) for variant in first]
    ranked = [variant for objective, variant in sorted(objectives, key=lambda pair: -pair[0]) if objective > 0]
    best: list[tuple[float, Variant]] = []
    for variant in ranked[:SHORTLIST]:
        variants = [
            Variant(variant.candidate, scorer, recall)
            for scorer in variant.candidate.scorers
            for recall in (False, True)
        ]
        best.append(
            max(((expected_gain(each, problem, fallback), each) for each in variants), key=lambda pair: pair[0])
        )
    return [variant for _, variant in sorted(best, key=lambda pair: -pair[0])]


def _fallback(static: Sequence[Option], problem: PlanProblem) -> float:
    """Objective of the best network that is likely to keep to the constraints, or of the worst one if none is."""
    best = _likely(static, problem)
    return min(problem.objective_of(option) for option in static) if best is None else problem.objective_of(best)


def _likely(options: Sequence[Option], problem: PlanProblem) -> Option | None:
    """The best of those that keep to the constraints at face value."""
    return max((option for option in options if problem.margin(option) >= 0), key=problem.objective_of, default=None)


def _in_order(static: Sequence[Option], offered: Sequence[Sequence[Option]], problem: PlanProblem) -> list[Option]:
    """What is to be tested, the safest first.

    Where accuracy is promised, a variant's stop rules come in the order of their cost, the most expensive first: the
    more often the last stages answer the nearer is it to them, while the margin seen is partly luck. Where the mean
    cost alone is, they come by margin, and those that others of the group beat in both margin and objective are left
    out. A network that a cascade beats in both is tested only where it will hardly fail: a failure ends the test for
    all that come after. What cannot fail, such as the dense network where a drop is limited, comes first.
    """
    entries = [
        [(-problem.margin(option), problem.objective_of(option), option) for option in group] for group in offered
    ]
    whole = [entry for entry in ((-problem.margin(o), problem.objective_of(o), o) for o in static) if entry[0] <= 0]
    whole = [whole[index] for index in _front(whole)]
    if problem.limits.wants_cheapest:
        kept = [entry for group in entries for entry in group if entry[0] <= -LIKELY]
        kept = [entry for entry in kept if problem.cost_margin(entry[2]) >= SURE]  # the most expensive come first
        front = {id(entry[2]) for entry in whole if all(entry[1] > other[1] for other in kept)}
    else:
        fitting = [[entry for entry in group if entry[0] <= 0] for group in entries]
        kept = [group[index] for group in fitting for index in _front(group)]
        both = [*whole, *kept]
        front = {id(both[index][2]) for index in _front(both)}
    whole = [entry for entry in whole if entry[0] <= -SURE or id(entry[2]) in front]
    by_cost = problem.limits.wants_cheapest
    ordered = sorted([*whole, *kept], key=lambda entry: -entry[2].cost if by_cost else entry[0])
    ordered.sort(key=lambda entry: not problem.is_certain(entry[2]))  # what cannot fail costs those after it nothing
    return [option for _, _, option in ordered]


def _front(entries: Sequence[tuple[float, float, Option]]) -> list[np.intp]:
    return list(non_dominated([entry[0] for entry in entries], [entry[1] for entry in entries]))


def _tested(order: Sequence[Option], problem: PlanProblem) -> tuple[list[Option], Option | None]:
    """The options before the first one that fails on the holdout examples, and that one."""
    delta = problem.limits.delta
    last = learn_then_test((largest_p_value(holdout_tests(option, problem), delta) for option in order), delta)
    passed = 0 if last is None else last + 1
    return list(order[:passed]), order[passed] if passed < len(order) else None


def _decide(
    tested: Sequence[Option], failed: Option | None, problem: PlanProblem, looked: bool
) -> tuple[Option, str | None]:
    """The best of what passed; a cascade only if it beats every network.

    Whichever of them is taken, and by whatever figures, the promise holds. So the best is told by as many examples as
    there are, the calibration ones (cross-fitted) and the holdout ones together: half as many tell little.
    """
    cascades = [option for option in tested if not option.is_static]
    static = max((option for option in tested if option.is_static), key=problem.pooled_objective, default=None)
    if not cascades:
        assert static is not None
        if not looked:
            return static, "no cascade is likely to keep to the constraints, by the calibration examples"
        if failed is None:
            return static, "no cascade keeps to the constraints better, by the calibration examples"
        return static, f"no cascade passed the test on the holdout examples: {failed.name} did not"
    chosen = max(cascades, key=problem.pooled_objective)
    if static is None or _beats(chosen, static, problem):
        return chosen, None
    return static, f"on all held-out examples {chosen.name} is no better than {static.name}, which is simpler"


def _beats(chosen: Option, static: Option, problem: PlanProblem) -> bool:
    figure = 0 if problem.limits.wants_cheapest else 1
    ours, theirs = chosen.pooled[figure], static.pooled[figure]
    return ours < theirs if problem.limits.wants_cheapest else ours > theirs


def _too_expensive(candidates: Sequence[Candidate], limits: AbsoluteConstraints) -> BudgetUnreachable:
    cheapest = min(candidates, key=lambda each: each.max_cost)
    cap = format_macs(limits.max_cost or 0.0)
    return BudgetUnreachable(
        f"--max-cost must allow some network, but {cap} is below the cheapest one's {format_macs(cheapest.max_cost)} "
        f"({cheapest.name}); raise --max-cost"
    )


def _unreachable(options: Sequence[Option], problem: PlanProblem) -> BudgetUnreachable:
    """The error where no option passes; names what the best one on calibration examples reaches."""
    limits = problem.limits
    affordable = [each for each in options if limits.mean_cost is None or each.cost <= limits.mean_cost]
    if not affordable:
        cheapest = min(options, key=lambda each: each.cost)
        return BudgetUnreachable(
            f"--budget must be reachable, but {format_macs(limits.mean_cost or 0.0)} is below the least mean cost, "
            f"{format_macs(cheapest.cost)} ({cheapest.name}); raise --budget, or let more networks be trained"
        )
    best = max(affordable, key=lambda each: (each.accuracy, -each.cost))
    bounds = holdout_bounds(best, problem)
    return BudgetUnreachable(
        f"the constraints must be reachable with confidence {1 - limits.delta:.0%}, but are not: the best certified on "
        f"{bounds['examples']} holdout examples is accuracy {bounds['accuracy']:.2%} (measured "
        f"{best.holdout.accuracy:.2%}), drop {bounds['drop']:.2%}, mean cost {format_macs(bounds['mean_cost'])} "
        f"({best.name}); ask for less, lower --confidence, or take a larger validation split"
    )
