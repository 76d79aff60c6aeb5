"""When to stop: a score of each answer and a threshold for each stage; and where that makes each example stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor

from amc.cascade.stages.records import Records

NEVER = float("inf")  # the threshold of a stage at which no example stops


class Scorer(Protocol):
    """How good an answer is thought to be."""

    @property
    def kind(self) -> str: ...

    def score(self, stage: int, features: Tensor) -> Tensor:
        """Features (b, F) at one stage -> (b,) float64, larger is better; each example by itself."""
        ...

    def to_json(self) -> dict[str, Any]:
        """All that it was fitted to, with its `kind`."""
        ...


@dataclass(frozen=True, eq=False)
class StopRule:
    """Stop at the first stage whose score is at least its threshold, at the last one in any case.

    Attributes:
        thresholds: one for each stage but the last; `NEVER` for a stage at which nothing stops.
        best: answer with the visited stage whose score is largest (the later of equals) instead of the last visited:
            "recall", T-Tamer, arXiv 2509.22992. The last stage's score counts too.
    """

    scorer: Scorer
    thresholds: tuple[float, ...]
    best: bool = False

    def stops(self, stage: int, scores: Tensor) -> Tensor:
        """(b,) bool for the scores (b,) of the examples that have reached `stage`."""
        return scores >= self.thresholds[stage]


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Where each of n examples stopped, what was answered, and what it cost.

    Attributes:
        stop: (n,) int64, the last stage visited.
        answered: (n,) int64, the stage whose answer was taken.
        predictions: (n,) int64.
        right: (n,) bool.
        cost: (n,) float64.
    """

    stop: Tensor
    answered: Tensor
    predictions: Tensor
    right: Tensor
    cost: Tensor

    @property
    def accuracy(self) -> float:
        return float(self.right.double().mean())

    @property
    def mean_cost(self) -> float:
        return float(self.cost.mean())

    def shares(self, stages: int) -> Tensor:
        """(S,) float64: how many of the examples stopped at each stage."""
        return torch.bincount(self.stop, minlength=stages).double() / len(self.stop)


def scores_of(records: Records, scorer: Scorer) -> Tensor:
    """(S, n) float64: what the scorer says of every answer of every stage."""
    return torch.stack([scorer.score(stage, records.features[stage]) for stage in range(len(records.stages))])


def simulate(records: Records, rule: StopRule, added: Sequence[float], scores: Tensor | None = None) -> Outcomes:
    """Plan `rule` on records: what running it would do, example by example.

    Args:
        added: S costs, what visiting each stage adds (`amc.cascade.stages.stage.path_costs`).
        scores: (S, n), where they are known already.
    """
    scores = scores_of(records, rule.scorer) if scores is None else scores
    thresholds = torch.tensor([*rule.thresholds, -NEVER], dtype=torch.float64)
    stop = (scores >= thresholds[:, None]).to(torch.int8).argmax(0)  # the first of the largest
    answered = _best_visited(scores, stop) if rule.best else stop
    predictions = records.predictions.gather(0, answered[None])[0]
    cost = torch.tensor(list(accumulate(added)), dtype=torch.float64)[stop]
    return Outcomes(stop, answered, predictions, predictions == records.labels, cost)


def _best_visited(scores: Tensor, stop: Tensor) -> Tensor:
    stages = torch.arange(len(scores))[:, None]
    seen = scores.masked_fill(stages > stop, -NEVER)
    return (len(scores) - 1 - seen.flip(0).argmax(0)).minimum(stop)  # where no visited stage has a score, the last one
