"""One target for all exits: kept where accuracy is estimated, missed by plain confidence; and never in silence."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amc.cascade.pcee import Kind, aimed, exit_reports, oracle, pcee
from amc.cascade.points import evaluate
from amc.cascade.policy import NEVER, Policy, scores_of, walk
from amc.cascade.reliability import ESTIMATORS, calibration_error
from amc.cascade.scores import SCORERS
from amc.system.errors import BudgetUnreachable, UsageError
from tests.cascade.outcomes import graded_records, one_threshold

ADDED = [1.0, 2.0, 4.0]
SEEDS = st.integers(0, 10**6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("target", [0.7, 0.75, 0.8])
def test_answers_before_the_last_stage_keep_the_floor_on_unseen_examples(estimator: str, target: float) -> None:
    """Each exit's accuracy is at least the target, up to 4 points of noise."""
    fit, unseen = graded_records(0, number=3000), graded_records(1, number=3000)
    for report in exit_reports(unseen, pcee(fit, ADDED, target, "floor", estimator), ADDED)[:-1]:
        assert report.accuracy is None or report.accuracy >= target - 0.04


def test_the_target_is_tracked_better_than_by_plain_confidence() -> None:
    """Calibrated thresholds miss five targets by less in sum."""
    fit, unseen = graded_records(0, number=3000), graded_records(1, number=3000)
    targets = [0.72, 0.74, 0.76, 0.78, 0.8]
    missed = {}
    for name in ("isotonic", "confidence"):
        policies = [Policy(SCORERS[name](fit), (target, target)) for target in targets]
        reached = [evaluate(unseen, policy, ADDED).accuracy for policy in policies]
        missed[name] = sum(max(0.0, target - got) for target, got in zip(targets, reached, strict=True))
    assert missed["isotonic"] < missed["confidence"] / 2


@given(SEEDS, st.sampled_from([*ESTIMATORS, "confidence", "patience", "deferral"]), st.floats(0.3, 0.9))
@settings(max_examples=40, deadline=None)
def test_a_mean_target_is_met_at_the_least_cost_of_one_threshold_or_refused(
    seed: int, name: str, target: float
) -> None:
    """No single threshold meets it for less."""
    records = graded_records(seed, number=80)
    scorer = SCORERS[name](records)
    points = one_threshold(records, ADDED, scorer)
    enough = [point.mean_cost for point in points if point.accuracy >= target]
    if enough:
        found = evaluate(records, aimed(records, ADDED, scorer, target, "mean"), ADDED)
        assert found.accuracy >= target and found.mean_cost == pytest.approx(min(enough))
    else:
        with pytest.raises(BudgetUnreachable):
            aimed(records, ADDED, scorer, target, "mean")


@given(SEEDS, st.floats(0, 0.3))
@settings(max_examples=40, deadline=None)
def test_a_gap_is_kept_and_a_larger_one_never_costs_more(seed: int, gap: float) -> None:
    """Accuracy is that of the last stage less the gap, or better."""
    records = graded_records(seed, number=80)
    scorer = SCORERS["isotonic"](records)
    small, large = (
        evaluate(records, aimed(records, ADDED, scorer, allowed, "gap"), ADDED) for allowed in (gap, gap + 0.05)
    )
    assert small.accuracy >= float(records.accuracies[-1]) - gap - 1e-9
    assert large.mean_cost <= small.mean_cost


@pytest.mark.parametrize("kind", ["floor", "mean"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_target_out_of_reach_is_refused_with_what_can_be_reached(kind: Kind, estimator: str) -> None:
    """The message gives the best accuracy and the last stage's, exit code 3."""
    records = graded_records(0)
    points = one_threshold(records, ADDED, SCORERS[estimator](records))
    best, last = max(point.accuracy for point in points), float(records.accuracies[-1])
    with pytest.raises(BudgetUnreachable, match=f"99.90%.*{best:.2%}.*{last:.2%}") as refused:
        pcee(records, ADDED, 0.999, kind, estimator)
    assert refused.value.exit_code == 3


@given(SEEDS, st.sampled_from([*SCORERS]), st.floats(0, 1), st.floats(0, 1), st.booleans())
@settings(deadline=None)
def test_the_oracle_is_right_wherever_a_policy_is_and_at_no_more_cost(
    seed: int, name: str, first: float, second: float, best: bool
) -> None:
    """It bounds every policy from above."""
    records = graded_records(seed, number=60)
    scorer = SCORERS[name](records)
    scores = scores_of(records, scorer)
    thresholds = [scores[k].quantile(q).item() for k, q in enumerate((first, second)) if scores[k].isfinite().all()]
    policy = Policy(scorer, tuple(thresholds) if len(thresholds) == 2 else (NEVER, NEVER), best)
    rule, ideal = walk(records, policy, ADDED, scores), oracle(records, ADDED)
    assert bool(ideal.right[rule.right].all()) and ideal.accuracy >= rule.accuracy
    assert bool((ideal.cost <= rule.cost)[rule.right].all())


def test_lower_bounds_stop_no_example_that_the_estimate_would_not() -> None:
    """With `alpha` no example leaves earlier."""
    records = graded_records(0)
    for estimator in ESTIMATORS:
        plain = walk(records, pcee(records, ADDED, 0.7, estimator=estimator), ADDED)
        safe = walk(records, pcee(records, ADDED, 0.7, estimator=estimator, alpha=0.05), ADDED)
        assert bool((safe.stop >= plain.stop).all()) and safe.mean_cost >= plain.mean_cost


@pytest.mark.parametrize("estimator", ["bins", "isotonic"])
def test_fitted_to_survivors_the_answers_of_each_exit_keep_the_floor_on_the_very_records(estimator: str) -> None:
    """On its own examples the floor is exact."""
    records = graded_records(2, number=1000)
    policy = pcee(records, ADDED, 0.75, "floor", estimator, survivors=True)
    for report in exit_reports(records, policy, ADDED)[:-1]:
        assert report.accuracy is not None and report.accuracy >= 0.75


def test_reports_add_up_to_the_walk() -> None:
    """Shares sum to one, and accuracies weighed by them to the whole."""
    records = graded_records(3)
    policy = pcee(records, ADDED, 0.7)
    reports, walked = exit_reports(records, policy, ADDED), walk(records, policy, ADDED)
    assert sum(report.share for report in reports) == pytest.approx(1)
    assert sum(report.share * (report.accuracy or 0) for report in reports) == pytest.approx(walked.accuracy)
    assert [report.reached for report in reports] == sorted((report.reached for report in reports), reverse=True)
    assert all((report.estimate_error or 0) < report.confidence_error for report in reports)


def test_a_stage_that_stops_none_has_no_accuracy() -> None:
    """Its figures are None rather than a number."""
    records = graded_records(3)
    report = exit_reports(records, Policy(SCORERS["confidence"](records), (NEVER, NEVER)), ADDED)[0]
    assert (report.share, report.accuracy, report.estimated, report.estimate_error) == (0.0, None, None, None)


def test_the_calibration_error_is_the_bias_where_it_is_the_same_everywhere() -> None:
    """A constant estimate is off by its distance from the share that is right."""
    right = torch.tensor([True, True, True, False] * 25)
    assert calibration_error(torch.full((100,), 0.95).double(), right) == pytest.approx(0.2)
    assert calibration_error(torch.full((100,), 0.75).double(), right) == pytest.approx(0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": 90.0}, "0.9"),
        ({"kind": "most"}, "floor, mean, gap"),
        ({"estimator": "guess"}, "bins, window, isotonic"),
        ({"kind": "mean", "survivors": True}, "floor"),
    ],
)
def test_an_unknown_option_is_refused(options: dict[str, object], said: str) -> None:
    """The message names the option."""
    with pytest.raises(UsageError, match=said):
        pcee(graded_records(0), ADDED, **{"target": 0.7, **options})  # type: ignore[arg-type]
