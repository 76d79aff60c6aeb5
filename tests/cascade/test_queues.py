"""Inputs that are served in micro-batches get what they would get by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amc.cascade.certificates.drift import safe_rule
from amc.cascade.rules.scorers import FeatureScorer
from amc.cascade.rules.stop_rule import NEVER, StopRule
from amc.cascade.serving.queues import Busy, StageQueues
from amc.cascade.serving.runtime import Answers, Cascade
from amc.cascade.stages.stage import NetworkStage, StageCost
from amc.system.errors import UsageError
from tests.cascade.cascades import (
    assert_alike,
    assert_close,
    cached_records,
    decided,
    half_cascade,
    some_inputs,
    some_stages,
    visits,
)


@contextmanager
def open_queues(cascade: Cascade, **settings: Any) -> Iterator[StageQueues]:
    queues = StageQueues(cascade, **settings)
    try:
        yield queues
    finally:
        queues.close()


def joined(futures: list[Future[Answers]]) -> Answers:
    done = [future.result(timeout=20) for future in futures]
    parts = zip(*((a.logits, a.stop, a.answered, a.cost) for a in done), strict=True)
    return Answers(*map(torch.cat, parts))


@pytest.mark.parametrize("best", [False, True])
def test_inputs_in_many_small_requests_get_the_answers_of_one_batch(best: bool) -> None:
    """Batches differ, so logits agree to rounding, stops and answers wherever rounding does not decide."""
    inputs = some_inputs(90)
    cascade = half_cascade(some_stages(), inputs, best=best)
    sizes = [1, 1, 7, 20, 1, 40, 3, 17]
    with open_queues(cascade, batch=8) as queues:
        found = joined([queues.submit(part) for part in inputs.split(sizes)])
        assert queues.answered == 90 and queues.inside == 0
    whole = cascade.run(inputs)
    assert_alike(found, whole, decided(cached_records(cascade.stages, inputs), cascade.rule))


def test_deep_stages_get_full_batches_although_most_inputs_leave_before() -> None:
    """All batches of the last stage are full, but one."""
    stages, inputs = some_stages(), some_inputs(128)
    cascade = half_cascade(stages, inputs)
    reaching = int((cascade.run(inputs).stop == 3).sum())
    for stage in stages:
        visits(stage).clear()
    with open_queues(cascade, batch=8, wait=5.0) as queues:
        futures = [queues.submit(part) for part in inputs.split(16)]
        queues.close()  # what is inside is answered
        joined(futures)
    sizes = [len(seen) for seen in visits(stages[3])]
    assert sum(sizes) == reaching and max(sizes) <= 8
    assert sum(size == 8 for size in sizes) >= reaching // 8 - 1


def test_caps_and_deadlines_hold_for_each_request_by_itself() -> None:
    """Requests that share batches keep their own cap and deadline, and answer as alone, to rounding."""
    inputs = some_inputs(12)
    stages = some_stages()
    cascade = Cascade(stages, StopRule(FeatureScorer("confidence"), (NEVER,) * 3))
    with open_queues(cascade, batch=64, wait=0.05) as queues:
        free, capped, hurried = (
            queues.submit(inputs),
            queues.submit(inputs, max_cost=40),
            queues.submit(inputs, seconds=0),
        )
        assert set(joined([free]).stop.tolist()) == {3}
        assert set(joined([capped]).stop.tolist()) == {1} and float(joined([capped]).cost.max()) <= 40
        assert set(joined([hurried]).stop.tolist()) == {0}
    assert_close(joined([capped]).logits, cascade.run(inputs, max_cost=40).logits)  # of other batches


def test_a_failing_stage_is_told_to_those_in_it_and_the_others_are_served() -> None:
    """The error reaches only the request whose input caused it."""

    class Picky(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            if bool((inputs > 100).any()):
                raise RuntimeError("too large")
            return inputs.flatten(1)[:, :4]

    cascade = Cascade((NetworkStage("picky", Picky(), StageCost("a", 1)),), StopRule(FeatureScorer("confidence"), ()))
    with open_queues(cascade, wait=0.0, batch=1) as queues:
        bad, good = queues.submit(torch.full((1, 1, 8, 8), 1000.0)), queues.submit(some_inputs(2))
        with pytest.raises(RuntimeError, match="too large"):
            bad.result(timeout=20)
        assert len(good.result(timeout=20).stop) == 2 and queues.inside == 0


def test_full_or_closed_queues_refuse_inputs() -> None:
    """`Busy` tells how many wait and how many came."""
    cascade = half_cascade(some_stages(), some_inputs())
    with open_queues(cascade, wait=5.0, room=10) as queues:
        queues.submit(some_inputs(8))
        with pytest.raises(Busy, match="at most 10 inputs may wait, but 8 do and 3 came"):
            queues.submit(some_inputs(3))
    with pytest.raises(UsageError, match="are closed"):
        queues.submit(some_inputs(1))


def test_an_observer_sees_every_answer_and_its_policy_is_in_force_from_then_on() -> None:
    """Requests after its change follow the new stop rule."""
    inputs, seen = some_inputs(40), []
    cascade = half_cascade(some_stages(), inputs)
    safe = safe_rule(cascade.rule)

    def observe(stop: Tensor, logits: Tensor) -> StopRule:
        seen.extend(zip(stop.tolist(), logits.argmax(1).tolist(), strict=True))
        return safe

    with open_queues(cascade, observer=observe) as queues:
        first = queues.submit(inputs[:20]).result(timeout=20)
        assert queues.rule is safe
        second = queues.submit(inputs[20:]).result(timeout=20)
    assert set(second.stop.tolist()) == {3} and 0 in first.stop.tolist()
    everything = [*zip(first.stop.tolist(), first.predictions.tolist(), strict=True)]
    everything += zip(second.stop.tolist(), second.predictions.tolist(), strict=True)
    assert sorted(seen) == sorted(everything)
    torch.testing.assert_close(second.logits, replace(cascade, rule=safe).run(inputs[20:]).logits)
