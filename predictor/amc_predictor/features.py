"""What a policy's columns are, and the features in which accuracy is nearly additive over them.

A column is a kept fraction x in [0, 1], or a number of bits b in [1, 32] of weights or activations. Each gives four
features, so that everything behind them treats both kinds alike:

    kept    x    exp(-4 x)    log(x + 0.02)    [x = 0]
    bits    b    4^-b         log b            0

The second falls steeply where a group is cut to a few channels, or is the power of a quantiser's noise; in the third,
distances between policies are relative; the fourth tells a group that keeps nothing from one that is thin.

Where the groups' sensitivity is known each column has a fifth, h, what its cut costs alone, and a policy has two
features more, t and log(t + c): what its cuts, each alone, would cost together. The logarithm, since what is lost
together is no sum where much is cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amc_predictor.curves import THINNEST, SensitivityCurves

STEEPNESS = 4.0  # of exp(-STEEPNESS x)
FOUR = 1.3862943611198906  # log 4: the power of a quantiser's noise falls fourfold a bit
FLOOR = 0.1  # c, as a share of the t usual among the measured policies
LOGS, DROPPED, LOSSES = 2, 3, 4  # places of the third, fourth and fifth feature
SUMS = 2  # features of a whole policy: t, log(t + c)


def kinds_of(bits: Tensor) -> list[Tensor]:
    """Mask (d,) -> the column numbers of the kept fractions and of the bits, kinds without columns left out."""
    return [columns for columns in ((~bits).nonzero().squeeze(1), bits.nonzero().squeeze(1)) if len(columns)]


@dataclass(frozen=True)
class Scaling:
    """Policies -> features: linear ones standardised; of the others, two policies are typically 1 apart in each.

    In the third and the fifth that is the sum of the columns' distances, in the fourth the root of their squares.

    Attributes:
        bits: (d,) bool, which columns are bits.
        center, width: (4d,), or (5d + 2,) where the sensitivity is known.
        sensitivity: of the groups, or one that says nothing.
        floor: () c.
    """

    bits: Tensor
    center: Tensor
    width: Tensor
    sensitivity: SensitivityCurves
    floor: Tensor

    @classmethod
    def of(cls, policies: Tensor, bits: Tensor, sensitivity: SensitivityCurves | None = None) -> Scaling:
        """Scaled on policies (n, d)."""
        sensitivity = sensitivity or SensitivityCurves.unknown(len(bits))
        usual = sensitivity(policies).sum(dim=1).median() if sensitivity else torch.zeros(()).double()
        floor = (FLOOR * usual).clamp_min(1e-6)
        raw = _raw(policies, bits, sensitivity, floor)
        spread = raw.std(dim=0, correction=0)
        width = torch.where(spread > 1e-6, spread, torch.ones_like(spread))
        columns, kinds = len(bits), kinds_of(bits)
        for kind in kinds:
            # Bits of all columns are on one scale. With a scale for each, 12 policies of 159 columns were extrapolated
            # to 78 times the error of the mean: a column seen at 6 to 8 bits alone has a 4^-b that hardly varies, and
            # at 2 bits lies thousands of its own standard deviations off.
            if bits[kind[0]]:
                for feature in range(2):
                    own = feature * columns + kind
                    width[own] = _unit(spread[own].square().mean().sqrt())
            logs, dropped = LOGS * columns + kind, DROPPED * columns + kind
            width[logs] = _unit(len(kinds) * torch.pdist(raw[:, logs], p=1).mean())
            width[dropped] = _unit((2 * len(kinds) * spread[dropped].square().sum()).sqrt())
        if sensitivity:
            losses = slice(LOSSES * columns, (LOSSES + 1) * columns)
            width[losses] = _unit(torch.pdist(raw[:, losses], p=1).mean())
        return cls(bits, raw.mean(dim=0), width, sensitivity, floor)

    def __call__(self, policies: Tensor) -> Tensor:
        """(b, d) -> (b, 4d), or (b, 5d + 2) where the sensitivity is known."""
        return (_raw(policies, self.bits, self.sensitivity, self.floor) - self.center) / self.width


def _raw(policies: Tensor, bits: Tensor, sensitivity: SensitivityCurves, floor: Tensor) -> Tensor:
    """(b, d) -> (b, 4d), as the table above has them, and what the sensitivity adds."""
    steepness = torch.where(bits, FOUR, STEEPNESS).to(policies)
    thinnest = torch.where(bits, 0.0, THINNEST).to(policies)
    dropped = ((policies <= 0) & ~bits).to(policies)
    features = [policies, (-steepness * policies).exp(), (policies + thinnest).log(), dropped]
    if sensitivity:
        losses = sensitivity(policies)
        together = losses.sum(dim=1, keepdim=True)
        features += [losses, together, (together + floor).log()]
    return torch.cat(features, dim=-1)


def _unit(apart: Tensor) -> Tensor:
    """What counts as 1: a typical distance, where there is any."""
    return apart if apart > 1e-6 else torch.ones_like(apart)
