"""The covariance of scores between policies: a sum of terms, each with an amplitude of its own.

Linear terms, additive over columns: for kept fractions and for bits, and for each of their first two features, `own`
coefficients of the columns, and one `common` coefficient. With few values and many columns the coefficients are told
apart badly, yet what they have in common is seen well. The `near` term is exponential in how far apart the third
features are, summed over columns: a few channels more or less in one group can matter by themselves, so that accuracy
is no smooth function of a policy, and among good policies it is this roughness that tells which is best. The `pairs`
term, the square of the additive one, spans all products of two features: it sees what adding up misses, that a thin
group hurts more beside other thin ones. The `dropped` term is linear in which groups keep nothing and in their number:
a dropped group may lose less or more than its thinnest width says. Where the groups' sensitivity is known, two terms
are linear in what all cuts cost together, and one is near in what each group's costs: a step of a group that matters
takes a policy farther than one of a group that does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amc_predictor.features import DROPPED, LOGS, LOSSES, SUMS, kinds_of

OTHERS = 3  # terms near, pairs and dropped
INFORMED_TERMS = SUMS + 1  # linear in each of the sensitivity's sums, and near in what makes them up


def terms_of(bits: Tensor, is_informed: bool = False) -> int:
    """How many amplitudes the kernel of these columns has, with or without sensitivity."""
    return 4 * len(kinds_of(bits)) + OTHERS + INFORMED_TERMS * is_informed


@dataclass(frozen=True)
class Kernel:
    """Covariance of the score, in units of the score's square.

    Attributes:
        bits: (d,) bool, which columns are bits.
        amplitudes: (terms,): each kind's own, own, common, common; near, pairs, dropped; with curves near, sum, sum.
    """

    bits: Tensor
    amplitudes: Tensor

    def __call__(self, left: Tensor, right: Tensor) -> Tensor:
        """Features (b, F), (n, F) -> (b, n), F = 4d or 5d + 2."""
        columns = len(self.bits)
        near, pairs, dropped, alike = self._others
        covariance: Tensor = self._additive(left) @ self._additive(right).T
        if near:
            covariance = covariance + near * _nearness(left, right, columns, LOGS)
        if alike:
            covariance = covariance + alike * _nearness(left, right, columns, LOSSES)
        if pairs:
            covariance = covariance + pairs * (_even(left, self.bits) @ _even(right, self.bits).T).square()
        if dropped:
            covariance = covariance + dropped * _dropped(left, columns) @ _dropped(right, columns).T
        return covariance

    def own(self, features: Tensor) -> Tensor:
        """k(x, x) of each row, (b,)."""
        near, pairs, dropped, alike = self._others
        variance: Tensor = self._additive(features).square().sum(1) + near + alike
        if pairs:
            variance = variance + pairs * _even(features, self.bits).square().sum(1).square()
        if dropped:
            variance = variance + dropped * _dropped(features, len(self.bits)).square().sum(1)
        return variance

    @property
    def _others(self) -> tuple[float, float, float, float]:
        """Amplitudes of terms that are not linear: near, pairs, dropped, and near in the losses, 0 without curves."""
        near, pairs, dropped, *sums = self.amplitudes[4 * len(kinds_of(self.bits)) :].tolist()
        return near, pairs, dropped, sums[0] if sums else 0.0

    @property
    def _is_informed(self) -> bool:
        return len(self.amplitudes) > terms_of(self.bits)

    def _additive(self, features: Tensor) -> Tensor:
        """(b, F) -> (b, 2d + 2 kinds, 2 more with curves): columns whose products are the linear terms."""
        columns, parts = len(self.bits), []
        for number, kind in enumerate(kinds_of(self.bits)):
            amplitudes = (self.amplitudes[4 * number : 4 * number + 4] / len(kind)).sqrt()
            for feature in range(2):
                own = features[:, feature * columns + kind]
                parts += [own * amplitudes[feature], own.sum(1, keepdim=True) * amplitudes[2 + feature]]
        if self._is_informed:
            parts.append(features[:, -SUMS:] * self.amplitudes[-SUMS:].sqrt())
        return torch.cat(parts, dim=1)


def terms(features: Tensor, bits: Tensor) -> Tensor:
    """Every term of the kernel at amplitude 1 between policies with features (n, F): (terms, n, n)."""
    columns, found = len(bits), []
    for kind in kinds_of(bits):
        own = [features[:, feature * columns + kind] for feature in range(2)]
        found += [part @ part.T / len(kind) for part in own]
        sums = [part.sum(1) for part in own]
        found += [torch.outer(total, total) / len(kind) for total in sums]
    even, gone = _even(features, bits), _dropped(features, columns)
    found += [_nearness(features, features, columns, LOGS), (even @ even.T).square(), gone @ gone.T]
    if features.shape[1] > 4 * columns:
        found += [_nearness(features, features, columns, LOSSES)]
        found += [torch.outer(feature, feature) for feature in features[:, -SUMS:].T]
    return torch.stack(found)


def _nearness(left: Tensor, right: Tensor, columns: int, feature: int) -> Tensor:
    """(b, F), (n, F) -> (b, n): 1 where policies agree in a feature, 1 / e where they are typically far apart."""
    near: Tensor = (-torch.cdist(_block(left, columns, feature), _block(right, columns, feature), p=1)).exp()
    return near


def _block(features: Tensor, columns: int, feature: int) -> Tensor:
    """(b, F) -> (b, d): one feature of every column."""
    return features[:, feature * columns : (feature + 1) * columns]


def _even(features: Tensor, bits: Tensor) -> Tensor:
    """(b, F) -> (b, 2d): the linear features, every kind and feature equally strong, together about 1."""
    columns, kinds = len(bits), kinds_of(bits)
    parts = [features[:, feature * columns + kind] / len(kind) ** 0.5 for kind in kinds for feature in range(2)]
    unit: float = (2 * len(kinds)) ** -0.5
    return torch.cat(parts, dim=1) * unit


def _dropped(features: Tensor, columns: int) -> Tensor:
    """(b, F) -> (b, d + 1): which groups are dropped and how many, so that products with itself are 1 on average."""
    which = _block(features, columns, DROPPED)
    unit: float = (2 / (1 + 1 / columns)) ** 0.5
    both: Tensor = torch.cat([which, which.sum(dim=1, keepdim=True) / columns**0.5], dim=1) * unit
    return both
