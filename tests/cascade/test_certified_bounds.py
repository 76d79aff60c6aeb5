"""Bounds of one stop rule hold on everyone, as a whole and exit by exit."""

from __future__ import annotations

import pytest

from amc.cascade.certificates.certified_bounds import bounds_of, report_exits
from amc.cascade.certificates.risk_control import RISKS, threshold_ladder
from amc.cascade.rules.scorers import FeatureScorer
from amc.cascade.rules.stop_rule import simulate
from tests.cascade.population import ADDED, population

CONFIDENCE = FeatureScorer("confidence")
FIT, RISK, EVERYONE = population(1000, 0), population(1500, 1), population(60_000, 2)
LADDER = threshold_ladder(FIT, CONFIDENCE, 25)


def test_exits_are_reported_each_by_itself_and_add_up_to_the_whole() -> None:
    """Counts, shares and accuracies of the exits give those of the walk, and intervals hold the population's."""
    outcomes = simulate(RISK, LADDER[12], ADDED)
    exits = report_exits(RISK, outcomes, 0.001)
    assert sum(row.count for row in exits) == len(RISK) and sum(row.share for row in exits) == pytest.approx(1)
    rights = sum(row.count * row.accuracy for row in exits if row.accuracy is not None)
    assert rights / len(RISK) == pytest.approx(outcomes.accuracy)
    on_everyone = report_exits(EVERYONE, simulate(EVERYONE, LADDER[12], ADDED), 0.001)
    for row, true in zip(exits, on_everyone, strict=True):
        assert row.accuracy is not None and row.gap is not None and true.accuracy is not None and true.gap is not None
        assert row.accuracy_interval[0] <= row.accuracy <= row.accuracy_interval[1]
        assert row.accuracy_interval[0] <= true.accuracy <= row.accuracy_interval[1]
        assert row.gap_interval[0] <= true.gap <= row.gap_interval[1]


def test_an_exit_that_nobody_takes_is_reported_as_unknown() -> None:
    """Its accuracy is None, and its intervals say nothing."""
    first = report_exits(RISK, simulate(RISK, LADDER[0], ADDED), 0.1)[0]
    assert first.count == 0 and first.accuracy is first.gap is None
    assert first.accuracy_interval == (0.0, 1.0) and first.gap_interval == (-1.0, 1.0)


def test_bounds_of_one_rule_hold_on_everyone_and_its_largest_cost_is_the_whole_path() -> None:
    """Every bound lies on its side of the figure of the population."""
    outcomes, everyone = (simulate(records, LADDER[12], ADDED) for records in (RISK, EVERYONE))
    found = bounds_of(RISK, outcomes, ADDED, RISK.logits[-1], False, 0.05)
    assert found["accuracy"] <= everyone.accuracy and everyone.mean_cost <= found["mean_cost"]
    assert found["mean_cost"] <= found["max_cost"] == sum(ADDED)
    assert RISKS["gap"].losses(EVERYONE, everyone, ADDED).mean <= found["drop"]
