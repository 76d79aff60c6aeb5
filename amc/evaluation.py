"""The score of a network on a split: top-1 accuracy and calibrated cross-entropy, or what the user's metric says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor, nn

from amc.compute import Compute
from amc.data.splits import Split
from amc.errors import ModelError
from amc.surgery.recovery import evaluating
from amc.task import CLASSIFICATION, Task

Z_95 = 1.959964


@dataclass(frozen=True)
class Evaluation:
    """What was measured on n examples, in their order.

    Attributes:
        scores: (n,) float64 in [0, 1], right (1) or wrong (0) where the task is classification: two networks on one
            split can be compared in pairs.
        loss: calibrated mean cross-entropy, nats: at the temperature that makes it smallest (Guo et al. 2017,
            arXiv 1706.04599), so that it judges what the network knows and not how confident it happens to be. The mean
            of the user's losses for a metric of the user's, 0 where it gives none.
        seconds: wall time of the forward passes.
    """

    scores: Tensor
    loss: float
    seconds: float

    @property
    def accuracy(self) -> float:
        """The mean score."""
        return float(self.scores.mean())

    @property
    def interval_95(self) -> tuple[float, float]:
        """Wilson's interval where scores are right or wrong, else the normal interval of their mean."""
        n, p = len(self.scores), self.accuracy
        if bool(((self.scores != 0) & (self.scores != 1)).any()):
            half = Z_95 * float(self.scores.std()) / math.sqrt(n) if n > 1 else 1.0
            return max(0.0, p - half), min(1.0, p + half)
        centre = (p + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
        half = Z_95 * math.sqrt(p * (1 - p) / n + Z_95**2 / (4 * n * n)) / (1 + Z_95**2 / n)
        return max(0.0, centre - half), min(1.0, centre + half)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    split: Split,
    compute: Compute,
    *,
    batch_size: int = 250,
    limit: int | None = None,
    task: Task = CLASSIFICATION,
) -> Evaluation:
    """Run `model` over `split` in its own order; training modes are left as they were found.

    Raises:
        ModelError: an output is NaN or infinite, or no logits where the task is classification.
        UsageError: a function of the user's fails, or its result breaks the rules of `amc.task`.
    """
    start = perf_counter()
    scores, totals = [], torch.zeros(1, dtype=torch.float64)
    with evaluating(model):
        for batch in split.batches(batch_size, limit=limit):
            call = task.call(batch).to(compute.device)
            with compute.autocast():
                outputs = call.on(model)
            judged = task.judge(outputs, batch, len(call))
            scores.append(judged.scores.double())
            totals = totals + judged.losses
    if not bool(totals.isfinite().all()):
        raise ModelError(f"outputs must be finite, but the loss on this split is {totals[0]}; check weights and inputs")
    found = torch.cat(scores)
    return Evaluation(found, float(totals.min()) / len(found), perf_counter() - start)


def paired_difference(ours: Evaluation, theirs: Evaluation) -> tuple[float, float, float]:
    """Accuracy of `ours` minus `theirs` on the same pictures, with its 95 % interval: (difference, low, high).

    Normal interval of the mean of the n differences: of right and wrong, in {-1, 0, 1}, as in McNemar's test.
    """
    difference = ours.scores - theirs.scores
    mean = float(difference.mean())
    half = Z_95 * float(difference.std()) / math.sqrt(len(difference)) if len(difference) > 1 else 0.0
    return mean, mean - half, mean + half
