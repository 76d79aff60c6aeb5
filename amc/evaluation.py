"""Top-1 accuracy and calibrated cross-entropy of a network on a split."""

from __future__ import annotations

import math
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from amc.compute import Compute
from amc.data.splits import Split
from amc.errors import ModelError
from amc.surgery.recovery import evaluating

Z_95 = 1.959964
SHARPNESS = torch.logspace(-math.log10(3), math.log10(3), 21).tolist()  # inverse temperatures tried, 1 among them


@dataclass(frozen=True)
class Evaluation:
    """What was measured on n pictures, in their order.

    Attributes:
        correct: (n,) bool, right or wrong on each picture: two networks on one split can be compared in pairs.
        loss: calibrated mean cross-entropy, nats: at the temperature that makes it smallest (Guo et al. 2017,
            arXiv 1706.04599), so that it judges what the network knows and not how confident it happens to be.
        seconds: wall time of the forward passes.
    """

    correct: Tensor
    loss: float
    seconds: float

    @property
    def accuracy(self) -> float:
        return float(self.correct.double().mean())

    @property
    def interval_95(self) -> tuple[float, float]:
        """Wilson's interval for the accuracy."""
        n, p = len(self.correct), self.accuracy
        centre = (p + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
        half = Z_95 * math.sqrt(p * (1 - p) / n + Z_95**2 / (4 * n * n)) / (1 + Z_95**2 / n)
        return max(0.0, centre - half), min(1.0, centre + half)


@torch.inference_mode()
def evaluate(
    model: nn.Module, split: Split, compute: Compute, *, batch_size: int = 250, limit: int | None = None
) -> Evaluation:
    """Run `model` over `split` in its own order; training modes are left as they were found.

    Raises:
        ModelError: an output is NaN or infinite.
    """
    start = perf_counter()
    correct, totals = [], torch.zeros(len(SHARPNESS), dtype=torch.float64)
    with evaluating(model):
        for inputs, labels in split.batches(batch_size, limit=limit):
            with compute.autocast():
                logits = model(inputs.to(compute.device)).float().cpu()
            correct.append(logits.argmax(1) == labels)
            totals += torch.stack([cross_entropy(logits * factor, labels, reduction="sum") for factor in SHARPNESS])
    if not bool(totals.isfinite().all()):
        raise ModelError(f"outputs must be finite, but the loss on this split is {totals[0]}; check weights and inputs")
    right = torch.cat(correct)
    return Evaluation(right, float(totals.min()) / len(right), perf_counter() - start)


def paired_difference(ours: Evaluation, theirs: Evaluation) -> tuple[float, float, float]:
    """Accuracy of `ours` minus `theirs` on the same pictures, with its 95 % interval: (difference, low, high).

    Normal interval of the mean of the n differences in {-1, 0, 1}, as in McNemar's test.
    """
    difference = ours.correct.double() - theirs.correct.double()
    mean = float(difference.mean())
    half = Z_95 * float(difference.std()) / math.sqrt(len(difference)) if len(difference) > 1 else 0.0
    return mean, mean - half, mean + half
