"""The closed-form part: a Gaussian process with a flat constant."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from amc_predictor.evidence import Choice
from amc_predictor.kernel import Kernel


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
