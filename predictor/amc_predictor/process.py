"""The closed-form part: a Gaussian process with a flat constant."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from amc_predictor.evidence import Choice
from amc_predictor.kernel import Kernel, terms_of

RIDGE = 1e-6  # of the anchors' variance and noise, on its diagonal: the centred covariance has no inverse


@dataclass(frozen=True)
class Process:
    """A fitted process. All tensors, so that it can be kept.

    Attributes:
        bits: (d,) bool, which columns are bits.
        amplitudes: (terms,) of the kernel.
        anchors: (n, F) features of the measured policies.
        weights: (n,) score = intercept + k @ weights, with the kernel centred on the anchors.
        root: (n, n): variance = noise / n + k(x, x) - |root k|^2.
        means: (n,) mean covariance of each anchor with all of them.
        intercept: () mean score.
        noise: () variance of the noise, in score.
    """

    bits: Tensor
    amplitudes: Tensor
    anchors: Tensor
    weights: Tensor
    root: Tensor
    means: Tensor
    intercept: Tensor
    noise: Tensor

    @classmethod
    def of(cls, features: Tensor, score: Tensor, bits: Tensor, choice: Choice) -> Process:
        """Conditioned on scores (n,) of policies with features (n, F)."""
        raw = Kernel(bits, choice.amplitudes)(features, features)
        identity = torch.eye(len(score), dtype=score.dtype)
        factor = torch.linalg.cholesky(_double_centred(raw) + choice.noise * identity)
        weights = torch.cholesky_solve((score - score.mean())[:, None], factor).squeeze(1)
        root = torch.linalg.solve_triangular(factor, identity, upper=False)
        noise = torch.tensor(choice.noise, dtype=torch.float64)
        return cls(bits, choice.amplitudes, features, weights, root, raw.mean(dim=1), score.mean(), noise)

    @classmethod
    def flat(cls, bits: Tensor, is_informed: bool, features: int, intercept: Tensor, noise: Tensor) -> Process:
        """That knows nothing but its intercept () and the variance of the noise ()."""
        amplitudes = torch.zeros(terms_of(bits, is_informed)).double()
        none, anchor = torch.zeros(1).double(), torch.zeros(1, features).double()
        return cls(bits, amplitudes, anchor, none, torch.zeros(1, 1).double(), none, intercept, noise)

    def score(self, features: Tensor) -> Tensor:
        """(b, F) -> (b,)."""
        return self.intercept + self._centred(features)[0] @ self.weights

    def score_and_variance(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(b, F) -> score (b,) and its variance (b,), noise left out: it grows with distance from the data."""
        covariance, own = self._centred(features)
        unknown = (own - (covariance @ self.root.T).square().sum(dim=-1)).clamp_min(0.0)
        return self.intercept + covariance @ self.weights, self.noise / len(self.anchors) + unknown

    def _centred(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Covariance with the anchors (b, n) and with itself (b,), of the process less its mean over the anchors."""
        kernel = Kernel(self.bits, self.amplitudes)
        raw = kernel(features, self.anchors)
        mean = raw.mean(dim=1, keepdim=True)
        own = kernel.own(features) - 2 * mean.squeeze(1) + self.means.mean()
        return raw - mean - self.means + self.means.mean(), own


PROCESS_TENSORS = tuple(field.name for field in fields(Process))


def _double_centred(covariance: Tensor) -> Tensor:
    """The covariance (n, n) of the process less its mean over the n policies."""
    columns = covariance.mean(dim=0)
    return covariance - columns - columns[:, None] + columns.mean()


def projections(
    features: Tensor, score: Tensor, seen: Tensor, anchors: Tensor, bits: Tensor, choice: Choice
) -> tuple[list[Process], Tensor]:
    """Processes that learn from many policies through a few of them, at the cost of the few.

    The function is taken to be what its values at the anchors say it is: the projected process, or deterministic
    training conditional (Rasmussen and Williams 2006, section 8.3.4; Quinonero-Candela and Rasmussen 2005, section 5).

    Args:
        features: (n, F) of the measured policies.
        score: (n,).
        seen: (k, n) bool, which policies each process learns from.
        anchors: (m,) numbers of the policies that the process is projected on.
        bits: (d,) bool, which columns are bits.
        choice: amplitudes and noise of all of them.

    Returns:
        k processes, and the scores that each expects of all policies, (k, n).
    """
    kernel, chosen = Kernel(bits, choice.amplitudes), features[anchors]
    raw = kernel(chosen, chosen)
    within = _double_centred(raw)
    within.diagonal().add_(RIDGE * (within.diagonal().mean() + choice.noise))
    means = raw.mean(dim=1)
    between = kernel(features, chosen)
    between = between - between.mean(dim=1, keepdim=True) - means + means.mean()
    inverse = torch.linalg.solve_triangular(
        torch.linalg.cholesky(within), torch.eye(len(anchors), dtype=score.dtype), upper=False
    )
    basis = between @ inverse.T / choice.noise**0.5  # (n, m)
    noise = torch.tensor(choice.noise, dtype=score.dtype)
    found, expected = [], []
    for rows in seen:
        part = basis[rows]
        sizes, directions = torch.linalg.eigh(part.T @ part)
        sizes = sizes.clamp_min(0.0)
        targets = torch.stack([score[rows], torch.ones_like(score[rows])], dim=1)
        moments = part.T @ targets  # (m, 2)
        solved = directions @ ((directions.T @ moments) / (1 + sizes)[:, None])
        # the flat constant's most probable value: that of generalised least squares
        both = targets[:, 1] @ targets - moments[:, 1] @ solved
        intercept = both[0] / both[1]
        weights = inverse.T @ (solved[:, 0] - intercept * solved[:, 1]) / choice.noise**0.5
        root = (sizes / (1 + sizes)).sqrt()[:, None] * (directions.T @ inverse)
        found.append(Process(bits, choice.amplitudes, chosen, weights, root, means, intercept, noise))
        expected.append(intercept + between @ weights)
    return found, torch.stack(expected)
