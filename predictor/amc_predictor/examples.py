"""What every predictor learns from and predicts, checked once at its door."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FEWEST = 4  # a fold needs at least two policies left to learn from and one to be judged on
MOST_BITS = 32
ROUNDING = 1e-6  # how far a fraction may leave [0, 1] by float32 arithmetic


def bits_mask(columns: int, bits: Sequence[int]) -> Tensor:
    """Numbers of the columns that are bits -> (columns,) bool.

    Raises:
        ValueError: a number is not one of a column.
    """
    wrong = [number for number in bits if not 0 <= number < columns]
    if wrong:
        raise ValueError(f"bits must be columns 0 to {columns - 1} of the policies, got {wrong[0]}")
    mask = torch.zeros(columns, dtype=torch.bool)
    mask[list(bits)] = True
    return mask


def checked_policies(policies: Tensor, groups: int | None = None, bits: Sequence[int] = ()) -> Tensor:
    """Policies (b, d) -> the same, float64, gradients kept.

    Raises:
        ValueError: not two-dimensional, not d = `groups` wide, not finite, or kept fractions outside [0, 1], or bits
            outside [1, 32].
    """
    if policies.ndim != 2 or policies.shape[1] == 0 or groups not in (None, policies.shape[1]):
        wanted = "(b, d)" if groups is None else f"(b, {groups})"
        raise ValueError(f"policies must have the shape {wanted}, got {tuple(policies.shape)}")
    mask = bits_mask(policies.shape[1], bits)
    _check_range(policies[:, ~mask], "policies must be kept fractions")
    _check_range(policies[:, mask], "columns of bits must be", 1, MOST_BITS)
    return policies.double()


def checked_examples(policies: Tensor, accuracy: Tensor, bits: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """Policies (n, d) and accuracies (n,) -> both as float64 without gradient.

    Raises:
        ValueError: as `checked_policies`; or another number of values than policies, fewer than `FEWEST`, a value
            not finite or outside [0, 1].
    """
    inputs = checked_policies(policies.detach(), bits=bits)
    if accuracy.ndim != 1 or len(accuracy) != len(inputs):
        raise ValueError(f"accuracy must hold one value a policy, ({len(inputs)},), got {tuple(accuracy.shape)}")
    if len(inputs) < FEWEST:
        raise ValueError(f"a predictor needs at least {FEWEST} measured policies, got {len(inputs)}; measure more")
    _check_range(accuracy, "accuracy must be a fraction, not a percentage,")
    return inputs, accuracy.detach().double()


def fold_of_each(count: int, folds: int, seed: int) -> Tensor:
    """(count,) int64 fold numbers in 0 .. min(folds, count) - 1, sizes differing by at most one, drawn from `seed`."""
    if folds < 2:
        raise ValueError(f"folds must be at least 2, got {folds}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    fold = torch.empty(count, dtype=torch.int64)
    fold[order] = torch.arange(count) % min(folds, count)
    return fold


def _check_range(values: Tensor, rule: str, least: float = 0, most: float = 1) -> None:
    if not values.numel():
        return
    low, high = (float(value) for value in values.detach().aminmax())
    if not (low >= least - ROUNDING and high <= most + ROUNDING):  # written so that NaN fails too
        raise ValueError(f"{rule} finite and in [{least}, {most}], got values from {low:g} to {high:g}")
