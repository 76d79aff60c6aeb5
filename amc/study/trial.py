"""One measured policy: cut, recover, evaluate."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from amc.study.settings import SearchSettings
from amc.study.stopping import Floor, SequentialTest
from amc.surgery.channel_table import ChannelTable, kept_channels
from amc.surgery.folding import Cutter, Moments, reestimate_batchnorm, tracking_norms
from amc.system.device import Compute
from amc.system.eval_mode import evaluating
from amc.train.evaluation import Evaluation, evaluate
from amc.train.settings import FinetuneSchedule, RecoverySettings
from amc.train.short_distillation import Lessons, lesson_schedule
from amc.zoo.data.kept import KeptSplit
from amc.zoo.data.splits import Splits
from amc.zoo.task import CLASSIFICATION, Task

ORDER = 3  # the seed of the order in which the validation split is seen


@dataclass(frozen=True)
class Trial:
    """What one measurement gave.

    Attributes:
        policy: keep-counts, one a group, in the order of the space.
        costs: unit -> cost ("macs", "params", "bytes").
        accuracy: top-1 on the validation split, 0..1, after recovery and before any fine-tune.
        loss: calibrated mean cross-entropy there, nats (`amc.train.evaluation`).
        seconds: wall time of each part: cut, fold, batchnorm, evaluate; and train, where recovery has steps.
        stopped: it ended early (`amc.study.stopping`): accuracy and loss are of what was seen.
        images: how many examples that was; None where it was not kept: all of them.
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
    training: str = ""

    @property
    def digest(self) -> str:
        """The study's name."""
        fields = asdict(self)
        if not self.training:
            del fields["training"]  # studies from before there was any go by the same name
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


class Measure:
    """Measures policies of one dense network, which it never changes."""

    def __init__(
        self,
        model: nn.Module,
        table: ChannelTable,
        place: NDArray[np.int32],
        moments: Moments | None,
        splits: Splits,
        compute: Compute,
        recovery: RecoverySettings,
        search: SearchSettings,
        costs: Mapping[str, object],
        task: Task = CLASSIFICATION,
        finetune: FinetuneSchedule = FinetuneSchedule(),
    ) -> None:
        self.model, self.table, self.place, self.moments = model, table, place, moments
        self.compute, self.recovery, self.search, self.costs, self.task = compute, recovery, search, costs, task
        self.train, self.pictures = KeptSplit(splits.train), KeptSplit(splits.validation)
        self.finetune = finetune

    @property
    def images(self) -> int:
        """Pictures that a trial is measured on."""
        return min(len(self.pictures), self.search.measure_images or len(self.pictures))

    @property
    def passes(self) -> int:
        """Pictures that a trial passes through its network, those of training steps left out."""
        return self.images + (self.recovery.batchnorm_images if tracking_norms(self.model) else 0)

    def of(self, images: int, batchnorm_images: int) -> Measure:
        """The same on fewer pictures, after no training."""
        search = self.search.model_copy(update={"measure_images": images})
        recovery = self.recovery.model_copy(update={"batchnorm_images": batchnorm_images, "steps": 0})
        other = copy.copy(self)
        other.search, other.recovery = search, recovery
        return other

    @cached_property
    def lessons(self) -> Lessons:
        schedule = lesson_schedule(self.recovery, self.finetune)
        return Lessons(self.model, self.train, schedule, self.recovery.steps, self.compute, self.task)

    @cached_property
    def cutter(self) -> Cutter:
        return Cutter(self.model, self.table, self.moments)

    def __call__(self, policy: NDArray[np.int64], floor: Floor | None = None) -> Trial:
        """Measure one (d,) policy of keep-counts.

        `floor` gives the accuracy below which a policy of these costs cannot matter: the trial stops as soon as a
        sequential test is sure of it.
        """
        seconds, costs = dict.fromkeys(("cut", "fold", "batchnorm", "evaluate"), 0.0), self.cost_of(policy)
        small = self.realise(policy, seconds)
        with _timed(seconds, "evaluate"):
            result = self.evaluate(small, floor(costs) if floor else 0.0)
        seen = len(result.scores)
        return Trial(tuple(policy.tolist()), costs, result.accuracy, result.loss, seconds, result.stopped, seen)

    def realise(self, policy: NDArray[np.int64], seconds: dict[str, float] | None = None) -> nn.Module:
        """The network of a (d,) policy as it is measured: cut, recovered, not fine-tuned.

        Where recovery has steps, these come before BatchNorm: training has no use for statistics that it changes.
        """
        seconds = {} if seconds is None else seconds
        small = self.cut(policy, seconds)
        if self.recovery.steps:
            with _timed(seconds, "train"):
                self.lessons(small)
        with _timed(seconds, "batchnorm"):
            self.settle(small)
        return small

    def cut(self, policy: NDArray[np.int64], seconds: dict[str, float] | None = None) -> nn.Module:
        """Cut and, where there are moments, fold; `seconds` is told how long either took."""
        seconds = {} if seconds is None else seconds
        kept = kept_channels(self.table, self.place, policy)
        with _timed(seconds, "cut"):
            sliced = self.cutter.cut(kept)
        with _timed(seconds, "fold"):
            self.cutter.fold(sliced, kept)
        with _timed(seconds, "cut"):
            return self.cutter.build(sliced, kept)

    def settle(self, model: nn.Module) -> None:
        """Re-estimate BatchNorm on training pictures, the same ones for every policy."""
        if self.recovery.batchnorm_images:
            batches = self.train.batches(self.search.batch_size, seed=1, limit=self.recovery.batchnorm_images)
            with self.compute.autocast():
                reestimate_batchnorm(model, batches, self.task)

    def evaluate(self, model: nn.Module, floor: float = 0.0) -> Evaluation:
        """Run `model` on the validation split, in one random order for all policies; as long as `floor` asks for."""
        size, limit = self.search.batch_size, self.search.measure_images
        test = SequentialTest(floor, self.images, looks=-(-self.images // size), counted=self.task.metric is None)
        return evaluate(
            model, self.pictures, self.compute, batch_size=size, limit=limit, seed=ORDER, task=self.task,
            stop=test if floor > 0 else None,
        )  # fmt: skip

    def batches(self) -> Iterator[Any]:
        """Those of `evaluate`, in its order."""
        return self.pictures.batches(self.search.batch_size, seed=ORDER, limit=self.images)

    @torch.inference_mode()
    def outputs(self, model: nn.Module, batch: Any) -> Any:
        """What `model` makes of a batch."""
        with evaluating(model), self.compute.autocast():
            return self.task.call(batch).to(self.compute.device).on(model)

    def cost_of(self, policy: NDArray[np.int64]) -> dict[str, float]:
        counts = torch.from_numpy(policy)[None].double()
        return {unit: float(cost(counts)) for unit, cost in self.costs.items()}  # type: ignore[operator]


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    start = perf_counter()
    yield
    seconds[part] = seconds.get(part, 0.0) + perf_counter() - start
