"""One target for all exits: kept where accuracy is estimated, missed by plain confidence; and never in silence."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amc.bench.cascade.exit_calibration import calibration_error, exit_reports, oracle
from amc.cascade.rules.operating_points import evaluate
from amc.cascade.rules.reliability import ESTIMATORS
from amc.cascade.rules.scorers import SCORERS
from amc.cascade.rules.stop_rule import NEVER, StopRule, scores_of, simulate
from tests.cascade.graded import graded_records

ADDED = [1.0, 2.0, 4.0]
SEEDS = st.integers(0, 10**6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("target", [0.7, 0.75, 0.8])
def test_answers_before_the_last_stage_keep_the_floor_on_unseen_examples(estimator: str, target: float) -> None:
    """Each exit's accuracy is at least the target, up to 4 points of noise."""
    fit, unseen = graded_records(0, number=3000), graded_records(1, number=3000)
    for report in exit_reports(unseen, StopRule(SCORERS[estimator](fit), (target, target)), ADDED)[:-1]:
        assert report.accuracy is None or report.accuracy >= target - 0.04


def test_the_target_is_tracked_better_than_by_plain_confidence() -> None:
    """Calibrated thresholds miss five targets by less in sum."""
    fit, unseen = graded_records(0, number=3000), graded_records(1, number=3000)
    targets = [0.72, 0.74, 0.76, 0.78, 0.8]
    missed = {}
    for name in ("isotonic", "confidence"):
        rules = [StopRule(SCORERS[name](fit), (target, target)) for target in targets]
        reached = [evaluate(unseen, rule, ADDED).accuracy for rule in rules]
        missed[name] = sum(max(0.0, target - got) for target, got in zip(targets, reached, strict=True))
    assert missed["isotonic"] < missed["confidence"] / 2


@given(SEEDS, st.sampled_from([*SCORERS]), st.floats(0, 1), st.floats(0, 1), st.booleans())
@settings(deadline=None)
def test_the_oracle_is_right_wherever_a_policy_is_and_at_no_more_cost(
    seed: int, name: str, first: float, second: float, best: bool
) -> None:
    """It bounds every stop rule from above."""
    records = graded_records(seed, number=60)
    scorer = SCORERS[name](records)
    scores = scores_of(records, scorer)
    thresholds = [scores[k].quantile(q).item() for k, q in enumerate((first, second)) if scores[k].isfinite().all()]
    rule = StopRule(scorer, tuple(thresholds) if len(thresholds) == 2 else (NEVER, NEVER), best)
    found, ideal = simulate(records, rule, ADDED, scores), oracle(records, ADDED)
    assert bool(ideal.right[found.right].all()) and ideal.accuracy >= found.accuracy
    assert bool((ideal.cost <= found.cost)[found.right].all())


def test_reports_add_up_to_the_walk() -> None:
    """Shares sum to one, and accuracies weighed by them to the whole."""
    records = graded_records(3)
    rule = StopRule(SCORERS["isotonic"](records), (0.7, 0.7))
    reports, outcomes = exit_reports(records, rule, ADDED), simulate(records, rule, ADDED)
    assert sum(report.share for report in reports) == pytest.approx(1)
    assert sum(report.share * (report.accuracy or 0) for report in reports) == pytest.approx(outcomes.accuracy)
    assert [report.reached for report in reports] == sorted((report.reached for report in reports), reverse=True)
    assert all((report.estimate_error or 0) < report.confidence_error for report in reports)


def test_a_stage_that_stops_none_has_no_accuracy() -> None:
    """Its figures are None rather than a number."""
    records = graded_records(3)
    report = exit_reports(records, StopRule(SCORERS["confidence"](records), (NEVER, NEVER)), ADDED)[0]
    assert (report.share, report.accuracy, report.estimated, report.estimate_error) == (0.0, None, None, None)


def test_the_calibration_error_is_the_bias_where_it_is_the_same_everywhere() -> None:
    """A constant estimate is off by its distance from the share that is right."""
    right = torch.tensor([True, True, True, False] * 25)
    assert calibration_error(torch.full((100,), 0.95).double(), right) == pytest.approx(0.2)
    assert calibration_error(torch.full((100,), 0.75).double(), right) == pytest.approx(0)
