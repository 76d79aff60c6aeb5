"""The benchmark of speed runs one plan in three ways, and they agree."""

from __future__ import annotations

import json

import pytest
import torch

from amc.bench.cascade.speed import bench_speed, masked, singly, speed_text
from amc.dynamic.stage import NetworkStage
from tests.dynamic.cascades import half_cascade, some_inputs, some_stages


@pytest.mark.parametrize("best", [False, True])
def test_masked_gathered_and_single_runs_of_a_plan_give_the_same_answers(best: bool) -> None:
    inputs = some_inputs(40)
    cascade = half_cascade(some_stages(), inputs, best=best)
    gathered = cascade.run(inputs)
    for found in (masked(cascade, inputs), singly(cascade, inputs)):
        assert torch.equal(found.stop, gathered.stop) and torch.equal(found.answered, gathered.answered)
        assert torch.equal(found.cost, gathered.cost)
        torch.testing.assert_close(found.logits, gathered.logits)


@pytest.mark.slow
def test_speed_is_told_for_each_engine_and_batch_size() -> None:
    inputs = some_inputs(32)
    cascade = half_cascade(some_stages(wrap=lambda module: module), inputs)
    base = cascade.stages[3]
    assert isinstance(base, NetworkStage)
    found = bench_speed(cascade, base, inputs, batches=(1, 8), rounds=1)
    for engine in ("torch", "onnx"):
        told = found[engine]
        assert sum(told["shares"]) == pytest.approx(1) and told["base"]["macs"] == 100
        assert [row["batch"] for row in told["batches"]] == [1, 8] and all(row["agree"] for row in told["batches"])
        for row in told["batches"]:
            assert row["macs_speedup"] == pytest.approx(100 / told["macs"]["mean"])
            assert row["share_of_macs"] == pytest.approx(row["speedup"] / row["macs_speedup"])
            assert row["seconds"]["gathered"]["max"] >= row["seconds"]["gathered"]["p50"] > 0
        assert len(told["curves"]) == len(told["seconds_per_mac"]) == 4 and len(told["gathering"]["saved"]) == 3
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    text = speed_text(found)
    assert "torch: saver" in text and "onnx: saver" in text and max(map(len, text.splitlines())) <= 120
