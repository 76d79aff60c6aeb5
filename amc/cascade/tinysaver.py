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

from amc.cascade.policy import NEVER, Policy, Scorer, scores_of
from amc.cascade.records import FEATURES, Records
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
        match: by the rule that was asked for.
        delta: s - r at that match: what the pair costs more than the base alone, as a share of the base's cost.
        train_delta: the same on records of the train split, which both networks have seen; None without any.
    """

    name: str
    relative_cost: float
    match: Match
    delta: float
    train_delta: float | None = None


@dataclass(frozen=True, eq=False)
class Curve:
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


def curve(pair: Records, thresholds: Tensor | None = None) -> Curve:
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
    return Curve(thresholds, left.double() / number, saver_right / number, base_right / number, accuracies)


def published_match(pair: Records) -> Match:
    """The published rule: scan the threshold from 1 down, and stop at the first at which the saver is worse.

    Worse than the base, on the examples that it would answer. As in the released code, the violating threshold itself
    is returned, the last of the scan where none violates; and one unlucky confident example ends the scan.
    """
    scanned = curve(pair, published_thresholds())
    violating = (scanned.saver_right < scanned.base_right).nonzero()
    return scanned.at(int(violating[0]) if len(violating) else -1)


def whole_grid_match(pair: Records, tolerance: float = 0.0) -> Match:
    """The lowest threshold at which the pair loses at most `tolerance` of accuracy against the base, of all there are.

    Give it held-out records. The largest r of so many thresholds still flatters itself: a promise needs records of its
    own, on which the policies of `ladder` are certified.
    """
    observed, floor = torch.unique(_confidence(pair)), torch.zeros((), dtype=torch.float64)
    below = torch.nextafter(observed, floor)  # so that each one leaves
    thresholds = torch.cat([below, torch.ones(1, dtype=torch.float64)])
    found = curve(pair, thresholds)
    lost = found.base_right - found.saver_right
    return found.at(int((lost <= tolerance + ROUNDING).nonzero()[0]))  # at threshold 1 nothing leaves, nothing is lost


def policy_of(match: Match, confidence: Scorer) -> Policy:
    """What `match` says, as a policy: the published rule is strict, a policy stops at its threshold too."""
    return Policy(confidence, (math.nextafter(match.threshold, math.inf),))


def ladder(pair: Records, scorer: Scorer, steps: int = 100) -> list[Policy]:
    """Policies of a pair from most to least conservative: nothing leaves, 1/steps of `pair` leaves, ..., all leave.

    A certifier walks them on records that took no part in fitting; scores that are equal make fewer policies.
    """
    _check_pair(pair)
    scores = scores_of(pair, scorer)[0].sort(descending=True).values
    places = torch.arange(1, steps + 1) * len(pair) // steps - 1
    kept = torch.unique(scores[places.clamp(min=0)]).flip(0)
    return [Policy(scorer, (NEVER,)), *(Policy(scorer, (float(t),)) for t in kept)]


def rank_savers(
    records: Records,
    costs: Sequence[float],
    train: Records | None = None,
    top: int | None = TOP,
    tolerance: float | None = None,
) -> list[Saver]:
    """The networks that cost less than the base, best saver of it first: by DeltaC at a match.

    Args:
        records: of the networks tried, and of the base as the last stage.
        costs: of each of these stages, run whole.
        train: of the same stages, on the train split: tells what choosing there would have said.
        top: how many are returned; None: all.
        tolerance: accuracy that the pair may lose, for the match over the whole grid; None: the published match, which
            allows no loss at any threshold above it.
    """

    def matched(pair: Records) -> Match:
        return published_match(pair) if tolerance is None else whole_grid_match(pair, tolerance)

    base = len(records.stages) - 1
    savers = []
    for index in range(base):
        s = costs[index] / costs[base]
        if s >= 1:
            continue
        match = matched(records.choose([index, base]))
        on_train = matched(train.choose([index, base])) if train is not None else None
        savers.append(
            Saver(
                records.stages[index],
                s,
                match,
                delta_compute(s, match.share),
                None if on_train is None else delta_compute(s, on_train.share),
            )
        )
    return sorted(savers, key=lambda saver: saver.delta)[:top]


def _confidence(pair: Records) -> Tensor:
    return pair.features[0][:, FEATURES.index("confidence")]


def _check_pair(pair: Records) -> None:
    if len(pair.stages) != 2 or not len(pair):
        raise ModelError(
            f"TinySaver takes records of a saver and its base, but got {len(pair.stages)} stages and {len(pair)} "
            "examples; choose two stages"
        )
