"""Records of networks that do not exist: easy and hard examples, later stages better, all of them overconfident."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from amc.cascade.rules.operating_points import OperatingPoint, evaluate
from amc.cascade.rules.stop_rule import Scorer, StopRule, scores_of
from amc.cascade.rules.thresholds import ThresholdSearch
from amc.cascade.stages.records import Records


def graded_records(
    seed: int, stages: int = 3, number: int = 400, classes: int = 5, overconfidence: float = 2.0
) -> Records:
    """Examples have a hardness of their own; the signal of stage k grows with k, the noise is partly shared."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (number,), generator=draw)
    ease = 4 * torch.rand(number, 1, generator=draw)
    truth = torch.eye(classes)[labels]
    shared = torch.randn(number, classes, generator=draw)
    logits = []
    for stage in range(stages):
        own = torch.randn(number, classes, generator=draw)
        signal = ease * (0.5 + (stage + 1) / stages) * truth
        logits.append(overconfidence * (signal + 0.7 * shared + 0.7 * own))
    return Records(tuple(f"s{stage}" for stage in range(stages)), torch.stack(logits), labels)


def one_threshold(records: Records, added: Sequence[float], scorer: Scorer) -> list[OperatingPoint]:
    """Every stop rule with one threshold for all stages, cheapest first."""
    found = ThresholdSearch(records, added, scores_of(records, scorer)).common()
    return [evaluate(records, StopRule(scorer, tuple(row)), added) for row in found.thresholds.tolist()]
