"""What every stage of a cascade says of every example of one split: made once, and every policy is planned on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

FEATURES = ("confidence", "margin", "certainty", "streak", "earlier")  # the columns of `features_of`


@dataclass(frozen=True, eq=False)
class Records:
    """Outputs of S stages on the n examples of one split.

    Attributes:
        stages: S names, in the order in which they are run.
        logits: (S, n, classes) float32, finite.
        labels: (n,) int64.
    """

    stages: tuple[str, ...]
    logits: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.logits.shape[:2] != (len(self.stages), len(self.labels)):
            raise ValueError(
                f"logits must be (stages, examples, classes) for {len(self.stages)} stages and {len(self.labels)} "
                f"labels, but are {tuple(self.logits.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def predictions(self) -> Tensor:
        """(S, n) int64."""
        return self.logits.argmax(2)

    @cached_property
    def right(self) -> Tensor:
        """(S, n) bool."""
        return self.predictions == self.labels

    @cached_property
    def accuracies(self) -> Tensor:
        """(S,) float64: of each stage, were it alone."""
        return self.right.double().mean(1)

    @cached_property
    def features(self) -> Tensor:
        """(S, n, F) float64, as `FEATURES` names them: what a stop rule sees at each stage."""
        return torch.stack([features_of(self.logits[: stage + 1]) for stage in range(len(self.stages))])

    def take(self, index: Tensor) -> Records:
        """Some of the examples: `index` is (k,) int64 or (n,) bool."""
        return Records(self.stages, self.logits[:, index], self.labels[index])

    def choose(self, stages: Sequence[int]) -> Records:
        """Some of the stages, in the order given."""
        return Records(tuple(self.stages[i] for i in stages), self.logits[list(stages)], self.labels)

    def parted(self, seed: int, share: float = 0.5) -> tuple[Records, Records]:
        """Two disjoint parts, the first with `share` of the examples: the same ones for the same n and seed."""
        first, second = parts_of(len(self), seed, share)
        return self.take(first), self.take(second)


def parts_of(number: int, seed: int, share: float = 0.5) -> tuple[Tensor, Tensor]:
    """The places of `number` examples in two disjoint parts, ascending, as `Records.parted` has them."""
    order = torch.randperm(number, generator=torch.Generator().manual_seed(seed))
    cut = round(share * number)
    return order[:cut].sort().values, order[cut:].sort().values


def features_of(visited: Tensor) -> Tensor:
    """What a stop rule sees of b examples at the last of the k stages that they have visited.

    `confidence` is the largest probability, `margin` its lead over the second, `certainty` one minus the entropy as a
    share of its maximum, `streak` the share of visited stages, counted back from this one, that agree with it, and
    `earlier` the largest probability that the stage before gave to this answer (0 at the first stage).

    Args:
        visited: (k, b, classes) logits of the visited stages, in order.

    Returns:
        (b, F) float64, all in [0, 1].
    """
    log_probabilities = log_softmax(visited[-1], 1, dtype=torch.float64)
    probabilities = log_probabilities.exp()
    classes = probabilities.shape[1]
    top = probabilities.topk(min(2, classes), 1).values
    confidence = top[:, 0]
    margin = confidence - top[:, 1] if classes > 1 else confidence
    entropy = -(probabilities * log_probabilities).sum(1)
    certainty = (1 - entropy / math.log(max(2, classes))).clamp(0, 1)
    if len(visited) == 1:  # by itself, as at run time these lines are all that a stage waits for
        return torch.stack([confidence, margin, certainty, torch.ones_like(margin), torch.zeros_like(margin)], 1)
    answers = visited.argmax(2)
    agreeing = (answers.flip(0) == answers[-1]).long().cumprod(0).double().mean(0)
    before = log_softmax(visited[-2], 1, dtype=torch.float64)
    earlier = before.gather(1, answers[-1][:, None])[:, 0].exp()
    return torch.stack([confidence, margin, certainty, agreeing, earlier], 1)
