"""Reliability of one stage: the accuracy of its answers as a step function of their confidence.

Three estimates from the same held-out pairs (confidence, right or wrong): equal-width bins (PCEE, arXiv 2412.19325), a
sliding window over the sorted confidences (PCEE-WS; both reconstructed from the paper's description), and isotonic
regression, whose accuracy never falls as confidence grows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from torch import Tensor

from amc.cascade.rules.thresholds import between

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


def bins(confidence: Tensor, right: Tensor, number: int = 10) -> Reliability:
    """The accuracy in each of `number` equal-width bins of [0, 1]; nothing stops in an empty one.

    Args:
        confidence: (n,) float64 in [0, 1].
        right: (n,) bool.
    """
    edges = torch.arange(1, number, dtype=torch.float64) / number
    place = torch.searchsorted(edges, confidence.contiguous(), right=True)
    count = torch.bincount(place, minlength=number).double()
    hits = torch.bincount(place, weights=right.double(), minlength=number)
    return Reliability(edges, torch.where(count > 0, hits / count.clamp(min=1), NEVER_STOPS))


def window(confidence: Tensor, right: Tensor, width: int = 150) -> Reliability:
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
    return Reliability(ranked[last_of_tie - 1], hits / width)


def isotonic(confidence: Tensor, right: Tensor) -> Reliability:
    """The non-decreasing step function nearest to the outcomes (`scipy.optimize.isotonic_regression`).

    Steps stand half-way between examples, so that a confidence seen again with rounding keeps its accuracy. Arguments
    as in `bins`.
    """
    values, tie, size = torch.unique(confidence, return_inverse=True, return_counts=True)
    hits = torch.bincount(tie, weights=right.double(), minlength=len(values))
    fitted = isotonic_regression((hits / size).numpy(), weights=size.double().numpy())
    block = torch.from_numpy(np.repeat(np.arange(len(fitted.blocks) - 1), np.diff(fitted.blocks)))
    rates = torch.bincount(block, weights=hits) / torch.bincount(block, weights=size.double())
    first = torch.cat([torch.zeros(1, dtype=torch.int64), (rates.diff() > 0).nonzero()[:, 0] + 1])  # equal blocks join
    starts = torch.from_numpy(fitted.blocks[:-1])[first]
    return Reliability(between(values[starts[1:] - 1], values[starts[1:]]), rates[first])


ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Reliability]] = {
    "bins": bins,
    "window": window,
    "isotonic": isotonic,
}
