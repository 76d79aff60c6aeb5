"""What every stage of a cascade says of every example of one split: made once, and every stop rule is planned on it."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from amc.cascade.stages.holdout import split_in_two

FEATURES = ("confidence", "margin", "certainty", "streak", "earlier")  # the columns of `features_of`


@dataclass(frozen=True, eq=False)
class Records:
    """Outputs of S stages on the n examples of one split.

    Attributes:
        stages: S names, in the order in which they are run.
        logits: (S, n, classes) float32, finite.
        labels: (n,) int64.
        groups: (n,) int64, which examples belong together and stand in one part; None where none do.
    """

    stages: tuple[str, ...]
    logits: Tensor
    labels: Tensor
    groups: Tensor | None = None

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
        groups = None if self.groups is None else self.groups[index]
        taken = Records(self.stages, self.logits[:, index], self.labels[index], groups)
        if "features" in self.__dict__:  # of each example by itself: no need to compute them anew
            taken.__dict__["features"] = self.features[:, index]
        return taken

    def choose(self, stages: Sequence[int]) -> Records:
        """Some of the stages, in the order given."""
        names = tuple(self.stages[i] for i in stages)
        return Records(names, self.logits[list(stages)], self.labels, self.groups)

    def parted(self, seed: int, share: float = 0.5) -> tuple[Records, Records]:
        """Two disjoint parts, the first with about `share` of the examples: the same ones for the same n and seed.

        Raises:
            DataError: as `amc.cascade.stages.holdout.parts_of`.
        """
        first, second = split_in_two(len(self), seed, share, self.groups)
        return self.take(first), self.take(second)


def features_of(visited: Tensor, wanted: Collection[str] = FEATURES) -> Tensor:
    """What a stop rule sees of b examples at the last of the k stages that they have visited.

    `confidence` is the largest probability, `margin` its lead over the second, `certainty` one minus the entropy as a
    share of its maximum, `streak` the share of visited stages, counted back from this one, that agree with it, and
    `earlier` the largest probability that the stage before gave to this answer (0 at the first stage).

    Args:
        visited: (k, b, classes) logits of the visited stages, in order.
        wanted: of `FEATURES`; at run time a scorer waits for no other.

    Returns:
        (b, F) float64, all in [0, 1]; 0 in the columns that are not wanted.
    """
    log_probabilities = log_softmax(visited[-1], 1, dtype=torch.float64)
    probabilities = log_probabilities.exp()
    classes, columns = probabilities.shape[1], dict.fromkeys(FEATURES, probabilities.new_zeros(len(probabilities)))
    if "confidence" in wanted:
        columns["confidence"] = probabilities.amax(1)
    if "margin" in wanted:
        top = probabilities.topk(min(2, classes), 1).values
        columns["margin"] = top[:, 0] - top[:, 1] if classes > 1 else top[:, 0]
    if "certainty" in wanted:
        entropy = -(probabilities * log_probabilities).sum(1)
        columns["certainty"] = (1 - entropy / math.log(max(2, classes))).clamp(0, 1)
    if "streak" in wanted:
        answers = visited.argmax(2)
        columns["streak"] = (answers.flip(0) == answers[-1]).long().cumprod(0).double().mean(0)
    if "earlier" in wanted and len(visited) > 1:
        before = log_softmax(visited[-2], 1, dtype=torch.float64)
        columns["earlier"] = before.gather(1, visited[-1].argmax(1, keepdim=True))[:, 0].exp()
    return torch.stack(list(columns.values()), 1)
