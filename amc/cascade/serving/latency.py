"""Seconds of the stages of a cascade by batch size, and of whole plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amc.cascade.rules.stop_rule import Scorer
from amc.cascade.serving.active_examples import ActiveExamples
from amc.cascade.stages.stage import Stage
from amc.system.device import Compute

BATCHES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Quantiles:
    """Mean, quantiles and maximum of a quantity that differs from example to example or from batch to batch."""

    mean: float
    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Tensor) -> Quantiles:
        """Of values (n,); each quantile is one of the values, the smallest that enough of them do not exceed."""
        ordered = values.double().sort().values
        p50, p95, p99 = (float(ordered[-(-len(ordered) * percent // 100) - 1]) for percent in (50, 95, 99))
        return cls(float(ordered.mean()), p50, p95, p99, float(ordered[-1]))

    def to_json(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class LatencyCurve:
    """Measured seconds of one stage, with its score, by batch size; between and beyond them a + b * batch.

    Attributes:
        batches: at least one, rising.
        seconds: the median of each.
    """

    batches: tuple[int, ...]
    seconds: tuple[float, ...]

    @cached_property
    def line(self) -> tuple[float, float]:
        """(a, b), neither negative: the least sum of squared relative errors."""
        from scipy.optimize import nnls  # a fifth of a second, which a run without curves need not wait for

        design = np.stack([np.ones(len(self.batches)), np.array(self.batches, dtype=np.float64)], 1)
        measured = np.array(self.seconds)
        (fixed, each), _ = nnls(design / measured[:, None], np.ones(len(measured)))
        return float(fixed), float(each)

    @property
    def error(self) -> float:
        """Root mean squared relative error of the line."""
        errors = [self(batch) / second - 1 for batch, second in zip(self.batches, self.seconds, strict=True)]
        return float(np.sqrt(np.mean(np.square(errors))))

    def __call__(self, batch: float) -> float:
        """Seconds of a batch; 0 for an empty one, which is not run."""
        fixed, each = self.line
        return fixed + each * batch if batch > 0 else 0.0

    def most(self, seconds: float, wanted: int) -> int:
        """The largest batch of at most `wanted` that the line puts within `seconds`."""
        fixed, each = self.line
        if self(wanted) <= seconds:
            return wanted
        return min(wanted, int((seconds - fixed) / each)) if each > 0 and seconds > fixed else 0

    def to_json(self) -> dict[str, Any]:
        return {"batches": list(self.batches), "seconds": list(self.seconds), "line": list(self.line)}


@torch.inference_mode()
def measure_latency(
    stages: Sequence[Stage],
    scorer: Scorer | None,
    inputs: Tensor,
    compute: Compute,
    batches: Sequence[int] = BATCHES,
    rounds: int = 15,
) -> tuple[LatencyCurve, ...]:
    """A curve for every stage, each timed on the state that those before it hand on.

    Args:
        inputs: (n, ...) on the compute's device; taken in turn where a batch is larger than n.
        rounds: timed runs of each stage and size, in rounds over all of them, so that a slow moment hurts all alike;
            each follows a run that is not timed, as another stage's largest batch has emptied the caches.
    """
    works: list[list[Callable[[], ActiveExamples]]] = []
    for batch in batches:
        group = ActiveExamples(torch.arange(batch), inputs[torch.arange(batch) % len(inputs)], {})
        works.append([])
        for stage in stages:
            works[-1].append(partial(group.visit, stage, scorer, compute))
            group = works[-1][-1]()
    taken = np.empty((rounds, len(batches), len(stages)))
    for at in np.ndindex(taken.shape):
        works[at[1]][at[2]]()
        start = perf_counter()
        works[at[1]][at[2]]()
        taken[at] = perf_counter() - start
    medians = np.median(taken, 0)
    return tuple(LatencyCurve(tuple(batches), tuple(map(float, medians[:, k]))) for k in range(len(stages)))


def batch_seconds(curves: Sequence[LatencyCurve], stop: Tensor, batch: int, draws: int = 2000, seed: int = 0) -> Tensor:
    """(draws,) seconds of random batches of examples that stop as `stop` (n,) says.

    All answers of a batch are given together, so this is also what an example waits in such a batch.
    """
    picked = torch.randint(len(stop), (draws, batch), generator=torch.Generator().manual_seed(seed))
    stops = stop[picked]
    total = torch.zeros(draws, dtype=torch.float64)
    for number, curve in enumerate(curves):
        reach = (stops >= number).sum(1)
        fixed, each = curve.line
        total += torch.where(reach > 0, fixed + each * reach.double(), 0.0)
    return total
