"""What every predictor learns from and is asked about, checked once at its door."""

from __future__ import annotations

import torch
from torch import Tensor

FEWEST = 4  # a fold needs at least two policies left to learn from and one to be judged on
ROUNDING = 1e-6  # how far a fraction may leave [0, 1] by float32 arithmetic


def checked_policies(policies: Tensor, groups: int | None = None) -> Tensor:
    """Kept fractions (b, d) -> the same, float64, gradients kept.

    Raises:
        ValueError: not two-dimensional, not d = `groups` wide, not finite, or outside [0, 1].
    """
    if policies.ndim != 2 or policies.shape[1] == 0 or groups not in (None, policies.shape[1]):
        wanted = "(b, d)" if groups is None else f"(b, {groups})"
        raise ValueError(f"policies must have the shape {wanted}, got {tuple(policies.shape)}")
    _check_unit_range(policies, "policies must be kept fractions")
    return policies.double()


def checked_examples(policies: Tensor, accuracy: Tensor) -> tuple[Tensor, Tensor]:
    """Kept fractions (n, d) and accuracies (n,) -> both as float64 without gradient.

    Raises:
        ValueError: as `checked_policies`; or another number of labels than policies, fewer than `FEWEST`, a label
            not finite or outside [0, 1].
    """
    inputs = checked_policies(policies.detach())
    if accuracy.ndim != 1 or len(accuracy) != len(inputs):
        raise ValueError(f"accuracy must hold one label a policy, ({len(inputs)},), got {tuple(accuracy.shape)}")
    if len(inputs) < FEWEST:
        raise ValueError(f"a predictor needs at least {FEWEST} measured policies, got {len(inputs)}; measure more")
    _check_unit_range(accuracy, "accuracy must be a fraction, not a percentage,")
    return inputs, accuracy.detach().double()


def fold_of_each(count: int, folds: int, seed: int) -> Tensor:
    """(count,) int64 fold numbers in 0 .. min(folds, count) - 1, sizes differing by at most one, drawn from `seed`."""
    if folds < 2:
        raise ValueError(f"folds must be at least 2, got {folds}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    fold = torch.empty(count, dtype=torch.int64)
    fold[order] = torch.arange(count) % min(folds, count)
    return fold


def _check_unit_range(values: Tensor, rule: str) -> None:
    if not values.numel():
        return
    low, high = (float(value) for value in values.detach().aminmax())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # written so that NaN fails too
        raise ValueError(f"{rule} finite and in [0, 1], got values from {low:g} to {high:g}")
