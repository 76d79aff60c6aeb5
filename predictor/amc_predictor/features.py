"""What a policy's columns are, and the features in which accuracy is nearly additive over them.

A column is a kept fraction x in [0, 1], or a number of bits b in [1, 32] of weights or activations. Each gives four
features, so that everything behind them treats both kinds alike:

    kept    x    exp(-4 x)    log(x + 0.02)    [x = 0]
    bits    b    4^-b         log b            0

The second falls steeply where a group is cut to the bone, or is the power of a quantiser's noise; in the third,
distances between policies are relative; the fourth tells a group that keeps nothing from one that is thin.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

STEEPNESS = 4.0  # of exp(-STEEPNESS x)
THINNEST = 0.02  # added to x before its logarithm is taken
FOUR = 1.3862943611198906  # log 4: the power of a quantiser's noise falls fourfold a bit


def kinds_of(bits: Tensor) -> list[Tensor]:
    """Mask (d,) -> the column numbers of the kept fractions and of the bits, kinds without columns left out."""
    return [columns for columns in ((~bits).nonzero().squeeze(1), bits.nonzero().squeeze(1)) if len(columns)]


@dataclass(frozen=True)
class Scaling:
    """Policies -> features: the first two standardised, of the last two the typical distance of two policies is 1.

    Attributes:
        bits: (d,) bool, which columns are bits.
        center, width: (4d,).
    """

    bits: Tensor
    center: Tensor
    width: Tensor

    @classmethod
    def of(cls, policies: Tensor, bits: Tensor) -> Scaling:
        """Scaled on policies (n, d)."""
        raw = _raw(policies, bits)
        spread = raw.std(dim=0, correction=0)
        width = torch.where(spread > 1e-6, spread, torch.ones_like(spread))
        columns, kinds = len(bits), kinds_of(bits)
        for kind in kinds:
            for part in (2 * columns + kind, 3 * columns + kind):
                apart = (2 * len(kinds) * spread[part].square().sum()).sqrt()
                width[part] = apart if apart > 1e-6 else 1.0
        return cls(bits, raw.mean(dim=0), width)

    def __call__(self, policies: Tensor) -> Tensor:
        """(b, d) -> (b, 4d)."""
        return (_raw(policies, self.bits) - self.center) / self.width


def _raw(policies: Tensor, bits: Tensor) -> Tensor:
    """(b, d) -> (b, 4d), as the table above has them."""
    steepness = torch.where(bits, FOUR, STEEPNESS).to(policies)
    thinnest = torch.where(bits, 0.0, THINNEST).to(policies)
    dropped = ((policies <= 0) & ~bits).to(policies)
    return torch.cat([policies, (-steepness * policies).exp(), (policies + thinnest).log(), dropped], dim=-1)
