"""Risks of a cascade, and the rules that pick how bold it may be."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amc.bench.cascade.violations import naive
from amc.cascade.certificates.mean_tests import Support, p_value
from amc.cascade.certificates.risk_control import (
    RISKS,
    answered_logits,
    conformal_risk_control,
    learn_then_test,
    threshold_ladder,
)
from amc.cascade.rules.scorers import FeatureScorer
from amc.cascade.rules.stop_rule import NEVER, StopRule, simulate
from tests.cascade.population import ADDED, population

CONFIDENCE = FeatureScorer("confidence")


def test_risks_of_the_last_stage_against_itself_are_nothing_and_those_of_the_first_are_counted() -> None:
    """Gap, consistency, accuracy and cost of the first stage are counted by hand."""
    records = population(300, 0)
    never, at_once = (simulate(records, StopRule(CONFIDENCE, (t, t)), ADDED) for t in (NEVER, 0.0))
    for name in ("gap", "consistency", "brier"):
        assert not RISKS[name].losses(records, never, ADDED).values.any()
    first, last = records.right[0], records.right[-1]
    assert RISKS["gap"].losses(records, at_once, ADDED).mean == pytest.approx(
        float(last.double().mean() - first.double().mean())
    )
    assert set(RISKS["gap"].losses(records, at_once, ADDED).values) == {-1.0, 0.0, 1.0}
    differ = (records.predictions[0] != records.predictions[-1]).double().mean()
    assert RISKS["consistency"].losses(records, at_once, ADDED).mean == pytest.approx(float(differ))
    assert RISKS["accuracy"].losses(records, at_once, ADDED).mean == pytest.approx(1 - float(first.double().mean()))
    assert RISKS["cost"].losses(records, at_once, ADDED).mean == ADDED[0]
    assert RISKS["cost"].losses(records, never, ADDED).support.values == (1.0, 4.0, 10.0)


def test_risks_are_against_a_given_reference_where_there_is_one() -> None:
    """A stop rule has no gap to its own answers."""
    records = population(200, 1)
    at_once = simulate(records, StopRule(CONFIDENCE, (0.0, 0.0)), ADDED)
    assert not RISKS["gap"].losses(records, at_once, ADDED, records.logits[0]).values.any()
    assert not RISKS["brier"].losses(records, at_once, ADDED, records.logits[0]).values.any()


def test_every_loss_is_one_that_its_support_allows() -> None:
    """Within the range, and one of the values where there are few."""
    records = population(500, 2, noise=2.0)
    for rule in threshold_ladder(records, CONFIDENCE, 6):
        outcomes = simulate(records, rule, ADDED)
        for risk in RISKS.values():
            losses = risk.losses(records, outcomes, ADDED)
            assert losses.support.low <= losses.values.min() and losses.values.max() <= losses.support.high
            assert losses.support.values is None or set(losses.values) <= set(losses.support.values)


def test_the_logits_answered_are_those_of_the_stage_that_answered() -> None:
    """With `best`, the surest stage so far, not the last."""
    records = population(50, 3)
    outcomes = simulate(records, StopRule(CONFIDENCE, (0.8, 0.9), best=True), ADDED)
    assert torch.equal(answered_logits(records, outcomes).argmax(1), outcomes.predictions)


def test_a_ladder_goes_from_never_leaving_early_to_always_and_costs_ever_less() -> None:
    """A single stage has one stop rule."""
    records = population(400, 4)
    rules = threshold_ladder(records, CONFIDENCE, 12)
    costs = [simulate(records, rule, ADDED).mean_cost for rule in rules]
    assert costs[0] == sum(ADDED) and costs[-1] == ADDED[0]
    assert costs == sorted(costs, reverse=True) and len(rules) <= 13
    alone = records.choose([2])
    assert [rule.thresholds for rule in threshold_ladder(alone, CONFIDENCE)] == [()]


@given(st.lists(st.floats(0, 1), max_size=8))
@settings(deadline=None)
def test_fixed_sequence_testing_returns_the_last_before_the_first_failure_and_asks_no_further(
    values: list[float],
) -> None:
    """p-values after the first failure are never computed."""
    asked = []

    def p_values() -> Iterator[float]:
        for value in values:
            asked.append(value)
            yield value

    failing = next((index for index, value in enumerate(values) if value > 0.1), len(values))
    assert learn_then_test(p_values(), 0.1) == (failing - 1 if failing else None)
    assert len(asked) == min(failing + 1, len(values))


@given(st.integers(0, 10**6))
@settings(deadline=None)
def test_conformal_risk_control_is_never_bolder_than_its_bound_on_running_maxima_and_naive_never_more_careful(
    seed: int,
) -> None:
    """The chosen step meets the finite-sample bound on monotone losses."""
    losses = (torch.rand(6, 60, generator=torch.Generator().manual_seed(seed)) < torch.arange(6)[:, None] / 12).double()
    epsilon = 0.2
    chosen, bold = conformal_risk_control(losses, epsilon, 1.0), naive(losses, epsilon)
    assert bold is not None and losses[bold].mean() <= epsilon
    if chosen is not None:
        assert chosen <= bold
        assert losses[: chosen + 1].amax(0).sum() + 1 <= 61 * epsilon + 1e-9


def test_conformal_risk_control_keeps_the_expected_risk_and_learn_then_test_its_probability() -> None:
    """On losses that fall and rise again, where the naive rule breaks its bound far too often."""
    draw = np.random.default_rng(5)
    chances = np.array([0.0, 0.02, 0.04, 0.045, 0.055, 0.06, 0.055, 0.08])
    epsilon, delta, count, rounds = 0.05, 0.1, 300, 400
    risks: dict[str, list[float]] = {"naive": [], "crc": [], "ltt": []}
    for _ in range(rounds):
        losses = torch.from_numpy(draw.random((8, count)) < chances[:, None]).double()
        p_values = (p_value(row, Support.of(0, 1), epsilon, delta) for row in losses.numpy())
        picks = {
            "naive": naive(losses, epsilon),
            "crc": conformal_risk_control(losses, epsilon, 1.0),
            "ltt": learn_then_test(p_values, delta),
        }
        for rule, pick in picks.items():
            risks[rule].append(0.0 if pick is None else chances[pick])
    broken = {rule: float(np.mean(np.array(found) > epsilon)) for rule, found in risks.items()}
    assert broken["ltt"] <= delta < broken["naive"]
    assert np.mean(risks["crc"]) <= epsilon
