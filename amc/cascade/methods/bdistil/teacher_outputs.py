"""The examples that B-DISTIL's game is played on, with the teacher's outputs on them: made once for all rounds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amc.system.device import Compute
from amc.system.errors import ModelError, UsageError
from amc.system.eval_mode import evaluating
from amc.zoo.data.splits import Split

BATCH = 250
LARGEST = 2**31  # bytes of inputs held in memory

State = Tensor | tuple[Tensor, Tensor, Tensor]  # inputs; or with what the students so far leave: features, outputs


@dataclass(frozen=True)
class OutputRange:
    """Where students answer.

    Attributes:
        reach: B; a student's outputs are in (-B, B).
        scale: from the teacher's logits to targets.
    """

    reach: float
    scale: float


@dataclass
class TeacherOutputs:
    """N examples: the train split as it is, and augmented copies of it.

    Attributes:
        inputs: (N, ...).
        labels: (N,) int64.
        target: (N, C) the teacher's logits g, centred (the mean of each example's taken away: no probability changes)
            and times the range's scale, so that the largest is the share of the reach that was asked for.
        features: (N, ...) what the last student leaves for the next; None before the first.
    """

    inputs: Tensor
    labels: Tensor
    target: Tensor
    range: OutputRange
    features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def state(self, index: Tensor, device: torch.device) -> State:
        """What a step takes for the examples at `index`; earlier students' outputs are not kept in it."""
        inputs = self.inputs[index].to(device)
        if self.features is None:
            return inputs
        return inputs, self.features[index].to(device), inputs.new_zeros(len(index), 0, self.target.shape[1])


def run_teacher(
    teacher: nn.Module,
    split: Split,
    compute: Compute,
    *,
    reach: float = 1.0,
    share: float = 0.5,
    copies: int = 2,
    seed: int = 0,
    largest: int = LARGEST,
) -> TeacherOutputs:
    """Run the teacher over `split`, shuffled, once plain and `copies` - 1 times augmented (once where nothing changes).

    Args:
        reach: of the students' range.
        largest: bytes of inputs at which the pool is full.
        share: of the reach, the largest absolute target. At 1 students cannot overshoot where the teacher is surest.

    Raises:
        ModelError: the teacher does not classify, or its outputs are not finite.
        UsageError: the split is empty.
    """
    if len(split) == 0:
        raise UsageError("a teacher needs examples to teach on, but the train split is empty; check the data")
    if copies > 1 and not _augments(split):
        copies = 1
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    with torch.inference_mode(), evaluating(teacher), compute.autocast():
        for inputs, labels in _passes(split, copies, seed):
            outputs = teacher(inputs.to(compute.device))
            if not isinstance(outputs, Tensor) or outputs.ndim != 2 or not bool(outputs.isfinite().all()):
                raise ModelError("a teacher must answer with finite logits (n, classes); B-DISTIL classifies only")
            seen.append((inputs, labels, centred(outputs.float()).cpu()))
            if len(seen) * inputs.nbytes >= largest:
                break
    inputs, labels, logits = (torch.cat(parts).clone() for parts in zip(*seen, strict=True))
    scale = share * reach / max(float(logits.abs().max()), 1e-9)
    return TeacherOutputs(inputs, labels, logits * scale, OutputRange(reach, scale))


def centred(logits: Tensor) -> Tensor:
    """Logits (n, classes) with the mean of each example's taken away."""
    return logits - logits.mean(1, keepdim=True)


def _passes(split: Split, copies: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    for copy in range(copies):
        yield from split.batches(BATCH, seed=seed * 1009 + copy, augment=copy > 0)


def _augments(split: Split) -> bool:
    plain, moved = (next(iter(split.batches(BATCH, seed=1, augment=augment)))[0] for augment in (False, True))
    return plain.shape != moved.shape or not torch.equal(plain, moved)
