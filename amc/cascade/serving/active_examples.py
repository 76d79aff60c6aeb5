"""The examples that have not left a cascade yet, with all that the next stage and the stop rule need of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from amc.cascade.rules.scorers import features_read
from amc.cascade.rules.stop_rule import Scorer
from amc.cascade.serving.tensor_tree import concatenated, take_examples
from amc.cascade.stages.records import features_of
from amc.cascade.stages.stage import Stage, State
from amc.system.device import Compute


class Finished(NamedTuple):
    """Examples that have their answer: `rows` (b,), `logits` (b, classes), `answered` and `stop` (b,) stages."""

    rows: Tensor
    logits: Tensor
    answered: Tensor
    stop: Tensor

    def take(self, index: Tensor) -> Finished:
        return Finished(*(part[index] for part in self))


@dataclass(frozen=True, eq=False)
class ActiveExamples:
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

    def take(self, index: Tensor) -> ActiveExamples:
        """Some of them: `index` is (j,) int64."""
        return ActiveExamples(
            self.rows[index],
            take_examples(self.inputs, index),
            take_examples(self.state, index),
            tuple(logits[index] for logits in self.logits),
            tuple(scores[index] for scores in self.scores),
        )

    def visit(self, stage: Stage, scorer: Scorer | None, compute: Compute) -> ActiveExamples:
        """What they are after one more stage; where no `scorer` is given the answers get no score."""
        with compute.autocast():
            outputs, state = stage.run(self.inputs, self.state)
        logits = (*self.logits, outputs.float().cpu())
        if scorer is None:
            return ActiveExamples(self.rows, self.inputs, state, logits, self.scores)
        features = features_of(torch.stack(logits), features_read(scorer))
        scores = scorer.score(len(self.logits), features)
        return ActiveExamples(self.rows, self.inputs, state, logits, (*self.scores, scores))

    def answers(self, recall: bool) -> Finished:
        """What each would be answered now: by the stage just visited, or by the visited one that scores best."""
        last = len(self.logits) - 1
        if not recall or last == 0:
            return Finished(self.rows, self.logits[-1], torch.full((len(self),), last), torch.full((len(self),), last))
        best = last - torch.stack(self.scores).flip(0).argmax(0)  # the later of equals, as `walk` has it
        logits = torch.stack(self.logits)[best, torch.arange(len(self))]
        return Finished(self.rows, logits, best, torch.full((len(self),), last))


def joined_active(groups: Sequence[ActiveExamples]) -> ActiveExamples:
    """Several groups that have visited the same stages as one, the first group's examples first."""
    if len(groups) == 1:
        return groups[0]
    return ActiveExamples(
        torch.cat([group.rows for group in groups]),
        torch.cat([group.inputs for group in groups]),
        concatenated([group.state for group in groups]),
        concatenated([group.logits for group in groups]),
        concatenated([group.scores for group in groups]),
    )
