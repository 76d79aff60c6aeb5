"""What cutting one group alone costs: known before any policy is measured, and summed over groups a good first guess.

Sensitivity of single layers is the oldest guide to where a network can be cut (Li et al., arXiv 1608.08710, section
3.2). It is a guide only: cuts add up to more than their sum. So it is no prediction here but a feature, of which the
measured values say how much it is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

# Added to a kept fraction before its logarithm is taken: one channel of 50, about the thinnest that still works.
THINNEST = 0.02


@dataclass(frozen=True)
class SensitivityCurves:
    """One falling curve a group, linear between its knots in the logarithm of the kept fraction.

    Attributes:
        kept: (d, k) kept fractions, rising, the last 1; a shorter curve repeats its last knot.
        loss: (d, k) what is lost there, on any one scale; at least 0, falling, the last 0.
    """

    kept: Tensor
    loss: Tensor

    @classmethod
    def of(cls, curves: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Self:
        """From measured (kept fractions, losses) of each group, without the whole group's.

        Losses are made to fall: a group that does better thinner is measured badly, or does not matter.

        Raises:
            ValueError: kept fractions do not rise within [0, 1), a loss is not finite, or there is no curve.
        """
        longest = 1 + max((len(kept) for kept, _ in curves), default=0)
        fractions, losses_of = torch.ones(len(curves), longest).double(), torch.zeros(len(curves), longest).double()
        for number, (kept, lost) in enumerate(curves):
            knots, losses = torch.as_tensor(kept).double(), torch.as_tensor(lost).double()
            if knots.shape != losses.shape or not losses.isfinite().all():
                raise ValueError(f"a curve must have one finite loss a knot, but curve {number} has {list(lost)}")
            if not ((knots >= 0) & (knots < 1)).all() or not (knots.diff() > 0).all():
                raise ValueError(f"kept fractions must rise within [0, 1), but curve {number} has {list(kept)}")
            fractions[number, : len(knots)] = knots
            losses_of[number, : len(knots)] = losses.clamp_min(0).flip(0).cummax(0).values.flip(0)
        if not len(curves):
            raise ValueError("a sensitivity needs the curve of at least one group, but got none")
        return cls(fractions, losses_of)

    @classmethod
    def unknown(cls, groups: int) -> Self:
        """That says nothing."""
        return cls(torch.ones(groups, 0).double(), torch.zeros(groups, 0).double())

    def __bool__(self) -> bool:
        return self.kept.shape[1] > 1

    def __call__(self, policies: Tensor) -> Tensor:
        """Kept fractions (b, d) float64 -> what each group's cut costs alone, (b, d); differentiable."""
        places = (self.kept + THINNEST).log()
        here = (policies.clamp(0, 1) + THINNEST).log().T.contiguous()  # (d, b)
        right = torch.searchsorted(places, here.detach()).clamp(1, places.shape[1] - 1)
        start, end = places.gather(1, right - 1), places.gather(1, right)
        before, after = self.loss.gather(1, right - 1), self.loss.gather(1, right)
        share = ((here - start) / (end - start).clamp_min(1e-12)).clamp(0, 1)
        return (before + share * (after - before)).T
