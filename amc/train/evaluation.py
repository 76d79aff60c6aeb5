"""The score of a network on a split: top-1 accuracy and calibrated cross-entropy, or what the user's metric says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from amc.system.device import Compute
from amc.system.errors import ModelError
from amc.system.eval_mode import evaluating
from amc.zoo.data.loaders import as_split
from amc.zoo.task import CLASSIFICATION, Task

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
        stopped: whether it ended before the last example.
    """

    scores: Tensor
    loss: float
    seconds: float
    stopped: bool = False

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
    split: Any,
    compute: Compute | None = None,
    *,
    batch_size: int = 250,
    limit: int | None = None,
    seed: int | None = None,
    stop: Callable[[Tensor], bool] | None = None,
    task: Task = CLASSIFICATION,
) -> Evaluation:
    """Run `model` over `split`, in its own order or shuffled by `seed`; training modes are left as they were found.

    Args:
        split: a `Split`, or a DataLoader, a data set or a list of batches.
        compute: device and number format; None: where the network is.
        stop: asked after every batch but the last with the scores so far, (t,) float64, it ends it early.

    Raises:
        ModelError: an output is NaN or infinite, or no logits where the task is classification.
        UsageError: a function of the user's fails, or its result breaks the rules of `amc.zoo.task`.
    """
    split = as_split(split, "data")
    compute = compute or Compute.of(next(model.parameters()).device)
    start = perf_counter()
    scores, totals = torch.zeros(0, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    total, stopped = min(len(split), limit or len(split)), False
    with evaluating(model), compute.autocast():  # entered once: weights are cast once
        for batch in split.batches(batch_size, seed=seed, limit=limit):
            call = task.call(batch).to(compute.device)
            outputs = call.on(model)
            with compute.exact():
                judged = task.judge(outputs, batch, len(call))
            scores = torch.cat([scores, judged.scores.double()])
            totals = totals + judged.losses
            if stop is not None and len(scores) < total and stop(scores):
                stopped = True
                break
    if not bool(totals.isfinite().all()):
        raise ModelError(f"outputs must be finite, but the loss on this split is {totals[0]}; check weights and inputs")
    return Evaluation(scores, float(totals.min()) / len(scores), perf_counter() - start, stopped)


def paired_difference(ours: Evaluation, theirs: Evaluation) -> tuple[float, float, float]:
    """Accuracy of `ours` minus `theirs` on the same images, with its 95 % interval: (difference, low, high).

    Normal interval of the mean of the n differences: of right and wrong, in {-1, 0, 1}, as in McNemar's test.
    """
    difference = ours.scores - theirs.scores
    mean = float(difference.mean())
    half = Z_95 * float(difference.std()) / math.sqrt(len(difference)) if len(difference) > 1 else 0.0
    return mean, mean - half, mean + half
