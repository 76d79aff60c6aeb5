"""From out-of-fold errors to intervals: conformal prediction with scores |y - mean| / std.

Sources: Papadopoulos, Gammerman and Vovk 2008, normalised scores; Vovk 2015, cross-conformal predictors, section 2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def quantile(scores: Tensor, coverage: float) -> float:
    """The ceil((n + 1) coverage)-th smallest of the scores (n,); infinite where n is too small to promise so much.

    Raises:
        ValueError: `coverage` is not strictly between 0 and 1.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must lie strictly between 0 and 1, got {coverage}")
    rank = math.ceil((len(scores) + 1) * coverage - 1e-9)
    return float(scores.kthvalue(rank).values) if rank <= len(scores) else math.inf


def interval(mean: Tensor, std: Tensor, scores: Tensor, coverage: float) -> tuple[Tensor, Tensor]:
    """Mean (b,) and std (b,) > 0 -> low (b,), high (b,), within [0, 1]; with too few scores the whole of [0, 1]."""
    half = quantile(scores, coverage) * std
    return (mean - half).clamp(0, 1), (mean + half).clamp(0, 1)


def cross_interval(mean: Tensor, std: Tensor, accuracy: Tensor, fold: Tensor, coverage: float) -> tuple[Tensor, Tensor]:
    """Out-of-fold predictions (n,) -> low (n,), high (n,): each fold's quantile comes from the other folds alone."""
    scores = (accuracy - mean).abs() / std
    low, high = torch.empty_like(mean), torch.empty_like(mean)
    for number in range(int(fold.max()) + 1):
        held = fold == number
        low[held], high[held] = interval(mean[held], std[held], scores[~held], coverage)
    return low, high
