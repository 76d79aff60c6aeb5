"""Between accuracy and the scale on which it is nearly additive over groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

MARGIN = 0.002  # of accuracy, between the outermost value and the bound it saturates at
SLACK = 0.05  # of the values' range, likewise, where the bound is learned
CEILINGS = (0.005, 0.02, 0.05)  # of accuracy, between the best value and the ceiling of a drop link

Kind = Literal["identity", "logit", "drop"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Link:
    """Accuracy y <-> score z.

    Attributes:
        kind: "identity": z = y. "logit": z = logit of (y - floor) / (ceiling - floor). "drop": z = -log(ceiling - y),
            on which cuts multiply the drop they cause; good policies lie far apart and degenerate ones close.
        floor, ceiling: accuracies that are never reached.
    """

    kind: Kind = "identity"
    floor: float = 0.0
    ceiling: float = 1.0

    def score(self, accuracy: Tensor) -> Tensor:
        """Accuracy (n,) strictly between floor and ceiling -> score (n,)."""
        if self.kind == "identity":
            return accuracy
        if self.kind == "drop":
            return -(self.ceiling - accuracy).log()
        return ((accuracy - self.floor) / (self.ceiling - accuracy)).log()

    def accuracy(self, score: Tensor) -> Tensor:
        """Any score (...) -> accuracy (...); of a drop link it may lie below 0, so that a gradient is left there."""
        if self.kind == "identity":
            return score
        if self.kind == "drop":
            return self.ceiling - (-score).exp()
        return self.floor + (self.ceiling - self.floor) * score.sigmoid()

    def slope(self, score: Tensor) -> Tensor:
        """Accuracy per unit of score (...), at a score (...)."""
        if self.kind == "identity":
            return torch.ones_like(score)
        if self.kind == "drop":
            return (-score).exp()
        share = score.sigmoid()
        return (self.ceiling - self.floor) * share * (1 - share)


def candidate_links(accuracy: Tensor) -> tuple[Link, ...]:
    """The links worth trying for values (n,): none; logits with bounds just outside the values, or 0 and 1; drops."""
    low, high = float(accuracy.min()), float(accuracy.max())
    slack = SLACK * (high - low) + MARGIN
    return (
        Link(),
        Link("logit", low - slack, high + slack),
        Link("logit", min(0.0, low - MARGIN), max(1.0, high + MARGIN)),
        *(Link("drop", 0.0, high + above) for above in CEILINGS),
    )
