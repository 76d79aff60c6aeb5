"""Which amplitudes, noise and link are most probable for the measured values, by marginal likelihood.

The constant is integrated out (a flat prior), so that only contrasts count. Amplitudes and noise, on scores
of variance 1, have a broad log-normal prior, which decides where few values say little. A link is judged by the
density it gives the values themselves: that of the scores times its slopes.

Sources: Rasmussen and Williams 2006, section 5.4.1, eq. 5.9 and 2.45; Snelson, Rasmussen and Ghahramani 2003, warped
Gaussian processes, eq. 6.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from amc_predictor.kernel import terms, terms_of
from amc_predictor.link import Link

SIGNAL, NOISE = 0.5, 0.1  # prior medians: variance of all terms together, and of the noise
TRUST = 0.3  # of that signal, what is expected of the sensitivity's terms where there are any
WITHOUT = 0.2  # likewise of which groups are dropped: a branch less does more, or less, than any width says
BREADTH = 2.0  # standard deviation of the prior of a variance's logarithm
BOUNDS = (-12.0, 6.0)  # of those logarithms
JITTER = 1e-6
LEAST = 1e-3  # a term that explains less of the values' variance is dropped, as it costs time in every ascent
LOOK, GLANCE, SETTLE = 25, 8, 40  # iterations: for the first link, for each further one, for the chosen one


@dataclass(frozen=True)
class Choice:
    """The most probable hyperparameters.

    Attributes:
        link: scale on which the process is fitted.
        amplitudes: (terms,) of the kernel, in units of the score's square.
        noise: variance of the noise, likewise.
        evidence: logarithm of the values' density, up to a constant.
        logarithms: (terms + 1,) of the variances, noise last, at scores of variance 1: where another search may start.
    """

    link: Link
    amplitudes: Tensor
    noise: float
    evidence: float
    logarithms: NDArray[np.float64]


class Evidence:
    """The marginal likelihood of measured policies, for any scores of theirs.

    Args:
        features: (n, 4d), or (n, 5d + 2) where the sensitivity is known.
        bits: (d,) bool, which columns are bits.
    """

    def __init__(self, features: Tensor, bits: Tensor) -> None:
        covariances = terms(features, bits)
        centred = covariances - covariances.mean(dim=1, keepdim=True)
        centred = centred - centred.mean(dim=2, keepdim=True)
        self.count = len(features)
        size = centred.diagonal(dim1=1, dim2=2).sum(dim=1) / max(self.count - 1, 1)
        self.seen = size > 1e-9  # nothing was measured that tells of the others
        self.size = torch.where(self.seen, size, torch.ones_like(size))
        self.terms = (centred / self.size[:, None, None]).flatten(1)
        informed = len(size) - terms_of(bits)
        usual = len(size) - informed - 1
        trust = TRUST if informed else 0.0
        shares = [(1 - WITHOUT - trust) / usual] * usual + [WITHOUT] + [trust / max(informed, 1)] * informed
        self.prior = np.log(np.append(SIGNAL * np.array(shares), NOISE))

    def best(self, accuracy: Tensor, links: Iterable[Link], start: NDArray[np.float64] | None = None) -> Choice:
        """The most probable link and variances for values (n,); with a `start`, after a glance from there."""
        found: Choice | None = None
        iterations = LOOK if start is None else GLANCE
        for link in links:
            choice = self._choice(accuracy, link, self.prior if start is None else start, iterations)
            start, iterations = (choice.logarithms if start is None else start), GLANCE
            found = choice if found is None or choice.evidence > found.evidence else found
        assert found is not None
        return found

    def settled(self, accuracy: Tensor, choice: Choice) -> Choice:
        """The same link, its variances searched further."""
        return self._choice(accuracy, choice.link, choice.logarithms, SETTLE)

    def _choice(self, accuracy: Tensor, link: Link, start: NDArray[np.float64], iterations: int) -> Choice:
        score = link.score(accuracy)
        spread = score.std(correction=0).clamp_min(1e-6)
        standard = (score - score.mean()) / spread
        found = minimize(
            self._loss, start, (standard,), jac=True, method="L-BFGS-B", bounds=[BOUNDS] * len(start),
            options={"maxiter": iterations},
        )  # fmt: skip
        variances = torch.from_numpy(np.exp(found.x))
        kept = torch.where(variances[:-1] < LEAST, 0.0, variances[:-1] / self.size)
        amplitudes = torch.where(self.seen, kept, 1.0) * spread.square()
        noise = float((variances[-1] + JITTER) * spread.square())
        slopes = link.slope(score).clamp_min(1e-12).log().sum()
        evidence = -float(found.fun) - float(slopes) - self.count * float(spread.log())
        return Choice(link, amplitudes, noise, evidence, found.x)

    def _loss(self, logarithms: NDArray[np.float64], standard: Tensor) -> tuple[float, NDArray[np.float64]]:
        """Minus the logarithm of likelihood times prior, and its gradient."""
        variances = torch.from_numpy(np.exp(logarithms))
        covariance = (variances[:-1] @ self.terms).reshape(self.count, self.count)
        covariance.diagonal().add_(variances[-1] + JITTER)
        factor = torch.linalg.cholesky(covariance)
        inverse = torch.cholesky_inverse(factor)
        weights = inverse @ standard
        # the constant's own direction holds nothing but noise: it is taken out of the determinant
        constant = 0.5 * float((variances[-1] + JITTER).log())
        loss = 0.5 * float(standard @ weights) + float(factor.diagonal().log().sum()) - constant
        slope = inverse - torch.outer(weights, weights)
        gradient = torch.cat([self.terms @ slope.flatten(), slope.trace()[None]])
        gradient[-1] -= 1 / (variances[-1] + JITTER)
        away = (logarithms - self.prior) / BREADTH
        return loss + 0.5 * float(away @ away), (0.5 * variances * gradient).numpy() + away / BREADTH
