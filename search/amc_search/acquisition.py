"""What makes a policy worth measuring: the acquisition functions of the evolutionary sampler.

Each is a score of a batch of policies, higher is better, in units where 1 is a large difference. One named in `SHARES`
gets its share of every batch of proposals. `random` beside them has no score: it draws, it does not evolve.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import erfcx, ndtr

from amc_search.space import Cap, Policies, Predictor, Space, costs_of

Scores = NDArray[np.float64]

FOLDS_A_UNIT = 2.0  # e-folds of the expected improvement that count as a large difference


@dataclass(frozen=True)
class Knowledge:
    """What an acquisition function may look at.

    Attributes:
        predictor: fitted on all measured policies.
        known: (n, d) policies measured or being measured.
        best: the best measured accuracy.
        incumbent: the best predicted one among measured policies under the caps; 0 where there is none.
        spread: how far below it the measured ones lie, in the median: the unit of the predicted ones.
    """

    space: Space
    caps: tuple[Cap, ...]
    predictor: Predictor
    known: Policies
    best: float
    incumbent: float
    spread: float


def predict(predictor: Predictor, space: Space, policies: Policies) -> tuple[Scores, Scores]:
    """Keep-counts (b, d) -> mean (b,), standard deviation (b,), without gradient."""
    with torch.no_grad():
        mean, std = predictor.predict(space.fractions(policies))
    return mean.double().numpy(), std.double().numpy()


def improvement(policies: Policies, knowledge: Knowledge) -> Scores:
    """The logarithm of the improvement to be expected on the best known policy, so many e-folds a unit.

    What is doubtful may improve more than what is sure, but only where its mean is near. The best known policy is the
    one with the best predicted mean, as values may be noisy.

    Source: Jones, Schonlau and Welch 1998, expected improvement; Ament et al., arXiv 2310.20708, section 3 and eq. 9,
    its logarithm without underflow.
    """
    mean, std = predict(knowledge.predictor, knowledge.space, policies)
    score: Scores = (np.log(std) + _log_improvement((mean - knowledge.incumbent) / std)) / FOLDS_A_UNIT
    return score


def _log_improvement(steps: Scores) -> Scores:
    """log(phi(z) + z Phi(z)) of z standard deviations (b,) above the best."""
    far = np.minimum(steps, -1.0)  # where the two terms cancel
    inverse = np.log(erfcx(-far / np.sqrt(2)) * -far) + 0.5 * np.log(np.pi / 2)
    below = -0.5 * far**2 - 0.5 * np.log(2 * np.pi) + np.log(-np.expm1(np.minimum(inverse, -1e-12)))
    near = np.maximum(steps, -1.0)
    above = np.log(np.exp(-0.5 * near**2) / np.sqrt(2 * np.pi) + near * ndtr(near))
    score: Scores = np.where(steps < -1.0, below, above)
    return score


def posterior_mean(policies: Policies, knowledge: Knowledge) -> Scores:
    """Predicted accuracy, without a bonus for doubt: what the ascent looks for."""
    return predict(knowledge.predictor, knowledge.space, policies)[0] / knowledge.spread


def posterior_std(policies: Policies, knowledge: Knowledge) -> Scores:
    """The predictor's own standard deviation, among policies that may be good."""
    mean, std = predict(knowledge.predictor, knowledge.space, policies)
    return std / knowledge.spread - unpromising(mean, knowledge)


def distance(policies: Policies, knowledge: Knowledge) -> Scores:
    """k-centre: how far the nearest known policy is, root mean square over groups of log fractions.

    Among policies that may be good: the farthest of all are degenerate ones, which teach little.
    """
    scale = np.sqrt(len(knowledge.space))
    here, known = (torch.as_tensor(knowledge.space.log_fractions(p)) for p in (policies, knowledge.known))
    nearest = torch.cdist(here, known)
    mean, _ = predict(knowledge.predictor, knowledge.space, policies)
    score: Scores = 3 * (nearest.min(dim=-1).values / scale).numpy() - unpromising(mean, knowledge)
    return score


def unpromising(mean: Scores, knowledge: Knowledge) -> Scores:
    """How far predicted accuracies (b,) lie below what is usual, in spreads, (b,); 0 for usual ones and better."""
    below: Scores = np.maximum(0.0, (knowledge.best - mean) / knowledge.spread - 1.0)
    return below


def seernet(policies: Policies, knowledge: Knowledge) -> Scores:
    """Mean squared change of the prediction over the neighbours one level less pruned in one group.

    SeerNet's fitness, arXiv 2304.06393 and its `search.py`: whole groups give no neighbour, a policy without neighbours
    scores 0.
    """
    space = knowledge.space
    above = policies[:, None, :] + np.diag(space.step)
    exists = policies < space.high
    here, _ = predict(knowledge.predictor, space, policies)
    there, _ = predict(knowledge.predictor, space, np.minimum(above, space.high).reshape(-1, len(space)))
    change = np.where(exists, there.reshape(len(policies), -1) - here[:, None], 0.0)
    score: Scores = (change**2).sum(axis=-1) / np.maximum(exists.sum(axis=-1), 1) / knowledge.spread**2
    return score


def underuse(policies: Policies, knowledge: Knowledge) -> Scores:
    """The penalty for leaving the neighbourhood of the tightest cap: smooth, 0 from 0.85 of it up to 1."""
    used = costs_of(policies, knowledge.caps).max(axis=-1)
    short: Scores = 20 * np.maximum(0.85 - used, 0.0) ** 2
    return short


FUNCTIONS: dict[str, Callable[[Policies, Knowledge], Scores]] = {
    "improvement": improvement,
    "posterior_mean": posterior_mean,
    "posterior_std": posterior_std,
    "distance": distance,
    "seernet": seernet,
}

# Default shares of a batch. `random` is never without one, as a predictor may be wrong where nothing was measured;
# but near a cap few random policies are any good, so its share is small.
SHARES: dict[str, float] = {"improvement": 0.95, "random": 0.05}

# What `acquisition=` names. "exploring" gives some of the leading share to what the predictor doubts and to what
# is far from all that was measured; "seernet" is the paper's way: its score alone, with our random share. Both for
# comparison.
ACQUISITIONS: dict[str, Mapping[str, float]] = {
    "informative": SHARES,
    "exploring": {**SHARES, "improvement": 0.67, "posterior_std": 0.17, "distance": 0.11},
    "seernet": {"seernet": 1 - SHARES["random"], "random": SHARES["random"]},
}


def quotas(shares: Mapping[str, float], count: int, offset: float = 0.5) -> dict[str, int]:
    """Shares (any positive sum) -> policies for each function, summing to count.

    Systematic sampling: each gets its exact share rounded down or up, and over offsets drawn evenly from [0, 1)
    its exact share on average, so that a small share is not lost in small batches.

    Raises:
        ValueError: an acquisition function is unknown, a share is negative, or all are zero.
    """
    known = sorted([*FUNCTIONS, "random"])
    unknown = sorted(set(shares) - set(known))
    if unknown:
        raise ValueError(f"acquisition functions must be among {known}, but got {unknown}")
    total = sum(shares.values())
    if min(shares.values(), default=0.0) < 0 or not total > 0:
        raise ValueError(f"the shares of acquisition functions must be >= 0 and not all 0, but got {dict(shares)}")
    ends = np.floor(np.cumsum([0.0, *shares.values()]) / total * count + offset + 1e-9).astype(int)
    return dict(zip(shares, np.diff(ends).tolist(), strict=True))
