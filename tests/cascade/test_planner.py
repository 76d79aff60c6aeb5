"""Plans keep to their constraints, or say that nothing does; a cascade that is no better than a network is none."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from amc.cascade.certificates.certified_bounds import bounds_of
from amc.cascade.planning.constraint_tests import constraint_tests, largest_p_value, least_margin
from amc.cascade.planning.constraints import AbsoluteConstraints, Constraints
from amc.cascade.planning.cross_fitting import PlanProblem
from amc.cascade.planning.planner import Plan, make_plan
from amc.cascade.rules.scorers import SCORERS
from amc.cascade.rules.stop_rule import NEVER, StopRule, simulate
from amc.cascade.stages.candidate import Candidate, in_a_row, subsets
from amc.cascade.stages.records import Records
from amc.cascade.stages.stage import NetworkStage, StageCost
from amc.system.errors import BudgetUnreachable
from tests.cascade.population import population

COSTS = (1.0, 3.0, 6.0)


def singles_of(records: Records, costs: Sequence[float] = COSTS, seed: int = 0) -> list[Candidate]:
    """Each stage as a network of its own."""
    calibration, holdout = records.parted(seed)
    found = []
    for place, (name, cost) in enumerate(zip(records.stages, costs, strict=True)):
        stage = NetworkStage(name, nn.Identity(), StageCost(name, cost))
        found.append(
            Candidate("static", (stage,), calibration.choose([place]), holdout.choose([place]), ("confidence",))
        )
    return found


def planned(
    records: Records, constraints: Constraints, seed: int = 0, scorers: tuple[str, ...] = ("confidence",)
) -> Plan:
    singles = singles_of(records, seed=seed)
    rows = [in_a_row("tinysaver", choice, scorers) for choice in subsets(singles)]
    return make_plan([*singles, *rows], PlanProblem(constraints.limits(COSTS[-1]), singles[-1]))


@pytest.mark.parametrize(
    "constraints",
    [
        Constraints(budget="50%"),
        Constraints(budget="50%", max_cost="70%"),
        Constraints(max_cost="60%"),
        Constraints(accuracy=0.7),
        Constraints(max_drop=0.03),
        Constraints(max_drop=0.03, budget="90%", max_cost="150%"),
    ],
)
def test_a_plan_keeps_to_its_terms_on_examples_that_took_no_part_in_it(constraints: Constraints) -> None:
    """On 20,000 further examples, up to the confidence that was asked."""
    plan = planned(population(5000, 0), constraints)
    limits, chosen = constraints.limits(COSTS[-1]), plan.option
    seen = population(20_000, 1)
    names = [stage.name for stage in chosen.candidate.stages]
    records = seen.choose([seen.stages.index(name) for name in names])
    found = simulate(records, chosen.rule, chosen.candidate.added)
    assert limits.max_cost is None or float(found.cost.max()) <= limits.max_cost
    assert limits.mean_cost is None or found.mean_cost <= limits.mean_cost
    assert limits.accuracy is None or found.accuracy >= limits.accuracy
    assert limits.drop is None or float(seen.accuracies[-1]) - found.accuracy <= limits.drop


def test_a_cascade_is_better_than_the_best_network_under_the_same_terms() -> None:
    """More accurate under a budget, cheaper under an accuracy."""
    plan = planned(population(2400, 0), Constraints(budget="50%"))
    assert plan.static is not None and plan.why is None and not plan.option.is_static
    assert plan.static.cost <= 3.0 and plan.option.holdout.accuracy > plan.static.holdout.accuracy
    cheap = planned(population(2400, 0), Constraints(max_drop=0.02))
    assert cheap.static is not None and cheap.option.holdout.mean_cost < cheap.static.holdout.mean_cost


def test_where_confidence_tells_nothing_the_plan_is_a_network_and_says_why() -> None:
    """With labels shuffled the static network is chosen."""
    draw = torch.Generator().manual_seed(0)
    records = population(600, 0)
    shuffled = records.logits[:, torch.randperm(600, generator=draw)]  # answers that have nothing to do with labels
    noise = Records(records.stages, torch.cat([shuffled[:2], records.logits[2:]]), records.labels)
    plan = planned(noise, Constraints(max_drop=0.0))
    assert plan.option.is_static and plan.option.candidate.stages[0].name == "large"
    assert plan.why is not None and plan.static is plan.option


@pytest.mark.parametrize(
    ("constraints", "word"),
    [
        (Constraints(accuracy=0.999), "best certified"),
        (Constraints(max_cost="10%"), "--max-cost"),
        (Constraints(budget="10%"), "--budget"),
        (Constraints(accuracy=0.9, budget="20%"), "accuracy"),
    ],
)
def test_terms_that_nothing_keeps_to_are_told_with_what_can_be_had(constraints: Constraints, word: str) -> None:
    """One line, exit code 3."""
    with pytest.raises(BudgetUnreachable) as caught:
        planned(population(400, 0), constraints)
    assert word in str(caught.value) and "\n" not in str(caught.value) and caught.value.exit_code == 3


def test_a_plan_is_no_longer_certified_where_examples_are_too_few_to_tell() -> None:
    """The dense network is right on about 93 %: 91 % can be promised from many examples and not from few."""
    best = float(population(50_000, 9).accuracies[-1])
    constraints = Constraints(accuracy=round(best - 0.02, 3))
    assert planned(population(8000, 0), constraints).tested
    with pytest.raises(BudgetUnreachable, match="validation split"):
        planned(population(60, 0), constraints)


def test_the_dense_network_itself_never_drops_below_itself() -> None:
    """A drop of zero is certain for it with any number of examples."""
    plan = planned(population(40, 3), Constraints(max_drop=0.0))
    assert plan.tested[0].candidate.stages[0].name == "large"


def test_claims_hold_together_only_if_each_does() -> None:
    """The p-value of several tests is the largest of theirs."""
    records = population(500, 0)
    rule = StopRule(SCORERS["confidence"](records), (NEVER, NEVER))
    outcomes = simulate(records, rule, COSTS)
    either = [AbsoluteConstraints(11.0, None, None, None, 0.1), AbsoluteConstraints(None, None, 0.5, None, 0.1)]
    values = [
        largest_p_value(constraint_tests(records, outcomes, COSTS, each, records.logits[-1], False), 0.1)
        for each in either
    ]
    both = constraint_tests(
        records, outcomes, COSTS, AbsoluteConstraints(11.0, None, 0.5, None, 0.1), records.logits[-1], False
    )
    assert largest_p_value(both, 0.1) == max(values)
    assert least_margin(both) == min(test.margin for test in both) and largest_p_value([], 0.1) == 0


def test_the_dense_network_is_the_plan_where_a_dearer_cascade_fails_before_it() -> None:
    """It cannot lose against itself: no failure of another keeps it from being tested."""
    for seed in range(10):
        assert planned(population(120, seed), Constraints(max_drop=0.005), seed).tested[0].name == "static: large"


def test_bounds_tell_of_how_many_groups_the_examples_are() -> None:
    """Examples of one group do not count as independent."""
    records = population(60, 0)
    grouped = Records(records.stages, records.logits, records.labels, torch.arange(60) // 20)
    for each, number in ((records, None), (grouped, 3)):
        outcomes = simulate(each, StopRule(SCORERS["confidence"](each), (0.9, 0.9)), COSTS)
        assert bounds_of(each, outcomes, COSTS, each.logits[-1], False, 0.1)["groups"] == number


def test_stages_that_are_left_out_are_remembered_by_their_places() -> None:
    """A choice out of a choice refers to the whole row."""
    row = in_a_row("tinysaver", singles_of(population(50, 0)), ("confidence",))
    fewer = row.using([0, 2]).using([1])
    assert fewer.used == (2,) and [stage.name for stage in fewer.stages] == ["large"] and fewer.added == [6.0]


@pytest.mark.slow
def test_certified_terms_are_broken_no_more_often_than_promised() -> None:
    """P(accuracy below the limit) is at most 0.1 over 150 draws of held-out examples, within 2 standard deviations."""
    truth = population(50_000, 1)
    target = round(float(truth.accuracies[1]), 3)
    broken = made = 0
    for seed in range(150):
        try:
            chosen = planned(population(600, 100 + seed), Constraints(accuracy=target), seed).option
        except BudgetUnreachable:
            continue
        made += 1
        places = [truth.stages.index(stage.name) for stage in chosen.candidate.stages]
        broken += simulate(truth.choose(places), chosen.rule, chosen.candidate.added).accuracy < target
    assert made > 50
    assert broken <= 150 * 0.1 + 2 * (150 * 0.1 * 0.9) ** 0.5
