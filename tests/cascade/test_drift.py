"""A monitor flags what is unlike the certificate's examples, seldom anything else, and falls back to the safe plan."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from amc.cascade.certificates.drift import DriftMonitor, DriftVerdict, Profile, compare, confidence_of, safe_rule
from amc.cascade.certificates.risk_control import answered_logits
from amc.cascade.rules.scorers import FeatureScorer
from amc.cascade.rules.stop_rule import NEVER, StopRule, simulate
from amc.cascade.stages.records import Records
from amc.system.errors import UsageError
from tests.cascade.population import ADDED, population

POLICY = StopRule(FeatureScorer("confidence"), (0.9, 0.8))
REFERENCE = population(1500, 0)


def serve(monitor: DriftMonitor, records: Records, batch: int) -> list[DriftVerdict]:
    """Answer all examples, each batch under the plan then in force."""
    verdicts = []
    for start in range(0, len(records), batch):
        part = records.take(torch.arange(start, min(start + batch, len(records))))
        outcomes = simulate(part, monitor.rule, ADDED)
        verdicts += monitor.observe(outcomes.stop, confidence_of(answered_logits(part, outcomes)))
    return verdicts


def test_nothing_is_flagged_more_often_than_the_rate_set_while_inputs_stay_as_they_were() -> None:
    """False alarms over a hundred monitors stay at 5 %, up to noise."""
    rate, flagged, total = 0.05, 0, 0
    for seed in range(100):
        monitor = DriftMonitor.on(population(800, 1000 + seed), POLICY, window=200, lasting=5, false_alarm=rate)
        verdicts = serve(monitor, population(2000, 2000 + seed), 100)
        flagged += sum(verdict.drifted for verdict in verdicts)
        total += len(verdicts)
    assert total > 400 and flagged / total <= rate + 2 * np.sqrt(rate * (1 - rate) / total)


def test_a_shift_is_flagged_in_the_first_window_and_the_safe_plan_answers() -> None:
    """Then every input goes to the last stage."""
    monitor = DriftMonitor.on(REFERENCE, POLICY)
    verdicts = serve(monitor, population(500, 7, noise=2.0), 100)
    assert [verdict.drifted for verdict in verdicts] == [True]
    assert verdicts[0].safe and monitor.rule.thresholds == (NEVER, NEVER)
    assert "differs from" in verdicts[0].sentence and "the safe plan answers" in verdicts[0].sentence
    outcomes = simulate(REFERENCE, monitor.rule, ADDED)
    assert torch.equal(outcomes.predictions, REFERENCE.predictions[-1])


def test_a_drift_too_small_for_a_window_shows_in_several_together() -> None:
    """Windows are tested alone and pooled."""
    alone, together = (
        DriftMonitor.on(population(10_000, 0), POLICY, window=200, lasting=lasting) for lasting in (1, 25)
    )
    stream = population(5000, 9, noise=1.3)
    assert not any(verdict.drifted for verdict in serve(alone, stream, 200))
    verdicts = serve(together, stream, 200)
    assert verdicts[-1].drifted and verdicts[-1].lasting is not None and not any(v.drifted for v in verdicts[:-1])


def test_after_the_shift_has_gone_for_some_windows_inputs_may_leave_early_again() -> None:
    """`recovery` windows without a sign bring the plan back."""
    monitor = DriftMonitor.on(REFERENCE, POLICY, window=200, recovery=3)
    serve(monitor, population(200, 9, noise=2.5), 200)
    assert monitor.safe
    assert [verdict.safe for verdict in serve(monitor, population(600, 10), 200)] == [True, True, False]
    assert monitor.rule.thresholds == POLICY.thresholds


def test_while_the_shift_lasts_and_without_recovery_the_safe_plan_stays() -> None:
    """Neither a lasting shift nor `recovery=None` ever ends it."""
    lasting = DriftMonitor.on(REFERENCE, POLICY, window=200, recovery=3)
    stream = population(2000, 11)
    dimmed = Records(stream.stages, 0.5 * stream.logits, stream.labels)
    assert all(verdict.safe for verdict in serve(lasting, dimmed, 200))
    waiting = DriftMonitor.on(REFERENCE, POLICY, window=200)
    serve(waiting, population(200, 9, noise=2.5), 200)
    assert all(verdict.safe for verdict in serve(waiting, population(3000, 12), 200))
    waiting.reset()
    assert not waiting.safe


def test_verdicts_do_not_depend_on_how_answers_are_batched() -> None:
    """One by one, by 70 or all at once, the windows are the same."""
    stream = population(1000, 13)
    found = [serve(DriftMonitor.on(REFERENCE, POLICY, window=250), stream, batch) for batch in (1, 70, 1000)]
    assert found[0] == found[1] == found[2] and len(found[0]) == 4


def test_answers_of_the_plan_no_longer_in_force_are_left_out_after_a_change() -> None:
    """A batch that crosses the change gives one verdict."""
    monitor = DriftMonitor.on(REFERENCE, POLICY, window=100)
    stream = population(1000, 14, noise=3.0)
    outcomes = simulate(stream, POLICY, ADDED)
    assert len(monitor.observe(outcomes.stop, confidence_of(answered_logits(stream, outcomes)))) == 1


def test_a_profile_counts_every_example_once_even_where_confidences_are_equal() -> None:
    """A profile never differs from itself."""
    sure = Records(("a", "b"), torch.zeros(2, 100, 3).index_fill(2, torch.tensor([1]), 1e3), torch.ones(100).long())
    profile = Profile.of(sure, StopRule(FeatureScorer("confidence"), (0.5,)))
    assert profile.exits == (100, 0) and sum(profile.confidences) == 100
    assert compare(profile, profile).confidence_p == compare(profile, profile).exits_p == 1.0


def test_a_monitor_comes_back_from_json_with_the_same_verdicts() -> None:
    """Its profile and its settings are all that it needs."""
    monitor = DriftMonitor.on(REFERENCE, POLICY, window=250, false_alarm=0.01)
    again = DriftMonitor.from_json(json.loads(json.dumps(monitor.to_json())), POLICY)
    stream = population(500, 15, noise=1.3)
    assert serve(again, stream, 50) == serve(monitor, stream, 50)


def test_the_safe_plan_never_stops_early_nor_recalls_an_earlier_answer() -> None:
    """All thresholds are infinite and `best` is off."""
    assert safe_rule(StopRule(FeatureScorer("margin"), (0.1, 0.2), best=True)).thresholds == (NEVER, NEVER)
    assert not safe_rule(StopRule(FeatureScorer("margin"), (0.1,), best=True)).best


def test_settings_that_make_no_sense_are_refused() -> None:
    """The message says what to change."""
    with pytest.raises(UsageError, match="change these"):
        DriftMonitor.on(REFERENCE, POLICY, false_alarm=0.0)
