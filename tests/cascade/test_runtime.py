"""A cascade that runs does what its plan on records says, and what each input by itself would get."""

from __future__ import annotations

from itertools import accumulate
from time import sleep
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from amc.cascade.rules.scorers import SCORERS
from amc.cascade.rules.stop_rule import NEVER, StopRule, scores_of, simulate
from amc.cascade.serving.latency import LatencyCurve
from amc.cascade.serving.runtime import Answers, Cascade
from amc.cascade.stages.stage import NetworkStage, StageCost
from amc.system.errors import BudgetUnreachable, UsageError
from tests.cascade.cascades import (
    CLASSES,
    assert_alike,
    assert_close,
    between,
    cached_records,
    decided,
    half_cascade,
    some_inputs,
    some_network,
    some_stages,
    visits,
)

FIELDS = ("logits", "stop", "answered", "cost")


@given(
    st.integers(0, 3),
    st.sampled_from(sorted(SCORERS)),
    st.lists(st.floats(0, 1), min_size=3, max_size=3),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_running_a_plan_gives_the_stops_answers_and_costs_of_its_walk(
    seed: int, scorer: str, quantiles: list[float], best: bool
) -> None:
    """For every scorer, where rounding does not decide."""
    stages, inputs = some_stages(seed), some_inputs()
    records = cached_records(stages, inputs)
    fitted = SCORERS[scorer](
        cached_records(stages, some_inputs(seed=7))
    )  # on others: their confidences are edges of steps
    scores = scores_of(records, fitted)
    cascade = Cascade(stages, StopRule(fitted, between(scores, quantiles), best))
    planned = simulate(records, cascade.rule, [10, 21, 32, 100])
    answers = cascade.run(inputs)
    sure = decided(records, cascade.rule)
    assert_alike(answers, planned, sure)
    assert_close(answers.logits[sure], records.logits[answers.answered, torch.arange(len(inputs))][sure])


def test_a_batch_gives_each_input_what_it_gets_by_itself_and_in_any_order() -> None:
    """Alone, batched or shuffled: logits to rounding, stops and answers where rounding does not decide."""
    inputs = some_inputs()
    cascade = half_cascade(some_stages(), inputs)
    whole = cascade.run(inputs)
    assert all(int((whole.stop == stage).sum()) > 2 for stage in range(4))
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(3))
    shuffled = cascade.run(inputs[order])
    single = [cascade.run(inputs[row : row + 1]) for row in range(len(inputs))]
    alone = Answers(*(torch.cat([getattr(each, name) for each in single]) for name in FIELDS))
    back = Answers(*(getattr(shuffled, name)[order.argsort()] for name in FIELDS))
    sure = decided(cached_records(cascade.stages, inputs), cascade.rule)
    assert_alike(alone, whole, sure)
    assert_alike(back, whole, sure)


def test_no_stage_runs_on_an_input_that_left_and_none_on_an_empty_batch() -> None:
    """Each stage sees exactly the inputs that reach it."""
    stages, inputs = some_stages(), some_inputs()
    cascade = half_cascade(stages, inputs)
    for stage in stages:
        for module in [stage.model] if isinstance(stage, NetworkStage) else stage.bodies:
            module.seen.clear()
    answers = cascade.run(inputs)
    for number, stage in enumerate(stages):
        (seen,) = visits(stage)
        reached = (answers.stop >= number).nonzero()[:, 0]
        assert len(seen if isinstance(seen, Tensor) else seen[0]) == len(reached)
        if isinstance(stage, NetworkStage):
            assert torch.equal(seen, inputs[reached])
    alone = int((answers.stop == 0).nonzero()[0])
    cascade.run(inputs[alone : alone + 1])
    assert [len(visits(stage)) for stage in stages] == [2, 1, 1, 1]


def test_channels_last_survives_the_gathering() -> None:
    """A stage gets the memory format of the input."""
    stages, inputs = some_stages(), some_inputs().expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
    seen: list[Tensor] = []

    class Watching(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            seen.append(inputs)
            return 4 * inputs[:, :1, 0, :CLASSES].squeeze(1)

    stages = tuple(NetworkStage(name, Watching(), StageCost(name, 1)) for name in "ab")
    half_cascade(stages, inputs).run(inputs)
    assert 0 < len(seen[-1]) < len(inputs) and seen[-1].is_contiguous(memory_format=torch.channels_last)


def test_no_input_costs_more_than_the_cap_and_the_best_answer_so_far_is_given() -> None:
    """A cap ends the path at the last stage that it pays for."""
    stages, inputs = some_stages(), some_inputs()
    cascade = half_cascade(stages, inputs)
    records = cached_records(stages, inputs)
    assert cascade.costs == tuple(accumulate([10, 21, 32, 100]))
    for cap, depth in ((200, 4), (162, 3), (63, 3), (62.9, 2), (10, 1)):
        answers = cascade.run(inputs, max_cost=cap)
        assert float(answers.cost.max()) <= cap and int(answers.stop.max()) == depth - 1
        rule = cascade.rule
        shorter = records.choose(range(depth))
        planned = simulate(shorter, StopRule(rule.scorer, rule.thresholds[: depth - 1]), [10, 21, 32, 100][:depth])
        recalled = simulate(shorter, StopRule(rule.scorer, rule.thresholds[: depth - 1], best=True), [1.0] * depth)
        stopped = answers.stop < depth - 1
        if depth < 4:
            stopped |= scores_of(shorter, rule.scorer)[-1] >= rule.thresholds[depth - 1]
        expected = torch.where(stopped, planned.predictions, recalled.predictions)
        sure = decided(records, rule) & decided(shorter, StopRule(rule.scorer, rule.thresholds[: depth - 1], best=True))
        wanted = expected if depth < 4 else planned.predictions
        assert torch.equal(answers.predictions[sure], wanted[sure])


def test_a_cap_below_the_first_stage_names_what_is_needed() -> None:
    """The message gives both costs."""
    cascade = half_cascade(some_stages(), some_inputs())
    with pytest.raises(BudgetUnreachable, match="first stage, 10 multiply-adds, but may be at most 9"):
        cascade.run(some_inputs(), max_cost=9)


def test_when_the_time_is_over_no_further_stage_starts() -> None:
    """The stage that runs ends, and its answer is given."""

    class Slow(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.runs = inner, 0

        def forward(self, inputs: Tensor) -> Any:
            sleep(0.03)
            self.runs += 1
            return self.inner(inputs)

    networks = [Slow(some_network(seed)) for seed in range(3)]
    stages = tuple(NetworkStage(f"n{i}", network, StageCost(f"n{i}", 1)) for i, network in enumerate(networks))
    never = StopRule(SCORERS["confidence"](cached_records(stages, some_inputs(8))), (NEVER, NEVER))
    for network in networks:
        network.runs = 0
    answers = Cascade(stages, never).run(some_inputs(8), seconds=0.04)
    assert [network.runs for network in networks] == [1, 1, 0] and answers.stop.tolist() == [1] * 8
    assert Cascade(stages, never).run(some_inputs(8), seconds=0).stop.tolist() == [0] * 8


def test_with_measured_curves_the_least_sure_inputs_use_the_time_that_is_left() -> None:
    """As many of them as the curve says will fit."""
    stages, inputs = (some_stages()[0], some_stages()[3]), some_inputs()
    curves = (
        LatencyCurve((1, 2), (1.0, 1.0)),
        LatencyCurve((1, 2), (1001.0, 2001.0)),
    )  # 1 + 1000 a piece: about 5 in 5,500 s
    never = StopRule(SCORERS["confidence"](cached_records(stages, inputs)), (NEVER,))
    answers = Cascade(stages, never, curves=curves).run(inputs, seconds=5500.0)
    confidence = scores_of(cached_records(stages, inputs), never.scorer)[0]
    assert set((answers.stop == 1).nonzero()[:, 0].tolist()) == set(confidence.argsort()[:5].tolist())


def test_a_cascade_that_does_not_fit_together_is_refused() -> None:
    """Numbers of thresholds and curves, and an empty batch, have their messages."""
    scorer = SCORERS["confidence"](cached_records(some_stages(), some_inputs()))
    with pytest.raises(UsageError, match="4 stages and 2 thresholds"):
        Cascade(some_stages(), StopRule(scorer, (0.5, 0.5)))
    with pytest.raises(UsageError, match="each of its 4 stages, but has 1"):
        Cascade(some_stages(), StopRule(scorer, (0.5,) * 3), curves=(LatencyCurve((1,), (1.0,)),))
    with pytest.raises(UsageError, match="at least one example"):
        Cascade(some_stages(), StopRule(scorer, (0.5,) * 3)).run(some_inputs(0))
