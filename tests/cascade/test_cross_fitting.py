"""What a way is worth is told by examples that its stop rules were not made of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import pytest
import torch
from torch import nn

from amc.cascade.planning.constraints import AbsoluteConstraints
from amc.cascade.planning.cross_fitting import (
    LARGEST_MARGIN,
    Option,
    PlanProblem,
    Variant,
    expected_gain,
    options_of,
    static_option,
)
from amc.cascade.rules.stop_rule import simulate
from amc.cascade.stages.candidate import Candidate, in_a_row
from amc.cascade.stages.records import Records
from amc.cascade.stages.stage import NetworkStage, StageCost
from tests.cascade.population import population

COSTS = (1.0, 3.0, 6.0)
SCORERS = ("confidence", "isotonic", "deferral")


def singles_of(calibration: Records, holdout: Records, costs: Sequence[float] = COSTS) -> list[Candidate]:
    """Each stage as a network of its own."""
    found = []
    for place, (name, cost) in enumerate(zip(calibration.stages, costs, strict=True)):
        stage = NetworkStage(name, nn.Identity(), StageCost(name, cost))
        found.append(
            Candidate("static", (stage,), calibration.choose([place]), holdout.choose([place]), ("confidence",))
        )
    return found


def row_of(calibration: Records, holdout: Records) -> Candidate:
    return in_a_row("tinysaver", singles_of(calibration, holdout), SCORERS)


def lucky(number: int, seed: int) -> Records:
    """Three stages that are right on half of the examples each, whatever their confidence: nothing can be learned."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, number, 2, generator=draw)
    return Records(("small", "middle", "large"), logits, torch.randint(0, 2, (number,), generator=draw))


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("best", [False, True])
def test_an_option_tells_of_every_policy_fit_example_in_its_place(scorer: str, best: bool) -> None:
    """Predictions, correctness and costs of each option are those of its examples, in their order."""
    calibration, holdout = population(400, 0).parted(0)
    row = row_of(calibration, holdout)
    reach = torch.tensor(list(accumulate(row.added)), dtype=torch.float64)
    options = options_of(Variant(row, scorer, best))
    assert len(options) > 10
    for option in options:
        seen = option.calibration
        assert torch.equal(seen.predictions, row.calibration.predictions.gather(0, seen.answered[None])[0])
        assert torch.equal(seen.right, seen.predictions == row.calibration.labels) and torch.equal(
            seen.cost, reach[seen.stop]
        )
        assert bool((seen.answered <= seen.stop).all()) and (best or torch.equal(seen.answered, seen.stop))
    made = [simulate(row.calibration, option.rule, row.added).mean_cost for option in options]
    assert made == sorted(made)


@pytest.mark.parametrize("scorer", SCORERS)
def test_a_policy_found_by_luck_is_not_flattered(scorer: str) -> None:
    """On answers that are right by chance stop rules look better than a half where they were made, not where judged."""
    flattered, as_evaluation = [], []
    for seed in range(12):
        row = row_of(lucky(150, seed), lucky(20, 99))
        for option in options_of(Variant(row, scorer), careful=False):
            flattered.append(simulate(row.calibration, option.rule, row.added).accuracy)
            as_evaluation.append(option.accuracy)
    assert sum(flattered) / len(flattered) > 0.53
    assert abs(sum(as_evaluation) / len(as_evaluation) - 0.5) < 0.02


def test_more_careful_policies_follow_the_most_accurate_one() -> None:
    """The last of them lets nothing leave early."""
    calibration, holdout = population(400, 0).parted(0)
    variant = Variant(row_of(calibration, holdout), "confidence")
    bold, all_of_them = options_of(variant, careful=False), options_of(variant)
    assert len(all_of_them) > len(bold) and all_of_them[-1].cost > bold[-1].cost
    assert float(all_of_them[-1].holdout.cost.min()) == sum(COSTS)  # the last stage alone answers


def test_figures_of_both_halves_are_pooled_by_their_sizes() -> None:
    """Pooled cost and accuracy are the means over all examples."""
    calibration, holdout = population(300, 0).parted(0, 0.3)
    option = options_of(Variant(row_of(calibration, holdout), "confidence"))[3]
    cost, accuracy = option.pooled
    assert cost == pytest.approx(float(torch.cat([option.calibration.cost, option.holdout.cost]).mean()))
    assert accuracy == pytest.approx(float(torch.cat([option.calibration.right, option.holdout.right]).double().mean()))


def test_what_holds_whatever_the_examples_say_is_certain() -> None:
    """A largest cost below the cap needs no test."""
    calibration, holdout = population(100, 0).parted(0)
    small, _, dense = singles_of(calibration, holdout)

    def certain(limits: AbsoluteConstraints, option: Option) -> bool:
        problem = PlanProblem(limits, dense)
        assert not problem.is_certain(option) or problem.margin(option) == LARGEST_MARGIN
        return problem.is_certain(option)

    drop, cost = AbsoluteConstraints(None, None, None, 0.0, 0.1), AbsoluteConstraints(2.0, None, None, None, 0.1)
    assert certain(drop, static_option(dense)) and not certain(drop, static_option(small))
    assert certain(cost, static_option(small)) and not certain(cost, static_option(dense))
    assert not certain(AbsoluteConstraints(None, None, 0.01, None, 0.1), static_option(dense))


def test_a_way_that_cannot_keep_to_the_terms_is_worth_nothing_and_none_more_than_it_gains() -> None:
    """The expected gain lies between zero and the saving of the cheapest stage."""
    calibration, holdout = population(2000, 0).parted(0)
    variant, dense = Variant(row_of(calibration, holdout), "confidence"), singles_of(calibration, holdout)[-1]
    fallback = -1.0  # the dense network's whole cost
    easy, hard = (PlanProblem(AbsoluteConstraints(None, None, least, None, 0.1), dense) for least in (0.5, 0.999))
    assert 0 < expected_gain(variant, easy, fallback) <= 1 - COSTS[0] / COSTS[-1] + 1e-6
    assert expected_gain(variant, hard, fallback) < 1e-6
