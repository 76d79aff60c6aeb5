"""The covariance of scores between policies: a sum of terms, each with an amplitude of its own.

Linear terms, additive over columns: for kept fractions and for bits, and for each of their first two features, `own`
coefficients of the columns, and one `common` coefficient. With few labels and many columns the coefficients are told
apart badly, yet what they have in common is seen well. Round terms, squared exponential in the third features at three
reaches, and the `pairs` term, the square of the additive one, which spans all products of two features: they see what
adding up misses, that a thin group hurts more beside other thin ones. The `dropped` term is linear in which groups keep
nothing and in their number: a dropped group may be harmed less or more than its thinnest width says. Where the groups'
sensitivity is known, two `told` terms are linear in its features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amc_predictor.features import TOLD, kinds_of

ROUND = 3  # terms, of reach 1/2, 1 and 2, in units of the typical distance between measured policies
LONGEST = 2.0


def terms_of(bits: Tensor, is_told: bool = False) -> int:
    """How many amplitudes the kernel of these columns has, with or without sensitivity."""
    return 4 * len(kinds_of(bits)) + ROUND + 2 + TOLD * is_told


@dataclass(frozen=True)
class Kernel:
    """Covariance of the score, in units of the score's square.

    Attributes:
        bits: (d,) bool, which columns are bits.
        amplitudes: (terms,): for each kind own, own, common, common; three reaches; pairs; dropped; told, told.
    """

    bits: Tensor
    amplitudes: Tensor

    def __call__(self, left: Tensor, right: Tensor) -> Tensor:
        """Features (b, F), (n, F) -> (b, n), F = 4d or 4d + 2."""
        shortest, middle, longest, pairs, dropped = self._others
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
        shortest, middle, longest, pairs, dropped = self._others
        variance: Tensor = self._additive(features).square().sum(1) + shortest + middle + longest
        if pairs:
            variance = variance + pairs * _even(features, self.bits).square().sum(1).square()
        if dropped:
            variance = variance + dropped * _dropped(features).square().sum(1)
        return variance

    @property
    def _others(self) -> list[float]:
        """The amplitudes that are not of linear terms."""
        first = 4 * len(kinds_of(self.bits))
        others: list[float] = self.amplitudes[first : first + ROUND + 2].tolist()
        return others

    def _additive(self, features: Tensor) -> Tensor:
        """(b, F) -> (b, 2d + 2 kinds, 2 more where told): columns whose products are the linear terms."""
        columns, parts = len(self.bits), []
        for number, kind in enumerate(kinds_of(self.bits)):
            amplitudes = (self.amplitudes[4 * number : 4 * number + 4] / len(kind)).sqrt()
            for feature in range(2):
                own = features[:, feature * columns + kind]
                parts += [own * amplitudes[feature], own.sum(1, keepdim=True) * amplitudes[2 + feature]]
        if features.shape[1] > 4 * columns:
            parts.append(features[:, 4 * columns :] * self.amplitudes[-TOLD:].sqrt())
        return torch.cat(parts, dim=1)


def terms(features: Tensor, bits: Tensor) -> Tensor:
    """Every term of the kernel at amplitude 1 between policies with features (n, F): (terms, n, n)."""
    columns, found = len(bits), []
    for kind in kinds_of(bits):
        own = [features[:, feature * columns + kind] for feature in range(2)]
        found += [part @ part.T / len(kind) for part in own]
        sums = [part.sum(1) for part in own]
        found += [torch.outer(total, total) / len(kind) for total in sums]
    far = _nearness(features, features)
    near = far.square().square()
    even, gone = _even(features, bits), _dropped(features)
    told = [torch.outer(feature, feature) for feature in features[:, 4 * columns :].T]
    return torch.stack([*found, near.square().square(), near, far, (even @ even.T).square(), gone @ gone.T, *told])


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
    which = features[:, 3 * columns : 4 * columns]
    unit: float = (2 / (1 + 1 / columns)) ** 0.5
    both: Tensor = torch.cat([which, which.sum(dim=1, keepdim=True) / columns**0.5], dim=1) * unit
    return both
