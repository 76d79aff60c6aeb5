"""Seconds of stages and plans, from measured curves."""

from __future__ import annotations

from time import sleep
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from amc.bench.cascade.timing import expected_seconds, saved_by_gathering
from amc.cascade.rules.scorers import FeatureScorer
from amc.cascade.serving.latency import (
    LatencyCurve,
    Quantiles,
    batch_seconds,
    measure_latency,
)
from amc.cascade.stages.stage import StageCost, State
from amc.system.device import Compute

CPU = Compute(torch.device("cpu"), False)
CURVES = (
    LatencyCurve((1, 64), (0.0021, 0.0084)),
    LatencyCurve((1, 64), (0.005, 0.068)),
    LatencyCurve((1, 64), (0.011, 0.65)),
)


class Sleeper:
    """A stage of known time, which reads what the one before handed on."""

    def __init__(self, name: str, fixed: float, each: float) -> None:
        self.name, self.cost, self.fixed, self.each = name, StageCost(name, 1), fixed, each

    def run(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        sleep(self.fixed + self.each * len(inputs))
        before: Any = state.get("before", inputs)
        return inputs, {"before": before + 1}


@given(st.lists(st.floats(0, 100), min_size=1, max_size=300))
@settings(deadline=None)
def test_quantiles_are_values_that_enough_of_them_do_not_exceed(values: list[float]) -> None:
    """Each quantile is one of the values, and the smallest that holds its share."""
    tensor = torch.tensor(values, dtype=torch.float64)
    found = Quantiles.of(tensor)
    for quantile, share in ((found.p50, 0.5), (found.p95, 0.95), (found.p99, 0.99)):
        assert quantile in tensor and float((tensor <= quantile).double().mean()) >= share
        below = tensor[tensor < quantile]
        assert len(below) < share * len(tensor) + 1e-9
    assert found.max == max(values) and found.mean == pytest.approx(sum(values) / len(values))


@given(st.floats(0, 1), st.floats(1e-4, 1))
@settings(deadline=None)
def test_a_line_is_found_again_with_no_error(fixed: float, each: float) -> None:
    """Fixed and growing seconds are recovered from exact measurements."""
    batches = (1, 2, 8, 64)
    curve = LatencyCurve(batches, tuple(fixed + each * batch for batch in batches))
    assert curve.line == pytest.approx((fixed, each), rel=1e-6, abs=1e-9) and curve.error < 1e-6
    assert curve(10) == pytest.approx(fixed + 10 * each) and curve(0) == 0


@given(st.floats(0, 1), st.integers(0, 80))
@settings(deadline=None)
def test_the_largest_batch_in_time_is_the_largest_whose_seconds_fit(seconds: float, wanted: int) -> None:
    """One example more would not fit, unless no more were wanted."""
    curve = CURVES[2]
    most = curve.most(seconds, wanted)
    assert 0 <= most <= wanted and (most == 0 or curve(most) <= seconds + 1e-9)
    assert most == wanted or curve(most + 1) > seconds - 1e-9


def test_measuring_stages_finds_what_a_batch_and_an_input_take() -> None:
    """A stage that sleeps takes at least its sleep; on a busy machine it may be more."""
    stages = (Sleeper("first", 0.004, 0.0), Sleeper("second", 0.001, 0.002))
    inputs = torch.randn(3, 5)  # fewer than the largest batch
    flat, steep = measure_latency(stages, FeatureScorer("confidence"), inputs, CPU, batches=(1, 8), rounds=5)
    assert min(flat.seconds) >= 0.004 and steep.seconds[0] >= 0.003 and steep.seconds[1] >= 0.017


@pytest.mark.parametrize("batch", [1, 8, 64])
def test_expected_seconds_are_the_mean_over_random_batches(batch: int) -> None:
    """The formula agrees with 20,000 draws to 2 %."""
    stop = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    shares = torch.bincount(stop).double() / len(stop)
    drawn = batch_seconds(CURVES, stop, batch, draws=20_000)
    assert expected_seconds(CURVES, shares, batch) == pytest.approx(float(drawn.mean()), rel=0.02)
    longest = sum(curve(batch) for curve in CURVES)
    assert float(drawn.max()) <= longest + 1e-9 and float(drawn.min()) >= CURVES[0](batch) - 1e-9


def test_of_one_input_a_plan_takes_the_seconds_of_the_stages_that_it_visits() -> None:
    """A batch of one is exactly their sum."""
    seconds = batch_seconds(CURVES, torch.tensor([1]), 1, draws=5)
    assert torch.allclose(seconds, torch.full((5,), CURVES[0](1) + CURVES[1](1), dtype=torch.float64))


def test_gathering_pays_where_it_takes_less_than_the_stage_saves() -> None:
    """A dear gathering that spares one example loses time."""
    cheap, dear = LatencyCurve((1, 64), (1e-5, 1e-4)), LatencyCurve((1, 64), (0.02, 1.28))
    assert saved_by_gathering(CURVES, cheap, 2, 64, 32) > 0.25
    assert saved_by_gathering(CURVES, dear, 2, 64, 63) < 0
