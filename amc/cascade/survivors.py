"""The examples that have not left a cascade yet, with all that the next stage and the stop rule need of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from amc.cascade.policy import Scorer
from amc.cascade.records import features_of
from amc.cascade.scores import features_read
from amc.cascade.stage import Stage, State
from amc.cascade.trees import gathered, joined
from amc.system.device import Compute


class Left(NamedTuple):
    """Examples that have their answer: `rows` (b,), `logits` (b, classes), `answered` and `stop` (b,) stages."""

    rows: Tensor
    logits: Tensor
    answered: Tensor
    stop: Tensor

    def take(self, index: Tensor) -> Left:
        return Left(*(part[index] for part in self))


@dataclass(frozen=True, eq=False)
class Survivors:
    """b examples that have visited the same k stages.

    Attributes:
        rows: (b,) int64, whose they are: the caller's own numbers.
        inputs: (b, ...).
        state: what the visited stages handed on.
        logits: k of (b, classes) float32, on the CPU.
        scores: k of (b,) float64, what the scorer says of them.
    """

    rows: Tensor
    inputs: Tensor
    state: State
    logits: tuple[Tensor, ...] = ()
    scores: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: Tensor) -> Survivors:
        """Some of them: `index` is (j,) int64."""
        return Survivors(
            self.rows[index],
            gathered(self.inputs, index),
            gathered(self.state, index),
            tuple(logits[index] for logits in self.logits),
            tuple(scores[index] for scores in self.scores),
        )

    def visit(self, stage: Stage, scorer: Scorer | None, compute: Compute) -> Survivors:
        """What they are after one more stage; where no `scorer` is given the answers get no score."""
        with compute.autocast():
            outputs, state = stage.run(self.inputs, self.state)
        logits = (*self.logits, outputs.float().cpu())
        if scorer is None:
            return Survivors(self.rows, self.inputs, state, logits, self.scores)
        features = features_of(torch.stack(logits), features_read(scorer))
        scores = scorer.score(len(self.logits), features)
        return Survivors(self.rows, self.inputs, state, logits, (*self.scores, scores))

    def answers(self, recall: bool) -> Left:
        """What each would be answered now: by the stage just visited, or by the visited one that scores best."""
        last = len(self.logits) - 1
        if not recall or last == 0:
            return Left(self.rows, self.logits[-1], torch.full((len(self),), last), torch.full((len(self),), last))
        best = last - torch.stack(self.scores).flip(0).argmax(0)  # the later of equals, as `walk` has it
        logits = torch.stack(self.logits)[best, torch.arange(len(self))]
        return Left(self.rows, logits, best, torch.full((len(self),), last))


def joined_survivors(groups: Sequence[Survivors]) -> Survivors:
    """Several groups that have visited the same stages as one, the first group's examples first."""
    if len(groups) == 1:
        return groups[0]
    return Survivors(
        torch.cat([group.rows for group in groups]),
        torch.cat([group.inputs for group in groups]),
        joined([group.state for group in groups]),
        joined([group.logits for group in groups]),
        joined([group.scores for group in groups]),
    )
