"""The weights over (example, output, sign) of B-DISTIL's game, moved by Hedge, and what they certify.

Students f_1, ..., f_T answer a teacher g; their errors are E_t = f_t - g, (N, C), and F_T is their uniform average. Of
the n = 2NC experts, (i, j, +) loses E_t[i, j] in round t and (i, j, -) loses -E_t[i, j], so that with all weights alike
at first

    K+ = exp(-eta * sum of E) / Z,    K- = exp(+eta * sum of E) / Z.

The edge of a student is e_t = sum of (K+ - K-) * E_t: positive where it errs to the side that makes up for the earlier
ones. Where |E_t| <= G, whatever the edges are,

    max |F_T - g| <= ln(Z) / (eta T) <= -mean of e_t + eta G^2 / 2 + ln(n) / (eta T),

the second by Hoeffding's lemma (Freund and Schapire 1997). Reconstructed: arXiv 2302.10093 has no public code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SLACK = 1e-9  # of rounding, in float64


class CertificateBroken(RuntimeError):
    """An inequality that holds for any students does not: the game's bookkeeping is wrong."""


@dataclass(frozen=True)
class ErrorBound:
    """What holds after some rounds, in units of the students' outputs.

    Attributes:
        error: max |F_T - g| over all examples and outputs of the game.
        mean_error: the mean of |F_T - g|.
        potential: ln(Z) / (eta T), at least `error`.
        bound: Hedge's regret bound, at least `potential`.
    """

    rounds: int
    error: float
    mean_error: float
    potential: float
    bound: float

    def check(self) -> None:
        """Raises `CertificateBroken` unless error <= potential <= bound."""
        slack = SLACK * max(1.0, self.bound)
        if not self.error <= self.potential + slack or not self.potential <= self.bound + slack:
            raise CertificateBroken(
                f"error <= potential <= bound must hold after round {self.rounds}, but they are {self.error:.9g}, "
                f"{self.potential:.9g}, {self.bound:.9g}; please report it"
            )


class Hedge:
    """The game's state: the sum of the errors so far, of which the weights are a function.

    Attributes:
        limit: G, which no |error| may exceed.
        eta: how far one round moves the weights.
        total: (N, C) float64, the sum of the errors of the students so far.
        edges: of those students, in order.
    """

    def __init__(self, shape: tuple[int, int], limit: float, eta: float) -> None:
        self.limit, self.eta = limit, eta
        self.total = torch.zeros(shape, dtype=torch.float64)
        self.edges: list[float] = []

    def weights(self) -> tuple[Tensor, Tensor]:
        """K+ and K-, each (N, C) float64; all of them together sum to 1."""
        log_z = self._log_z()
        return (-self.eta * self.total - log_z).exp(), (self.eta * self.total - log_z).exp()

    def edge(self, error: Tensor) -> float:
        """Of a student whose errors are (N, C)."""
        plus, minus = self.weights()
        return float(((plus - minus) * error).sum())

    def add(self, error: Tensor) -> ErrorBound:
        """Play a student's errors (N, C); returns what holds after it, checked.

        Raises:
            CertificateBroken: an error is larger than `limit`, or the certificate does not hold.
        """
        error = error.double()
        largest = float(error.abs().max())
        if not largest <= self.limit:
            raise CertificateBroken(
                f"errors must be at most {self.limit:g}, but one is {largest:g}; students must answer in their range"
            )
        self.edges.append(self.edge(error))
        self.total += error
        found = self.certificate()
        found.check()
        return found

    def certificate(self) -> ErrorBound:
        """Of the students so far, of whom there must be one."""
        rounds, average = len(self.edges), self.total.abs() / len(self.edges)
        experts = 2 * self.total.numel()
        regret = self.eta * self.limit**2 / 2 + math.log(experts) / (self.eta * rounds)
        return ErrorBound(
            rounds,
            float(average.max()),
            float(average.mean()),
            self._log_z() / (self.eta * rounds),
            regret - sum(self.edges) / rounds,
        )

    def _log_z(self) -> float:
        moved = self.eta * self.total.flatten()
        return float(torch.logaddexp(moved, -moved).logsumexp(0))


def best_eta(experts: int, rounds: int, limit: float) -> float:
    """The step that makes the bound after `rounds` smallest: sqrt(2 ln(n) / T) / G."""
    return math.sqrt(2 * math.log(experts) / rounds) / limit
