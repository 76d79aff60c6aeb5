"""What a way is worth is told by examples that its policies were not made of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import pytest
import torch
from torch import nn

from amc.cascade.candidate import Candidate, in_a_row
from amc.cascade.options import MOST_SAFE, Goal, Option, Way, expected_merit, options_of, static_option
from amc.cascade.policy import walk
from amc.cascade.records import Records
from amc.cascade.stage import NetworkStage, StageCost
from amc.cascade.terms import Limits
from tests.cascade.population import population

COSTS = (1.0, 3.0, 6.0)
SCORERS = ("confidence", "isotonic", "deferral")


def singles_of(fit: Records, risk: Records, costs: Sequence[float] = COSTS) -> list[Candidate]:
    """Each stage as a network of its own."""
    found = []
    for place, (name, cost) in enumerate(zip(fit.stages, costs, strict=True)):
        stage = NetworkStage(name, nn.Identity(), StageCost(name, cost))
        found.append(Candidate("static", (stage,), fit.choose([place]), risk.choose([place]), ("confidence",)))
    return found


def row_of(fit: Records, risk: Records) -> Candidate:
    return in_a_row("tinysaver", singles_of(fit, risk), SCORERS)


def lucky(number: int, seed: int) -> Records:
    """Three stages that are right on half of the examples each, whatever their confidence: nothing can be learned."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, number, 2, generator=draw)
    return Records(("small", "middle", "large"), logits, torch.randint(0, 2, (number,), generator=draw))


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("best", [False, True])
def test_an_option_tells_of_every_policy_fit_example_in_its_place(scorer: str, best: bool) -> None:
    """Predictions, correctness and costs of each option are those of its examples, in their order."""
    fit, risk = population(400, 0).parted(0)
    row = row_of(fit, risk)
    reach = torch.tensor(list(accumulate(row.added)), dtype=torch.float64)
    options = options_of(Way(row, scorer, best))
    assert len(options) > 10
    for option in options:
        seen = option.fit
        assert torch.equal(seen.predictions, row.fit.predictions.gather(0, seen.answered[None])[0])
        assert torch.equal(seen.right, seen.predictions == row.fit.labels) and torch.equal(seen.cost, reach[seen.stop])
        assert bool((seen.answered <= seen.stop).all()) and (best or torch.equal(seen.answered, seen.stop))
    made = [walk(row.fit, option.policy, row.added).mean_cost for option in options]
    assert made == sorted(made)


@pytest.mark.parametrize("scorer", SCORERS)
def test_a_policy_found_by_luck_is_not_flattered(scorer: str) -> None:
    """On answers that are right by chance policies look better than a half where they were made, not where judged."""
    flattered, judged = [], []
    for seed in range(12):
        row = row_of(lucky(150, seed), lucky(20, 99))
        for option in options_of(Way(row, scorer), careful=False):
            flattered.append(walk(row.fit, option.policy, row.added).accuracy)
            judged.append(option.accuracy)
    assert sum(flattered) / len(flattered) > 0.53
    assert abs(sum(judged) / len(judged) - 0.5) < 0.02


def test_more_careful_policies_follow_the_most_accurate_one() -> None:
    """The last of them lets nothing leave early."""
    fit, risk = population(400, 0).parted(0)
    way = Way(row_of(fit, risk), "confidence")
    bold, all_of_them = options_of(way, careful=False), options_of(way)
    assert len(all_of_them) > len(bold) and all_of_them[-1].cost > bold[-1].cost
    assert float(all_of_them[-1].risk.cost.min()) == sum(COSTS)  # the last stage alone answers


def test_figures_of_both_halves_are_pooled_by_their_sizes() -> None:
    """Pooled cost and accuracy are the means over all examples."""
    fit, risk = population(300, 0).parted(0, 0.3)
    option = options_of(Way(row_of(fit, risk), "confidence"))[3]
    cost, accuracy = option.pooled
    assert cost == pytest.approx(float(torch.cat([option.fit.cost, option.risk.cost]).mean()))
    assert accuracy == pytest.approx(float(torch.cat([option.fit.right, option.risk.right]).double().mean()))


def test_what_holds_whatever_the_examples_say_is_certain() -> None:
    """A largest cost below the cap needs no test."""
    fit, risk = population(100, 0).parted(0)
    small, _, dense = singles_of(fit, risk)

    def certain(limits: Limits, option: Option) -> bool:
        goal = Goal(limits, dense)
        assert not goal.is_certain(option) or goal.safety(option) == MOST_SAFE
        return goal.is_certain(option)

    drop, cost = Limits(None, None, None, 0.0, 0.1), Limits(2.0, None, None, None, 0.1)
    assert certain(drop, static_option(dense)) and not certain(drop, static_option(small))
    assert certain(cost, static_option(small)) and not certain(cost, static_option(dense))
    assert not certain(Limits(None, None, 0.01, None, 0.1), static_option(dense))


def test_a_way_that_cannot_keep_to_the_terms_is_worth_nothing_and_none_more_than_it_gains() -> None:
    """The expected gain lies between zero and the saving of the cheapest stage."""
    fit, risk = population(2000, 0).parted(0)
    way, dense = Way(row_of(fit, risk), "confidence"), singles_of(fit, risk)[-1]
    fallback = -1.0  # the dense network's whole cost
    easy, hard = (Goal(Limits(None, None, least, None, 0.1), dense) for least in (0.5, 0.999))
    assert 0 < expected_merit(way, easy, fallback) <= 1 - COSTS[0] / COSTS[-1] + 1e-6
    assert expected_merit(way, hard, fallback) < 1e-6
