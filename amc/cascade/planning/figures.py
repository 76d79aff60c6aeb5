"""What a plan did on the examples of one split, as plain values for a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from amc.cascade.rules.stop_rule import Outcomes, StopRule
from amc.cascade.serving.inference_stages import for_inference
from amc.cascade.serving.latency import Quantiles, batch_seconds, measure_latency
from amc.cascade.stages.records import Records
from amc.cascade.stages.stage import Stage
from amc.system.device import Compute
from amc.train.evaluation import Evaluation

BATCHES = (1, 8, 64)  # on which stages are timed; reported for the first and the last
ROUNDS = 7


def figures_of(records: Records, outcomes: Outcomes, added: Sequence[float]) -> dict[str, Any]:
    """Accuracy with its 95 % interval, the cost of an example, and what each exit did; JSON-able.

    `cost` is mean, p50, p95, p99 and max of the multiply-adds seen; `worst_cost` of an example that visits all stages.
    """
    found = as_evaluation(outcomes)
    return {
        "examples": len(records),
        "accuracy": found.accuracy,
        "interval_95": list(found.interval_95),
        "cost": Quantiles.of(outcomes.cost).to_json(),
        "worst_cost": sum(added),
        "exits": exits_of(records, outcomes),
    }


def exits_of(records: Records, outcomes: Outcomes) -> list[dict[str, Any]]:
    """By stage: share of the examples that stopped there, accuracy of their answers (null where there are none).

    `alone`: the stage's accuracy on all examples, were it run on all of them.
    """
    shares, exits = outcomes.shares(len(records.stages)).tolist(), []
    for stage, name in enumerate(records.stages):
        here = outcomes.right[outcomes.stop == stage]
        exits.append(
            {
                "stage": name,
                "share": shares[stage],
                "accuracy": float(here.double().mean()) if len(here) else None,
                "alone": float(records.accuracies[stage]),
            }
        )
    return exits


def seconds_of(
    stages: Sequence[Stage], rule: StopRule, inputs: Tensor, stop: Tensor, compute: Compute
) -> dict[str, dict[str, float]]:
    """Seconds of a batch on this machine as it is now, by batch size: mean, p50, p95, p99, max over random batches.

    From curves of each stage as it is served, so that a moment's noise counts little; all answers of a batch are given
    together.

    Args:
        inputs: (n, ...) to time on.
        stop: (m,) where examples stop.
    """
    inputs = inputs.to(compute.device)
    curves = measure_latency(for_inference(stages, inputs, compute), rule.scorer, inputs, compute, BATCHES, ROUNDS)
    return {
        str(batch): Quantiles.of(batch_seconds(curves, stop, batch)).to_json() for batch in (BATCHES[0], BATCHES[-1])
    }


def as_evaluation(outcomes: Outcomes) -> Evaluation:
    """Right and wrong answers as an evaluation, to be compared in pairs; its loss and seconds are not measured: 0."""
    return Evaluation(outcomes.right.double(), 0.0, 0.0)
