"""Reliability of one stage: the accuracy of its answers as a step function of their confidence.

Three estimates from the same held-out pairs (confidence, right or wrong): equal-width bins (PCEE, arXiv 2412.19325), a
sliding window over the sorted confidences (PCEE-WS; both reconstructed from the paper's description), and isotonic
regression, whose accuracy never falls as confidence grows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from scipy.special import betaincinv
from torch import Tensor

from amc.cascade.thresholds import between

NEVER_STOPS = -float("inf")  # the accuracy where nothing is known: below every finite threshold


@dataclass(frozen=True, eq=False)
class Reliability:
    """Accuracy `values[i]` where exactly i of the ascending `edges` are at most the confidence.

    Attributes:
        edges: (m,) float64, ascending.
        values: (m + 1,) float64; `NEVER_STOPS` where no example was seen.
    """

    edges: Tensor
    values: Tensor

    def at(self, confidence: Tensor) -> Tensor:
        """Confidences (b,) -> accuracies (b,), in O(b log m)."""
        return self.values[torch.searchsorted(self.edges, confidence.contiguous(), right=True)]

    def to_json(self) -> dict[str, Any]:
        """`NEVER_STOPS` becomes null: JSON has no infinity."""
        values = [None if value == NEVER_STOPS else value for value in self.values.tolist()]
        return {"edges": self.edges.tolist(), "values": values}


def reliability_from_json(record: dict[str, Any]) -> Reliability:
    """What `Reliability.to_json` wrote, number for number."""
    values = [NEVER_STOPS if value is None else value for value in record["values"]]
    return Reliability(torch.tensor(record["edges"], dtype=torch.float64), torch.tensor(values, dtype=torch.float64))


def lower_bound(right: Tensor, count: Tensor, alpha: float) -> Tensor:
    """Clopper and Pearson's one-sided bound: the true rate lies below it with a chance of at most `alpha`.

    Args:
        right: successes, of any shape; need not be whole numbers (ties are shared out).
        count: trials, at least 1, of the same shape.
    """
    bound = betaincinv(right.clamp(min=1e-9).numpy(), (count - right + 1).numpy(), alpha)
    return torch.where(right > 0, torch.as_tensor(bound, dtype=torch.float64), 0.0)


def bins(confidence: Tensor, right: Tensor, alpha: float | None = None, number: int = 10) -> Reliability:
    """The accuracy in each of `number` equal-width bins of [0, 1]; nothing stops in an empty one.

    Args:
        confidence: (n,) float64 in [0, 1].
        right: (n,) bool.
        alpha: give Clopper and Pearson's lower bound at this level instead of the mean.
    """
    edges = torch.arange(1, number, dtype=torch.float64) / number
    place = torch.searchsorted(edges, confidence.contiguous(), right=True)
    count = torch.bincount(place, minlength=number).double()
    hits = torch.bincount(place, weights=right.double(), minlength=number)
    return Reliability(edges, torch.where(count > 0, _rate(hits, count.clamp(min=1), alpha), NEVER_STOPS))


def window(confidence: Tensor, right: Tensor, alpha: float | None = None, width: int = 150) -> Reliability:
    """The accuracy of the `width` examples nearest in rank, half of them at or below the confidence, half above.

    At both ends the window is shifted to stay full; with fewer than `width` examples it holds them all. Examples of
    equal confidence share their successes, so their order does not matter. Arguments as in `bins`.
    """
    order = confidence.argsort()
    ranked = confidence[order]
    _, tie, size = torch.unique_consecutive(ranked, return_inverse=True, return_counts=True)
    shared = torch.bincount(tie, weights=right[order].double()) / size
    sums = torch.cat([torch.zeros(1, dtype=torch.float64), shared[tie].cumsum(0)])
    width = min(width, len(ranked))
    last_of_tie = size.cumsum(0)
    below = torch.cat([torch.zeros(1, dtype=torch.int64), last_of_tie])  # how many lie at or below, for each step
    start = (below - width // 2).clamp(0, len(ranked) - width)
    hits = (sums[start + width] - sums[start]).clamp(0, width)
    return Reliability(ranked[last_of_tie - 1], _rate(hits, torch.full_like(hits, width), alpha))


def isotonic(confidence: Tensor, right: Tensor, alpha: float | None = None) -> Reliability:
    """The non-decreasing step function nearest to the outcomes, by pooling adjacent violators; arguments as in `bins`.

    Blocks meet half-way between their examples, so that one of these seen again with rounding stays in its own. With
    `alpha`, each block has its lower bound, raised to that of any block below: it is the bound of a smaller accuracy.
    """
    values, tie, size = torch.unique(confidence, return_inverse=True, return_counts=True)
    hits = torch.bincount(tie, weights=right.double(), minlength=len(values))
    blocks: list[tuple[int, float, float]] = []  # place of the least confidence, hits, count
    for start, (won, count) in enumerate(zip(hits.tolist(), size.tolist(), strict=True)):
        while blocks and blocks[-1][1] * count >= won * blocks[-1][2]:
            start, won, count = blocks[-1][0], won + blocks[-1][1], count + blocks[-1][2]
            blocks.pop()
        blocks.append((start, won, count))
    starts, all_won, counts = (torch.tensor(column) for column in zip(*blocks, strict=True))
    edges = between(values[starts[1:] - 1], values[starts[1:]])
    return Reliability(edges, _rate(all_won.double(), counts.double(), alpha).cummax(0).values)


ESTIMATORS: dict[str, Callable[[Tensor, Tensor, float | None], Reliability]] = {
    "bins": bins,
    "window": window,
    "isotonic": isotonic,
}


def calibration_error(estimate: Tensor, right: Tensor, number: int = 15) -> float:
    """Expected calibration error (ECE): how far, on average over equal-width bins, accuracy lies from the estimate.

    Args:
        estimate: (n,) float64 in [0, 1], or `NEVER_STOPS` where there is none: left out.
        right: (n,) bool.
    """
    known = estimate != NEVER_STOPS
    bias = right[known].double() - estimate[known]
    place = (estimate[known] * number).long().clamp(0, number - 1)
    return float(torch.bincount(place, weights=bias, minlength=number).abs().sum() / max(1, len(bias)))


def _rate(hits: Tensor, count: Tensor, alpha: float | None) -> Tensor:
    return hits / count if alpha is None else lower_bound(hits, count, alpha)
