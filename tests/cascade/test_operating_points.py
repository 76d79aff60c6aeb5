"""The search for thresholds: exact where it says so, never worse with more budget, and true of the walks it names."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from amc.cascade.rules.operating_points import best_under, cheapest_at, evaluate, pareto, sweep
from amc.cascade.rules.scorers import SCORERS
from amc.cascade.rules.stop_rule import NEVER, StopRule, scores_of, simulate
from amc.cascade.rules.thresholds import PRICES, ThresholdSearch, ThresholdSets, between, together
from amc.cascade.stages.records import Records
from amc.system.errors import BudgetUnreachable
from tests.cascade.graded import graded_records, one_threshold

SEEDS = st.integers(0, 10**6)
NAMES = st.sampled_from([*SCORERS])
COSTS = st.lists(st.floats(1, 100), min_size=3, max_size=3)


def every_policy(records: Records, added: list[float], scores: Tensor, best: bool) -> ThresholdSets:
    """All thresholds that make a difference, one by one."""
    levels = [[*row[row.isfinite()].unique().tolist(), NEVER] for row in scores[:-1]]
    walks = [simulate(records, StopRule(FEATURE_SCORERS, rows, best), added, scores) for rows in product(*levels)]
    return ThresholdSets(
        torch.tensor([*product(*levels)], dtype=torch.float64),
        torch.tensor([float(outcomes.right.sum()) for outcomes in walks], dtype=torch.float64),
        torch.tensor([outcomes.mean_cost for outcomes in walks], dtype=torch.float64),
    )


FEATURE_SCORERS = SCORERS["confidence"](graded_records(0))


def board(records: Records, name: str, added: list[float], best: bool = False) -> ThresholdSearch:
    return ThresholdSearch(records, added, scores_of(records, SCORERS[name](records)), best)


@given(SEEDS, NAMES, COSTS, st.booleans())
@settings(max_examples=30, deadline=None)
def test_every_search_tells_what_the_walk_of_its_policies_does(
    seed: int, name: str, added: list[float], best: bool
) -> None:
    """Hits and costs of each threshold vector are those of its walk."""
    records = graded_records(seed, number=50)
    scorer = SCORERS[name](records)
    search = ThresholdSearch(records, added, scores_of(records, scorer), best)
    priced = search.priced(PRICES[::8])
    for found in (search.common(), search.geometric(), priced, search.moved(priced)):
        for place in range(0, len(found), 1 + len(found) // 20):
            outcomes = simulate(records, StopRule(scorer, tuple(found.thresholds[place].tolist()), best), added)
            assert int(found.hits[place]) == int(outcomes.right.sum())
            assert float(found.cost[place]) == pytest.approx(outcomes.mean_cost)


@given(SEEDS, NAMES, COSTS, st.booleans(), st.lists(st.floats(1, 300), min_size=2, max_size=8))
@settings(max_examples=30, deadline=None)
def test_a_larger_budget_never_gives_a_lower_accuracy_on_the_fit_records(
    seed: int, name: str, added: list[float], best: bool, budgets: list[float]
) -> None:
    """The best under a budget is monotone in it."""
    records = graded_records(seed, number=60)
    points = sweep(records, added, SCORERS[name](records), best)
    within = [best_under(points, budget).accuracy for budget in sorted(budgets) if budget >= points[0].mean_cost]
    assert within == sorted(within)


@given(SEEDS, NAMES, st.booleans())
@settings(max_examples=30, deadline=None)
def test_with_two_stages_a_sweep_is_exhaustive(seed: int, name: str, best: bool) -> None:
    """Its front is that of every possible threshold."""
    records, added = graded_records(seed, stages=2, number=40), [1.0, 3.0]
    scorer = SCORERS[name](records)
    brute = every_policy(records, added, scores_of(records, scorer), best).front()
    points = sweep(records, added, scorer, best)
    assert [point.accuracy * 40 for point in points] == pytest.approx(brute.hits.tolist())
    assert [point.mean_cost for point in points] == pytest.approx(brute.cost.tolist())


@pytest.mark.parametrize("name", ["confidence", "isotonic", "deferral"])
def test_with_three_stages_a_sweep_is_within_two_examples_of_the_exhaustive_one_and_mostly_it(name: str) -> None:
    """Over eight sets of records."""
    short = []
    for seed in range(8):
        records, added = graded_records(seed, number=24), [1.0, 2.0, 4.0]
        scorer = SCORERS[name](records)
        brute = every_policy(records, added, scores_of(records, scorer), best=False).front()
        points = sweep(records, added, scorer)
        for hits, cost in zip(brute.hits.tolist(), brute.cost.tolist(), strict=True):
            short.append(round(hits - 24 * best_under(points, cost + 1e-9).accuracy))
    assert max(short) <= 2 and short.count(0) >= 0.9 * len(short)


@given(SEEDS, NAMES, COSTS)
@settings(max_examples=30, deadline=None)
def test_no_change_of_one_threshold_betters_what_a_price_chose(seed: int, name: str, added: list[float]) -> None:
    """Each priced stop rule is a local optimum in every coordinate."""
    records = graded_records(seed, number=40)
    search = board(records, name, added)
    prices = PRICES[4::12]
    chosen = search.priced(prices)
    for place, price in enumerate(prices / sum(added)):
        objective = float(chosen.hits[place] / 40 - price * chosen.cost[place])
        for stage in range(2):
            rows = chosen.thresholds[place].repeat(41, 1)
            rows[:, stage] = torch.cat([search.scores[stage], torch.tensor([NEVER])])
            rows = rows[rows[:, stage].isfinite() | (rows[:, stage] == NEVER)]
            others = search.measured(rows)
            assert float((others.hits / 40 - price * others.cost).max()) <= objective + 1e-9


@given(SEEDS, NAMES)
@settings(max_examples=30, deadline=None)
def test_a_sweep_is_never_worse_than_one_threshold_for_all_stages_or_falling_shares(seed: int, name: str) -> None:
    """It contains both simpler searches."""
    records, added = graded_records(seed, stages=4, number=60), [1.0, 2.0, 3.0, 4.0]
    points = sweep(records, added, SCORERS[name](records))
    search = board(records, name, added)
    for found in (search.common(), search.geometric()):
        for hits, cost in zip(found.hits, found.cost, strict=True):
            assert best_under(points, float(cost) + 1e-9).accuracy >= float(hits) / 60 - 1e-9


def test_with_falling_shares_the_best_of_those_still_there_leave() -> None:
    """Ten examples, p = 1: a third of ten, rounded down, leave at each of the first two stages."""
    scores = torch.rand(3, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    search = ThresholdSearch(graded_records(0, number=10), [1.0, 1.0, 1.0], scores)
    found = search.geometric().thresholds[19]
    stop = simulate(
        graded_records(0, number=10), StopRule(FEATURE_SCORERS, tuple(found.tolist())), [1.0, 1.0, 1.0], scores
    ).stop
    assert torch.equal((stop == 0).nonzero()[:, 0], scores[0].topk(3).indices.sort().values)
    left = (stop > 0).nonzero()[:, 0]
    assert torch.equal((stop == 1).nonzero()[:, 0], left[scores[1][left].topk(3).indices].sort().values)


def test_one_threshold_goes_from_all_at_the_first_stage_to_all_at_the_last() -> None:
    """Costs and accuracies at the ends are those of the two stages."""
    records, added = graded_records(1), [1.0, 2.0, 4.0]
    points = one_threshold(records, added, SCORERS["confidence"](records))
    assert points[0].mean_cost == 1 and points[-1].mean_cost == 7
    assert points[0].accuracy == float(records.accuracies[0]) and points[-1].accuracy == float(records.accuracies[2])
    assert [point.mean_cost for point in points] == sorted(point.mean_cost for point in points)


@given(SEEDS, st.integers(2, 40))
@settings(max_examples=20, deadline=None)
def test_thinning_keeps_the_cheapest_and_the_best_and_no_more_than_asked(seed: int, at_most: int) -> None:
    """Every point that is left was there before."""
    records, added = graded_records(seed, number=100), [1.0, 2.0, 4.0]
    scorer = SCORERS["confidence"](records)
    whole, thin = sweep(records, added, scorer, at_most=10**6), sweep(records, added, scorer, at_most=at_most)
    assert len(thin) <= at_most
    assert thin[0].mean_cost == whole[0].mean_cost and thin[-1].accuracy == whole[-1].accuracy
    assert {(point.mean_cost, point.accuracy) for point in thin} <= {
        (point.mean_cost, point.accuracy) for point in whole
    }


def test_a_score_recomputed_with_rounding_falls_on_the_same_side() -> None:
    """No threshold is nearer than 1e-12 to a score."""
    records, added = graded_records(2), [1.0, 2.0, 4.0]
    scorer = SCORERS["confidence"](records)
    scores = scores_of(records, scorer)
    for point in sweep(records, added, scorer)[1:-1]:  # the ends have no score on one side
        nearest = (scores[:2] - torch.tensor(point.rule.thresholds)[:, None]).abs().amin()
        assert float(nearest) > 1e-12


@given(st.floats(0, 1), st.floats(0, 1))
@settings(deadline=None)
def test_a_threshold_between_two_scores_parts_them(one: float, other: float) -> None:
    """The lower is below it, the higher at or above it."""
    low, high = (torch.tensor(value, dtype=torch.float64) for value in sorted((one, other)))
    if low < high:
        assert low < between(low, high) <= high


def test_the_worst_case_is_of_an_input_that_visits_all_it_can() -> None:
    """A stage that stops everything ends the path."""
    records, added = graded_records(0), [1.0, 2.0, 4.0]
    assert evaluate(records, StopRule(FEATURE_SCORERS, (0.0, 0.0)), added).max_cost == 7
    assert evaluate(records, StopRule(FEATURE_SCORERS, (0.5, -NEVER)), added).max_cost == 3


def test_one_stage_alone_has_one_point() -> None:
    """Its own cost and accuracy."""
    records = graded_records(0, stages=1)
    (point,) = sweep(records, [5.0], SCORERS["confidence"](records))
    assert (point.mean_cost, point.shares, point.accuracy) == (5.0, (1.0,), float(records.accuracies[0]))


def test_a_front_has_no_point_that_another_beats() -> None:
    """Sorted by cost, accuracy grows strictly."""
    records, added = graded_records(0), [1.0, 2.0, 4.0]
    points = one_threshold(records, added, FEATURE_SCORERS)
    front = pareto(points)
    for point in points:
        assert any(kept.accuracy >= point.accuracy and kept.mean_cost <= point.mean_cost for kept in front)
    assert all(a.mean_cost < b.mean_cost and a.accuracy < b.accuracy for a, b in pairwise(front))


def test_a_budget_below_the_cheapest_policy_names_it() -> None:
    """The message gives the smallest cost."""
    records = graded_records(0)
    with pytest.raises(BudgetUnreachable, match=r"1\.00 KMACs|1000|1\.00 kMACs"):
        best_under(sweep(records, [1000.0, 2000.0, 4000.0], FEATURE_SCORERS), 999)


def test_an_accuracy_above_the_best_policy_names_it() -> None:
    """The message gives the best accuracy, which itself can be had."""
    records = graded_records(0)
    points = sweep(records, [1.0, 2.0, 4.0], FEATURE_SCORERS)
    with pytest.raises(BudgetUnreachable, match=f"{points[-1].accuracy:.2%}"):
        cheapest_at(points, 1.0)
    assert cheapest_at(points, points[-1].accuracy).mean_cost == points[-1].mean_cost


def test_an_example_that_never_stops_goes_to_the_last_stage_in_every_search() -> None:
    """A score of minus infinity is below every threshold."""
    records = graded_records(0, number=30)
    scores = scores_of(records, FEATURE_SCORERS)
    scores[:2, :10] = -NEVER
    search = ThresholdSearch(records, [1.0, 2.0, 4.0], scores)
    for row in together([search.common(), search.geometric(), search.priced()]).thresholds.tolist():
        assert bool(
            (simulate(records, StopRule(FEATURE_SCORERS, tuple(row)), [1.0, 2.0, 4.0], scores).stop[:10] == 2).all()
        )
