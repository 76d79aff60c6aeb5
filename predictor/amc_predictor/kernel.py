"""The covariance of scores between policies: a sum of terms, each with an amplitude of its own.

Linear terms, additive over columns: for kept fractions and for bits, and for each of their first two features, `own`
coefficients of the columns, and one `common` coefficient. With few labels and many columns the coefficients are told
apart badly, yet what they have in common is seen well. Round terms, squared exponential in the third features at three
reaches, and the `pairs` term, the square of the additive one, which spans all products of two features: they see what
adding up misses, that a thin group hurts more beside other thin ones. The `dropped` term is linear in which groups keep
nothing and in their number: a dropped group may be harmed less or more than its thinnest width says.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amc_predictor.features import kinds_of

ROUND = 3  # terms, of reach 1/2, 1 and 2, in units of the typical distance between measured policies
LONGEST = 2.0


def terms_of(bits: Tensor) -> int:
    """How many amplitudes the kernel of these columns has."""
    return 4 * len(kinds_of(bits)) + ROUND + 2


@dataclass(frozen=True)
class Kernel:
    """Covariance of the score, in units of the score's square.

    Attributes:
        bits: (d,) bool, which columns are bits.
        amplitudes: (terms,): for each kind own, own, common, common; three reaches; pairs; dropped.
    """

    bits: Tensor
    amplitudes: Tensor

    def __call__(self, left: Tensor, right: Tensor) -> Tensor:
        """Features (b, 4d), (n, 4d) -> (b, n)."""
        *_, shortest, middle, longest, pairs, dropped = self.amplitudes.tolist()
        covariance: Tensor = self._additive(left) @ self._additive(right).T
        if shortest or middle or longest:
            far = _nearness(left, right)
            near = far.square().square()
            covariance = covariance + longest * far + middle * near
            covariance = covariance + shortest * near.square().square() if shortest else covariance
        if pairs:
            covariance = covariance + pairs * (_even(left, self.bits) @ _even(right, self.bits).T).square()
        if dropped:
            covariance = covariance + dropped * _dropped(left) @ _dropped(right).T
        return covariance

    def own(self, features: Tensor) -> Tensor:
        """k(x, x) of each row, (b,)."""
        *_, shortest, middle, longest, pairs, dropped = self.amplitudes.tolist()
        variance: Tensor = self._additive(features).square().sum(1) + shortest + middle + longest
        if pairs:
            variance = variance + pairs * _even(features, self.bits).square().sum(1).square()
        if dropped:
            variance = variance + dropped * _dropped(features).square().sum(1)
        return variance

    def _additive(self, features: Tensor) -> Tensor:
        """(b, 4d) -> (b, 2d + 2 kinds): columns whose products are the linear terms."""
        columns, parts = len(self.bits), []
        for number, kind in enumerate(kinds_of(self.bits)):
            amplitudes = (self.amplitudes[4 * number : 4 * number + 4] / len(kind)).sqrt()
            for feature in range(2):
                own = features[:, feature * columns + kind]
                parts += [own * amplitudes[feature], own.sum(1, keepdim=True) * amplitudes[2 + feature]]
        return torch.cat(parts, dim=1)


def terms(features: Tensor, bits: Tensor) -> Tensor:
    """Every term of the kernel at amplitude 1 between policies with features (n, 4d): (terms, n, n)."""
    columns, found = len(bits), []
    for kind in kinds_of(bits):
        own = [features[:, feature * columns + kind] for feature in range(2)]
        found += [part @ part.T / len(kind) for part in own]
        sums = [part.sum(1) for part in own]
        found += [torch.outer(total, total) / len(kind) for total in sums]
    far = _nearness(features, features)
    near = far.square().square()
    even, gone = _even(features, bits), _dropped(features)
    return torch.stack([*found, near.square().square(), near, far, (even @ even.T).square(), gone @ gone.T])


def _nearness(left: Tensor, right: Tensor) -> Tensor:
    """(b, 4d), (n, 4d) -> (b, n): the round term of the longest reach; its fourth power has half that reach."""
    columns = left.shape[1] // 4
    a, b = left[:, 2 * columns : 3 * columns], right[:, 2 * columns : 3 * columns]
    apart = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
    near: Tensor = (-apart.clamp_min(0) / (2 * LONGEST**2)).exp()
    return near


def _even(features: Tensor, bits: Tensor) -> Tensor:
    """(b, 4d) -> (b, 2d): the linear features, every kind and feature equally strong, together about 1."""
    columns, kinds = len(bits), kinds_of(bits)
    parts = [features[:, feature * columns + kind] / len(kind) ** 0.5 for kind in kinds for feature in range(2)]
    unit: float = (2 * len(kinds)) ** -0.5
    return torch.cat(parts, dim=1) * unit


def _dropped(features: Tensor) -> Tensor:
    """(b, 4d) -> (b, d + 1): which groups are dropped and how many, so that products with itself are 1 on average."""
    columns = features.shape[1] // 4
    which = features[:, 3 * columns :]
    unit: float = (2 / (1 + 1 / columns)) ** 0.5
    both: Tensor = torch.cat([which, which.sum(dim=1, keepdim=True) / columns**0.5], dim=1) * unit
    return both
