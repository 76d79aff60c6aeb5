"""One measured policy: cut, recover, evaluate."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from amc.compute import Compute
from amc.data.splits import Splits
from amc.evaluation import evaluate
from amc.recipe import RecoverySection, SearchSection
from amc.surgery.recovery import Moments, cut_and_fold, reestimate_batchnorm
from amc.surgery.table import OwnerTable, kept_units
from amc.task import CLASSIFICATION, Task


@dataclass(frozen=True)
class Trial:
    """What one measurement gave.

    Attributes:
        policy: keep-counts, one a group, in the order of the space.
        costs: unit -> cost ("macs", "params", "bytes").
        accuracy: top-1 on the measure split, 0..1, after recovery and without training.
        loss: calibrated mean cross-entropy there, nats (`amc.evaluation`).
        seconds: wall time of each part: cut, batchnorm, evaluate.
        stopped: clearly bad, so that the measurement ended early: accuracy and loss are of the pictures seen.
        images: how many pictures were seen; None in trials of earlier versions.
    """

    policy: tuple[int, ...]
    costs: Mapping[str, float]
    accuracy: float
    loss: float
    seconds: Mapping[str, float]
    stopped: bool = False
    images: int | None = None


@dataclass(frozen=True)
class Protocol:
    """All that the number of a trial depends on. Two trials compare only if their protocols are equal."""

    model: str
    weights_digest: str
    data_digest: str
    groups_digest: str
    importance: str
    fold: bool
    moment_images: int
    batchnorm_images: int
    measure_images: int
    batch_size: int
    compute: str
    seed: int
    versions: tuple[str, ...]
    task: str = "accuracy"

    @property
    def digest(self) -> str:
        """The study's name."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


class Measure:
    """Measures policies of one dense network, which it never changes."""

    def __init__(
        self,
        model: nn.Module,
        table: OwnerTable,
        place: NDArray[np.int32],
        moments: Moments | None,
        splits: Splits,
        compute: Compute,
        recovery: RecoverySection,
        search: SearchSection,
        costs: Mapping[str, object],
        task: Task = CLASSIFICATION,
    ) -> None:
        self.model, self.table, self.place, self.moments = model, table, place, moments
        self.splits, self.compute, self.recovery, self.search, self.costs = splits, compute, recovery, search, costs
        self.task = task

    def __call__(self, policy: NDArray[np.int64]) -> Trial:
        """Measure one (d,) policy of keep-counts."""
        seconds: dict[str, float] = {}
        with _timed(seconds, "cut"):
            small = self.cut(policy)
        with _timed(seconds, "batchnorm"):
            self.settle(small)
        with _timed(seconds, "evaluate"):
            result = evaluate(
                small,
                self.splits.measure,
                self.compute,
                batch_size=self.search.batch_size,
                limit=self.search.measure_images,
                task=self.task,
            )
        return Trial(tuple(policy.tolist()), self.cost_of(policy), result.accuracy, result.loss, seconds)

    def realise(self, policy: NDArray[np.int64]) -> nn.Module:
        """The network of a (d,) policy, recovered, not trained."""
        small = self.cut(policy)
        self.settle(small)
        return small

    def cut(self, policy: NDArray[np.int64]) -> nn.Module:
        """Cut and, where there are moments, fold."""
        return cut_and_fold(self.model, self.table, kept_units(self.table, self.place, policy), self.moments)

    def settle(self, model: nn.Module) -> None:
        """Re-estimate BatchNorm on training pictures, the same ones for every policy."""
        if self.recovery.batchnorm_images:
            batches = self.splits.train.batches(self.search.batch_size, seed=1, limit=self.recovery.batchnorm_images)
            with self.compute.autocast():
                reestimate_batchnorm(model, batches, self.task)

    def cost_of(self, policy: NDArray[np.int64]) -> dict[str, float]:
        counts = torch.from_numpy(policy)[None].double()
        return {unit: float(cost(counts)) for unit, cost in self.costs.items()}  # type: ignore[operator]


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    start = perf_counter()
    yield
    seconds[part] = perf_counter() - start
