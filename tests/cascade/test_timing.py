"""The benchmark of speed runs one plan in three ways, and they agree."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from amc.bench.cascade.breakdown import Bare, kept_by
from amc.bench.cascade.timing import bench_speed, masked, singly, speed_text
from amc.cascade.rules.stop_rule import StopRule
from amc.cascade.serving.runtime import Cascade
from amc.cascade.stages.stage import NetworkStage
from tests.cascade.cascades import assert_alike, cached_records, decided, half_cascade, some_inputs, some_stages, visits


@pytest.mark.parametrize("best", [False, True])
def test_masked_gathered_and_single_runs_of_a_plan_give_the_same_answers(best: bool) -> None:
    """Where rounding does not decide; logits agree to rounding."""
    inputs = some_inputs(40)
    cascade = half_cascade(some_stages(), inputs, best=best)
    gathered = cascade.run(inputs)
    sure = decided(cached_records(cascade.stages, inputs), cascade.rule)
    for found in (masked(cascade, inputs), singly(cascade, inputs)):
        assert_alike(found, gathered, sure)


def test_what_is_kept_is_told_apart_by_stages_smaller_batches_and_the_rest() -> None:
    """A base of 8 s; stages of 2 and 8 s, the second reached by a quarter of the inputs, but in 3 s instead of 2."""
    stops = torch.tensor([0, 0, 0, 1])
    kept = kept_by(torch.tensor([8.0, 5.0, 2.0, 8.0]), stops, promised=4.0, speedup=1.25)
    assert kept == pytest.approx({"stages": 8 / 4 / 4, "batches": 4 / 5, "runtime": 1.25 / (8 / 5)})


@pytest.mark.parametrize("best", [False, True])
def test_the_stages_by_themselves_are_run_on_whoever_reaches_them(best: bool) -> None:
    """What is timed without the runtime is the same work."""
    inputs = some_inputs(40)
    cascade = half_cascade(some_stages(), inputs, best=best)
    stop = cascade.run(inputs).stop
    for stage in cascade.stages:
        visits(stage).clear()
    bare = Bare.of(cascade, Cascade(cascade.stages[3:], StopRule(cascade.rule.scorer, ())), inputs, stop)
    for stage in cascade.stages:
        visits(stage).clear()
    assert len(bare.timed()) == 2 + 4
    for number, stage in enumerate(cascade.stages):
        sizes = [len(seen if isinstance(seen, Tensor) else seen[0]) for seen in visits(stage)]
        assert sizes == [40] * 2 * (number == 3) + [int((stop >= number).sum())] * 2 + [40] * 2


@pytest.mark.slow
def test_speed_is_told_for_each_engine_and_batch_size() -> None:
    """Shares, costs and seconds agree with each other, for torch and ONNX alike."""
    inputs = some_inputs(32)
    cascade = half_cascade(some_stages(wrap=lambda module: module), inputs)
    base = cascade.stages[3]
    assert isinstance(base, NetworkStage)
    found = bench_speed(cascade, base, inputs, batches=(1, 8), rounds=1)
    for engine in ("torch", "onnx"):
        reported = found[engine]
        assert sum(reported["shares"]) == pytest.approx(1) and reported["base"]["macs"] == 100
        assert [row["batch"] for row in reported["batches"]] == [1, 8] and all(
            row["agree"] for row in reported["batches"]
        )
        for row in reported["batches"]:
            assert row["macs_speedup"] == pytest.approx(100 / reported["macs"]["mean"])
            assert math.prod(row["kept"].values()) == pytest.approx(row["share_of_macs"])
            assert row["share_of_macs"] == pytest.approx(row["speedup"] / row["macs_speedup"])
            assert row["seconds"]["gathered"]["max"] >= row["seconds"]["gathered"]["p50"] > 0
        assert (
            len(reported["curves"]) == len(reported["seconds_per_mac"]) == 4
            and len(reported["gathering"]["saved"]) == 3
        )
    assert found["alike"] == 1
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    text = speed_text(found)
    assert "torch: saver" in text and "onnx: saver" in text and max(map(len, text.splitlines())) <= 120
