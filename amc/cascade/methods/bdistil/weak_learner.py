"""The search for a weak learner: a student with a positive edge, by gradients of a log barrier.

The edge alone is no loss that gradients could be trusted with: it has no optimum inside the students' range. With
u = (f - g) / 2B, |u| < 1, its surrogate

    S = sum of K+ log(1 + u) + K- log(1 - u)

is concave in f, keeps f away from the ends of its range, and bounds the edge e from below: as log(1 + u) <= u,
S <= e / 2B, so S > 0 is proof of an edge. At equal weights, in the first round, it is a squared loss to first order,
and no student has an edge.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from amc.cascade.methods.bdistil.teacher_outputs import TeacherOutputs
from amc.system.device import Compute
from amc.system.errors import ModelError
from amc.train.settings import Schedule
from amc.train.training import optimizer_of, set_learning_rate


def surrogate(plus: Tensor, minus: Tensor, error: Tensor, reach: float) -> Tensor:
    """S, a scalar, of errors f - g below 2 `reach`; all of one shape."""
    shift = error / (2 * reach)
    return (plus * torch.log1p(shift) + minus * torch.log1p(-shift)).sum()


def train_student(
    step: nn.Module,
    pool: TeacherOutputs,
    weights: tuple[Tensor, Tensor],
    schedule: Schedule,
    compute: Compute,
    seed: int,
    labels: float = 0.0,
    earlier: Tensor | None = None,
) -> None:
    """Train the student in `step` to make S large, and leave it in `eval` mode.

    Args:
        step: `amc.cascade.methods.bdistil.prefix_ensemble.Step`, on `compute.device`.
        weights: K+ and K-, each (N, C), which sum to 1 together.
        schedule: its epochs are passes over the pool.
        labels: share of the loss that is the cross-entropy of the true labels, instead of -S.
        earlier: (N, C) float32, the sum of the outputs of the students so far, to which this one's are added for that:
            it learns what they get wrong, not once more what they know.

    Raises:
        ModelError: the loss is not finite.
    """
    plus, minus = (weight.float() * len(pool) for weight in weights)
    # In units of what the answer that knows nothing loses at equal weights: gradients of a usual size.
    unit = 1 / max(float(torch.log1p(-((pool.target / (2 * pool.range.reach)) ** 2)).mean().abs()) / 2, 1e-9)
    steps = round(schedule.epochs * len(pool) / schedule.batch_size)
    optimizer = optimizer_of(step, schedule)
    step.train()
    for number, index in zip(range(steps), batches_without_end(len(pool), schedule.batch_size, seed), strict=False):
        set_learning_rate(optimizer, schedule, number, steps)
        with compute.autocast():
            outputs = step(pool.state(index, compute.device))[2][:, -1].float()
        error = outputs - pool.target[index].to(compute.device)
        more, less = plus[index].to(compute.device), minus[index].to(compute.device)
        loss = -(1 - labels) * unit * surrogate(more, less, error, pool.range.reach) / len(index)
        if labels:
            together = outputs if earlier is None else outputs + earlier[index].to(compute.device)
            loss = loss + labels * cross_entropy(together / pool.range.scale, pool.labels[index].to(compute.device))
        if not bool(loss.isfinite()):
            raise ModelError(
                f"the loss must stay finite, but is {loss.item()} at step {number}; lower the students' lr"
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    step.eval()
    step.zero_grad(set_to_none=True)
    step.requires_grad_(False)


def batches_without_end(number: int, size: int, seed: int) -> Iterator[Tensor]:
    """Batches of indices without end: each pass in an order of its own, its incomplete last batch left out."""
    draw = torch.Generator().manual_seed(seed)
    size = min(size, number)
    while True:
        order = torch.randperm(number, generator=draw)
        yield from torch.split(order[: number - number % size], size)
