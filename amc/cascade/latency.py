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

from amc.cascade.policy import Scorer
from amc.cascade.stage import Stage
from amc.cascade.survivors import Survivors
from amc.system.device import Compute

BATCHES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Spread:
    """Mean, quantiles and maximum of a quantity that differs from example to example or from batch to batch."""

    mean: float
    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Tensor) -> Spread:
        """Of values (n,); each quantile is one of the values, the smallest that enough of them do not exceed."""
        ordered = values.double().sort().values
        p50, p95, p99 = (float(ordered[-(-len(ordered) * percent // 100) - 1]) for percent in (50, 95, 99))
        return cls(float(ordered.mean()), p50, p95, p99, float(ordered[-1]))

    def to_json(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Curve:
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

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Curve:
        return cls(tuple(record["batches"]), tuple(record["seconds"]))


@torch.inference_mode()
def measure(
    stages: Sequence[Stage],
    scorer: Scorer | None,
    inputs: Tensor,
    compute: Compute,
    batches: Sequence[int] = BATCHES,
    rounds: int = 15,
) -> tuple[Curve, ...]:
    """A curve for every stage, each timed on the state that those before it hand on.

    Args:
        inputs: (n, ...) on the compute's device; taken in turn where a batch is larger than n.
        rounds: timed runs of each stage and size, in rounds over all of them, so that a slow moment hurts all alike;
            each follows a run that is not timed, as another stage's largest batch has emptied the caches.
    """
    works: list[list[Callable[[], Survivors]]] = []
    for batch in batches:
        group = Survivors(torch.arange(batch), inputs[torch.arange(batch) % len(inputs)], {})
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
    return tuple(Curve(tuple(batches), tuple(map(float, medians[:, k]))) for k in range(len(stages)))


def expected_seconds(curves: Sequence[Curve], shares: Tensor, batch: int) -> float:
    """Mean seconds of a batch of independent examples of which `shares` (S,) stop at each stage."""
    reaching = (shares.flip(0).cumsum(0).flip(0)).clamp(0, 1).tolist()
    total = 0.0
    for curve, reach in zip(curves, reaching, strict=True):
        fixed, each = curve.line
        total += fixed * (1 - (1 - reach) ** batch) + each * batch * reach
    return total


def batch_seconds(curves: Sequence[Curve], stop: Tensor, batch: int, draws: int = 2000, seed: int = 0) -> Tensor:
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


def saved_by_gathering(curves: Sequence[Curve], gather: Curve, stage: int, before: int, after: int) -> float:
    """Seconds that stage `stage` saves by running on the `after` examples left instead of all `before`, less gathering.

    Gathering pays where it is positive. A runtime that masks instead saves nothing, and runs stages on examples that
    have their answer.
    """
    return curves[stage](before) - curves[stage](after) - gather(after)
