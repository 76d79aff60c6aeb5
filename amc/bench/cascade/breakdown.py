"""Where the seconds of a cascade go: its stages timed by themselves, without scores, gathering and order.

The share of the speed-up in multiply-adds that a clock sees is a product of three: what is kept
  stages   were each stage run in whole batches, by the share of the inputs that reach it: its own seconds of a MAC
  batches  as the batches that reach later stages are smaller, and a small one takes more seconds an input
  runtime  by all else: scores, gathering, order, Python
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from amc.bench.machine import seconds
from amc.cascade import ActiveExamples, Cascade

Work = Callable[[], object]


@dataclass(frozen=True, eq=False)
class Bare:
    """What the stages do for one batch.

    Attributes:
        whole: of each stage, on all inputs.
        left: of each stage that is reached, on those that reach it.
        base: the static network, on all inputs.
    """

    whole: tuple[Work, ...]
    left: tuple[Work, ...]
    base: Work

    @classmethod
    def of(cls, cascade: Cascade, alone: Cascade, inputs: Tensor, stop: Tensor) -> Bare:
        """For inputs (b, ...) that stop at `stop` (b,)."""
        group = start = ActiveExamples(torch.arange(len(inputs)), inputs, {})
        whole, left = list[Work](), list[Work]()
        for number, stage in enumerate(cascade.stages):
            reached = (stop >= number).nonzero()[:, 0]
            if len(reached):
                left.append(partial(group.take(reached).visit, stage, None, cascade.compute))
            whole.append(partial(group.visit, stage, None, cascade.compute))
            group = group.visit(stage, None, cascade.compute)
        return cls(tuple(whole), tuple(left), partial(start.visit, alone.stages[0], None, alone.compute))

    def timed(self) -> list[float]:
        """Seconds now: the base, the stages on those that reach them together, each of the S stages on all."""
        return [warm_seconds(self.base), sum(map(warm_seconds, self.left)), *map(warm_seconds, self.whole)]


def warm_seconds(work: Work) -> float:
    """Wall seconds of the second of two calls."""
    work()
    return seconds(work)


def kept_by(timed: Tensor, stops: Tensor, promised: float, speedup: float) -> dict[str, float]:
    """The three factors of `speedup` / `promised`.

    Args:
        timed: (2 + S,) mean seconds of a batch, as `Bare.timed` orders them.
        stops: (n,) where inputs stopped.
    """
    base, left, *whole = timed.tolist()
    own = sum(each * float((stops >= stage).double().mean()) for stage, each in enumerate(whole))
    return {"stages": base / own / promised, "batches": own / left, "runtime": speedup * left / base}
