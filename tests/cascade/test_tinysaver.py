"""TinySaver: the published match and choice, a sound one beside them, and how errors go together."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from amc.bench.cascade.complementarity import complementarity, phi_of
from amc.cascade.methods.tinysaver import (
    Match,
    delta_compute,
    published_match,
    rank_savers,
    saver_curve,
    saver_rule,
    whole_grid_match,
)
from amc.cascade.rules.stop_rule import simulate
from amc.cascade.stages.records import FEATURES, Records
from amc.system.errors import ModelError

CONFIDENCE = FEATURES.index("confidence")


class Confident:
    kind = "confident"

    def score(self, stage: int, features: Tensor) -> Tensor:
        return features[:, CONFIDENCE]

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind}


def some_pair(seed: int, number: int = 200, classes: int = 4, stages: int = 2) -> Records:
    """Stages that know more and more."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (number,), generator=draw)
    hints = torch.nn.functional.one_hot(labels, classes).float()
    noise = torch.randn(stages, number, classes, generator=draw)
    sizes = torch.arange(1, stages + 1)[:, None, None]
    return Records(tuple(f"s{i}" for i in range(stages)), 2 * sizes * hints + 1.5 * noise, labels)


def scan_by_hand(pair: Records) -> Match:
    """The released scan, one threshold after the other."""
    confidence = pair.features[0][:, CONFIDENCE].numpy()
    saver, base = pair.right.numpy()
    for t in np.arange(1, 0, -0.001):
        leaving = confidence > t
        ours = saver[leaving].mean() if leaving.any() else 0.0
        theirs = base[leaving].mean() if leaving.any() else 0.0
        accuracy = np.where(leaving, saver, base).mean()
        if ours < theirs:
            break
    return Match(float(t), float(leaving.mean()), float(ours), float(theirs), float(accuracy), bool(ours < theirs))


@given(st.floats(0, 1), st.floats(0, 1))
@settings(deadline=None)
def test_the_published_delta_is_the_savers_share_of_the_cost_less_the_share_that_leaves(s: float, r: float) -> None:
    """The released formula and the short one agree."""
    released = r * (0 + s - 1) + (1 - r) * s
    assert math.isclose(delta_compute(s, r), released, abs_tol=1e-12)
    assert math.isclose(delta_compute(s, r), s - r, abs_tol=1e-12)


@given(st.integers(0, 10**6), st.floats(0.01, 0.99))
@settings(deadline=None)
def test_a_pair_costs_one_plus_delta_of_the_base_and_the_saver_more_at_worst(seed: int, s: float) -> None:
    """The walk of a matched pair has the published cost and accuracy."""
    pair, added = some_pair(seed), [s, 1.0]
    match = published_match(pair)
    outcomes = simulate(pair, saver_rule(match, Confident()), added)
    assert math.isclose(outcomes.mean_cost, 1 + delta_compute(s, match.share), abs_tol=1e-9)
    assert math.isclose(outcomes.accuracy, match.accuracy, abs_tol=1e-12)
    if match.share < 1:
        assert math.isclose(float(outcomes.cost.max()), s + 1)


@given(st.integers(0, 10**6), st.integers(1, 300))
@settings(deadline=None)
def test_the_published_match_is_the_released_scan(seed: int, number: int) -> None:
    """A transcription of the released code gives the same threshold and figures."""
    pair = some_pair(seed, number)
    found, by_hand = published_match(pair), scan_by_hand(pair)
    assert math.isclose(found.threshold, by_hand.threshold, abs_tol=1e-9)
    assert math.isclose(found.share, by_hand.share, abs_tol=1e-12)
    assert math.isclose(found.saver_accuracy, by_hand.saver_accuracy, abs_tol=1e-9)
    assert math.isclose(found.base_accuracy, by_hand.base_accuracy, abs_tol=1e-9)
    assert math.isclose(found.accuracy, by_hand.accuracy, abs_tol=1e-9)
    assert found.violated == by_hand.violated


def test_one_unlucky_confident_example_ends_the_published_scan_but_not_the_choice_over_the_whole_grid() -> None:
    """The scan stops at the first failure, the grid looks beyond."""
    labels = torch.zeros(100, dtype=torch.int64)
    saver = torch.stack([torch.linspace(4, 1, 100), torch.zeros(100)], 1)
    saver[0] = torch.tensor([0.0, 9.0])  # the surest answer is wrong
    base = torch.tensor([[5.0, 0.0]]).expand(100, 2).clone()
    base[50:60] = -base[50:60]  # wrong where the saver is right
    pair = Records(("saver", "base"), torch.stack([saver, base]), labels)
    assert published_match(pair).share < 0.02
    assert published_match(pair).violated
    assert whole_grid_match(pair).share == 1.0
    assert whole_grid_match(pair).accuracy > float(pair.accuracies[1])


@given(st.integers(0, 10**6), st.floats(0, 0.05))
@settings(deadline=None)
def test_the_choice_over_the_whole_grid_is_the_largest_share_that_keeps_the_tolerance(seed: int, eps: float) -> None:
    """No larger share does."""
    pair = some_pair(seed, 60)
    found = whole_grid_match(pair, eps)
    least = float(pair.accuracies[1]) - eps
    assert found.accuracy >= least - 1e-9
    order = pair.features[0][:, CONFIDENCE].argsort(descending=True)
    saver, base = pair.right[:, order].double()
    for leaving in range(round(found.share * 60) + 1, 61):
        assert (saver[:leaving].sum() + base[leaving:].sum()) / 60 < least + 1e-9


@given(st.integers(0, 10**6))
@settings(deadline=None)
def test_the_curve_runs_from_the_saver_alone_to_the_base_alone(seed: int) -> None:
    """With the accuracies and costs of both ends."""
    pair, added = some_pair(seed), [0.25, 1.0]
    whole = saver_curve(pair)
    assert bool((whole.shares.diff() <= 0).all())
    assert math.isclose(float(whole.accuracies[0]), float(pair.accuracies[0]), abs_tol=1e-12)
    assert math.isclose(float(whole.accuracies[-1]), float(pair.accuracies[1]), abs_tol=1e-12)
    costs = whole.costs(added)
    assert float(costs[0]) == 0.25 and float(costs[-1]) == 1.25


def test_savers_are_ranked_by_delta_and_none_costs_as_much_as_the_base() -> None:
    """The first in the ranking has the smallest delta."""
    records = some_pair(3, 500, stages=5)
    costs = [10.0, 40.0, 100.0, 20.0, 100.0]
    ranked = rank_savers(records, costs)
    assert {saver.name for saver in ranked} == {"s0", "s1", "s3"}
    assert [saver.delta for saver in ranked] == sorted(saver.delta for saver in ranked)
    best = ranked[0]
    pair = records.choose([records.stages.index(best.name), 4])
    assert best.match == published_match(pair)
    assert math.isclose(best.delta, best.relative_cost - best.match.share)


def test_a_match_needs_two_stages() -> None:
    """More than two are refused."""
    with pytest.raises(ModelError, match="saver and its base"):
        published_match(some_pair(0, stages=3))


@given(st.integers(0, 10**6))
@settings(deadline=None)
def test_shares_of_right_and_wrong_add_up_to_one_and_give_both_accuracies(seed: int) -> None:
    """The interval of phi holds phi."""
    pair = some_pair(seed)
    found = complementarity(pair)
    total = found.both_right + found.saver_only + found.base_only + found.wrong_alike + found.wrong_apart
    assert math.isclose(total, 1.0)
    assert math.isclose(found.both_right + found.saver_only, float(pair.accuracies[0]))
    assert math.isclose(found.both_right + found.base_only, float(pair.accuracies[1]))
    low, high = found.phi_interval
    assert -1 <= low <= high <= 1
    wrong = (~pair.right).double()
    if bool((wrong.std(1) > 0).all()):
        assert math.isclose(found.phi, float(torch.corrcoef(wrong)[0, 1]), abs_tol=1e-9)


def test_a_network_beside_itself_makes_all_its_errors_again_and_an_independent_one_those_of_chance() -> None:
    """Phi is one for the first and near zero for the second."""
    pair = some_pair(1, 4000)
    itself = complementarity(pair.choose([0, 0]))
    assert math.isclose(itself.phi, 1.0) and itself.base_only == 0 and itself.alike == 1
    independent = complementarity(pair)
    assert independent.phi_interval[0] < 0.05 and abs(independent.phi) < 0.1
    assert abs(independent.both_wrong - independent.both_wrong_by_chance) < 0.02
    assert abs(independent.alike - independent.alike_by_chance) < 0.15


def test_errors_that_never_happen_are_not_correlated() -> None:
    """Phi of nothing is zero, not NaN."""
    assert float(phi_of(torch.tensor([0.9, 0.1, 0.0, 0.0], dtype=torch.float64))) == 0.0


def test_gain_is_ranked_by_confidence_as_every_pair_of_examples_says() -> None:
    """The area under the curve equals a count over all pairs."""
    pair = some_pair(7, 120)
    confidence = pair.features[0][:, CONFIDENCE]
    gains = ~pair.right[0] & pair.right[1]
    lower = (confidence[gains][:, None] < confidence[~gains]).double().mean()
    assert math.isclose(complementarity(pair).gain_ranked, float(lower), abs_tol=1e-9)
