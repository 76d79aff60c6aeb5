"""The closed-form part: ridge regression that is additive over groups, its strength chosen by leave-one-out.

Accuracy is close to additive over layers in features of the kept fraction x (tried on SeerNet's measurements); of those
tried, x and exp(-4 x) lost least: the second falls steeply where a group is cut to the bone, and both stay bounded.
With few labels
and many groups the coefficients are told apart badly, yet what they have in common is seen well: the groups' mean
feature is a column of its own, `rho` times as strong a priori, which is ridge towards a common coefficient that is
itself learned.

Leave-one-out residuals in closed form: Hastie, Tibshirani and Friedman 2009, section 7.10, eq. 7.64.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from amc_predictor.link import Link

STEEPNESS = 4.0  # of exp(-STEEPNESS x)
STRENGTHS = torch.logspace(-3, 2, 21, dtype=torch.float64)
SHARED = (0.0, 1.0, 3.0, 10.0)
PREFERENCE = 0.95  # a bounded link must cut the squared error to this share to be believed


@dataclass(frozen=True)
class Scaling:
    """Kept fractions -> standardised features; `center` and `width` are (2d,)."""

    center: Tensor
    width: Tensor

    @classmethod
    def of(cls, policies: Tensor) -> Scaling:
        raw = _raw(policies)
        spread = raw.std(dim=0, correction=0)
        return cls(raw.mean(dim=0), torch.where(spread > 1e-6, spread, torch.ones_like(spread)))

    def __call__(self, policies: Tensor) -> Tensor:
        """(b, d) -> (b, 2d)."""
        return (_raw(policies) - self.center) / self.width


@dataclass(frozen=True)
class Choice:
    """What leave-one-out chose.

    Attributes:
        link: scale on which the model is additive.
        strength: ridge penalty lambda.
        rho: weight of the common part.
        noise: standard deviation of the leave-one-out residuals, in score.
    """

    link: Link
    strength: float
    rho: float
    noise: float


@dataclass(frozen=True)
class Additive:
    """score = intercept + features @ weights; leverage = 1 / n + |features @ root|^2.

    Attributes:
        intercept: () mean score.
        weights: (2d,).
        root: (2d, 2d + 2), a root of the coefficients' posterior covariance over the noise variance.
        base: () 1 / n.
    """

    intercept: Tensor
    weights: Tensor
    root: Tensor
    base: Tensor

    def score(self, features: Tensor) -> Tensor:
        """(b, 2d) -> (b,)."""
        return self.intercept + features @ self.weights

    def leverage(self, features: Tensor) -> Tensor:
        """(b, 2d) -> (b,): variance of the score over the noise variance; grows with distance from the data."""
        return self.base + (features @ self.root).square().sum(dim=-1)


def choose(features: Tensor, accuracy: Tensor, links: Iterable[Link]) -> Choice:
    """Link, strength and common part with the least leave-one-out squared error in accuracy.

    Args:
        features: (n, 2d) standardised.
        accuracy: (n,).
        links: those to choose from.
    """
    least, best = float("inf"), None
    for rho in SHARED:
        design = features @ _mixing(features.shape[1], rho)
        eigenvalues, vectors = torch.linalg.eigh(design @ design.T)
        shrink = eigenvalues.clamp_min(0) / (eigenvalues.clamp_min(0) + STRENGTHS[:, None])  # (strengths, n)
        kept = 1 - shrink @ vectors.T.square() - 1 / len(accuracy)
        for link in links:
            score = link.score(accuracy)
            centred = score - score.mean()
            residual = (centred - (shrink * (vectors.T @ centred)) @ vectors.T) / kept.clamp_min(1e-3)
            missed = (link.accuracy(score - residual) - accuracy).square().mean(dim=1)
            index = int(missed.argmin())
            error = float(missed[index]) / (PREFERENCE if link.bounded else 1.0)
            if best is None or error < least:
                noise = float(residual[index].square().mean().sqrt())
                least, best = error, Choice(link, float(STRENGTHS[index]), rho, noise)
    assert best is not None
    return best


def fit_additive(features: Tensor, score: Tensor, choice: Choice) -> Additive:
    """Features (n, 2d) and scores (n,) -> the ridge of the given choice."""
    mixing = _mixing(features.shape[1], choice.rho)
    center = features.mean(dim=0)
    design = (features - center) @ mixing
    inner = design.T @ design
    inner.diagonal().add_(choice.strength)
    factor = torch.linalg.cholesky(inner)
    weights = mixing @ torch.cholesky_solve(design.T @ (score - score.mean())[:, None], factor).squeeze(1)
    root = torch.linalg.solve_triangular(factor, mixing.T, upper=False).T
    base = torch.full_like(score[0], 1 / len(score))
    return Additive(score.mean() - center @ weights, weights, root, base)


def _raw(policies: Tensor) -> Tensor:
    """(b, d) -> (b, 2d): x, then exp(-4 x)."""
    return torch.cat([policies, (-STEEPNESS * policies).exp()], dim=-1)


def _mixing(width: int, rho: float) -> Tensor:
    """(2d, 2d + 2): own coefficients at 1 / sqrt(d), and one common coefficient a feature at rho / d."""
    groups = width // 2
    own = torch.eye(width, dtype=torch.float64) / groups**0.5
    common = torch.eye(2, dtype=torch.float64).repeat_interleave(groups, dim=0) * rho / groups
    return torch.cat([own, common], dim=1)
