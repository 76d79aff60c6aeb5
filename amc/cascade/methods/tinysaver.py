"""TinySaver: a cheap network answers first, and what it is not sure of goes to the base network, from scratch.

After "Tiny Models are the Computational Saver for Large Models" (Wang et al., arXiv 2403.17726) and its released code.
Everything is read off records: no pair is ever run to be judged. s is the saver's cost as a share of the base's, r the
share of examples that the saver answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amc.cascade.rules.stop_rule import Scorer, StopRule
from amc.cascade.stages.records import FEATURES, Records
from amc.system.errors import ModelError

STEP = 0.001  # of the published scan
TOP = 5  # savers that the released code keeps
ROUNDING = 1e-12  # of a difference of two shares


@dataclass(frozen=True)
class Match:
    """A pair at one threshold.

    Attributes:
        threshold: the saver answers where its confidence is above this.
        share: of the examples, those that the saver answers: r.
        saver_accuracy: on those examples; 0 where there are none.
        base_accuracy: the base's on the same ones.
        accuracy: of the pair, on all examples.
        violated: the saver is worse than the base on the examples that it answers.
    """

    threshold: float
    share: float
    saver_accuracy: float
    base_accuracy: float
    accuracy: float
    violated: bool


@dataclass(frozen=True)
class Saver:
    """A network that was tried as the saver of a base.

    Attributes:
        relative_cost: s.
        match: the published one.
        delta: s - r at that match: what the pair costs more than the base alone, as a share of the base's cost.
    """

    name: str
    relative_cost: float
    match: Match
    delta: float


@dataclass(frozen=True, eq=False)
class SaverCurve:
    """A pair at T thresholds: each field is (T,) float64.

    Attributes:
        thresholds: as in `Match`.
        shares: r.
        saver_right: of all examples, the share that the saver answers, and rightly.
        base_right: of all examples, the share of those same ones on which the base is right.
        accuracies: of the pair.
    """

    thresholds: Tensor
    shares: Tensor
    saver_right: Tensor
    base_right: Tensor
    accuracies: Tensor

    def costs(self, added: Sequence[float]) -> Tensor:
        """(T,) mean cost of an example, where the saver costs added[0] and the base added[1] more."""
        return added[0] + (1 - self.shares) * added[1]

    def at(self, index: int) -> Match:
        """One of the thresholds."""
        share, saver, base = (float(each[index]) for each in (self.shares, self.saver_right, self.base_right))
        return Match(
            float(self.thresholds[index]),
            share,
            saver / share if share else 0.0,
            base / share if share else 0.0,
            float(self.accuracies[index]),
            saver < base,
        )


def delta_compute(s: float, r: float) -> float:
    """The published DeltaC, r (0 + s - 1) + (1 - r) s, which is s - r: one plus it is the pair's relative cost."""
    return s - r


def published_thresholds() -> Tensor:
    """The thresholds of the published scan, 1 down to 0.001: (1000,) float64."""
    return 1 - STEP * torch.arange(1000, dtype=torch.float64)


def saver_curve(pair: Records, thresholds: Tensor | None = None) -> SaverCurve:
    """A pair at each of `thresholds` (T,), the 1001 from 0 to 1 where none are given.

    Args:
        pair: of the saver and the base, in this order.
    """
    _check_pair(pair)
    if thresholds is None:
        thresholds = STEP * torch.arange(1001, dtype=torch.float64)
    confidence, order = _confidence(pair).sort(descending=True)
    left = len(pair) - torch.searchsorted(confidence.flip(0).contiguous(), thresholds, right=True)  # conf > t
    so_far = torch.nn.functional.pad(pair.right[:, order].double().cumsum(1), (1, 0))
    saver_right, base_right = so_far[0, left], so_far[1, left]
    number = len(pair)
    accuracies = (so_far[1, -1] - base_right + saver_right) / number
    return SaverCurve(thresholds, left.double() / number, saver_right / number, base_right / number, accuracies)


def published_match(pair: Records) -> Match:
    """The published rule: scan the threshold from 1 down, and stop at the first at which the saver is worse.

    Worse than the base, on the examples that it would answer. As in the released code, the violating threshold itself
    is returned, the last of the scan where none violates; and one unlucky confident example ends the scan.
    """
    scanned = saver_curve(pair, published_thresholds())
    violating = (scanned.saver_right < scanned.base_right).nonzero()
    return scanned.at(int(violating[0]) if len(violating) else -1)


def whole_grid_match(pair: Records, tolerance: float = 0.0) -> Match:
    """The lowest threshold at which the pair loses at most `tolerance` of accuracy against the base, of all there are.

    Give it held-out records. The largest r of so many thresholds is an optimistic one: a promise needs records of its
    own (`amc.cascade.certificates`).
    """
    observed, floor = torch.unique(_confidence(pair)), torch.zeros((), dtype=torch.float64)
    below = torch.nextafter(observed, floor)  # so that each one leaves
    thresholds = torch.cat([below, torch.ones(1, dtype=torch.float64)])
    found = saver_curve(pair, thresholds)
    lost = found.base_right - found.saver_right
    return found.at(int((lost <= tolerance + ROUNDING).nonzero()[0]))  # at threshold 1 nothing leaves, nothing is lost


def saver_rule(match: Match, confidence: Scorer) -> StopRule:
    """What `match` says, as a stop rule: the published rule is strict, a stop rule stops at its threshold too."""
    return StopRule(confidence, (math.nextafter(match.threshold, math.inf),))


def rank_savers(records: Records, costs: Sequence[float], top: int | None = TOP) -> list[Saver]:
    """The networks that cost less than the base, best saver of it first: by DeltaC at the published match.

    Args:
        records: of the networks tried, and of the base as the last stage.
        costs: of each of these stages, run whole.
        top: how many are returned; None: all.
    """
    base = len(records.stages) - 1
    savers = []
    for index, name in enumerate(records.stages[:-1]):
        s = costs[index] / costs[base]
        if s < 1:
            match = published_match(records.choose([index, base]))
            savers.append(Saver(name, s, match, delta_compute(s, match.share)))
    return sorted(savers, key=lambda saver: saver.delta)[:top]


def _confidence(pair: Records) -> Tensor:
    return pair.features[0][:, FEATURES.index("confidence")]


def _check_pair(pair: Records) -> None:
    if len(pair.stages) != 2 or not len(pair):
        raise ModelError(
            f"TinySaver takes records of a saver and its base, but got {len(pair.stages)} stages and {len(pair)} "
            "examples; choose two stages"
        )
