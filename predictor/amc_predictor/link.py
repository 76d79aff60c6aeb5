"""Between accuracy and the scale on which it is nearly additive over groups."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MARGIN = 0.002  # of accuracy, between the outermost label and the bound it saturates at
SLACK = 0.05  # of the labels' range, likewise, where the bound is learned


@dataclass(frozen=True)
class Link:
    """Accuracy y <-> score z: the logit of (y - floor) / (ceiling - floor), or y itself where `bounded` is false.

    Attributes:
        bounded: whether accuracy saturates at `floor` and `ceiling` (accuracy units).
    """

    bounded: bool
    floor: float = 0.0
    ceiling: float = 1.0

    def score(self, accuracy: Tensor) -> Tensor:
        """Accuracy (n,) strictly between floor and ceiling -> score (n,)."""
        if not self.bounded:
            return accuracy
        return ((accuracy - self.floor) / (self.ceiling - accuracy)).log()

    def accuracy(self, score: Tensor) -> Tensor:
        """Any score (...) -> accuracy (...)."""
        if not self.bounded:
            return score
        return self.floor + (self.ceiling - self.floor) * score.sigmoid()

    def slope(self, score: Tensor) -> Tensor:
        """Accuracy per unit of score (...), at a score (...)."""
        if not self.bounded:
            return torch.ones_like(score)
        share = score.sigmoid()
        return (self.ceiling - self.floor) * share * (1 - share)


def candidate_links(accuracy: Tensor) -> tuple[Link, ...]:
    """The links worth trying for labels (n,): none, bounds just outside the labels, bounds at 0 and 1."""
    low, high = float(accuracy.min()), float(accuracy.max())
    slack = SLACK * (high - low) + MARGIN
    return (
        Link(bounded=False),
        Link(True, low - slack, high + slack),
        Link(True, min(0.0, low - MARGIN), max(1.0, high + MARGIN)),
    )
