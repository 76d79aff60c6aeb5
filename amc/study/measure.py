"""What measures a policy of one network on one data set: cut, recover, evaluate."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from amc.cost.trace import Trace
from amc.study.stopping import Floor, SequentialTest
from amc.study.trial import Protocol, Trial
from amc.surgery.channel_table import kept_channels
from amc.surgery.folding import Cutter, Moments, reestimate_batchnorm, take_moments, tracking_norms
from amc.surgery.importance import EXAMPLES, Statistics, rank_channels
from amc.surgery.trace_cache import TraceCache
from amc.system.device import Compute
from amc.system.errors import DataError
from amc.system.eval_mode import evaluating
from amc.train.evaluation import Evaluation, evaluate
from amc.train.settings import FinetuneSchedule, RecoverySettings
from amc.train.short_distillation import ShortDistillation, short_record, short_schedule
from amc.zoo.data.kept import KeptSplit
from amc.zoo.data.loaders import as_split
from amc.zoo.data.splits import Split
from amc.zoo.task import Task, load_task

ORDER = 3  # the seed of the order in which the validation split is seen


@dataclass(frozen=True)
class MeasureSettings:
    """How a policy becomes a network and a number.

    Attributes:
        importance: what ranks the channels of a group: see `amc.surgery.importance`.
        recovery: what is done to a cut network before it is measured.
        schedule: the loss and learning rate of recovery's steps, where it has any.
        images: validation examples that a trial is measured on; None: all.
        batch_size: examples in a batch.
    """

    importance: str = "magnitude"
    recovery: RecoverySettings = field(default_factory=RecoverySettings)
    schedule: FinetuneSchedule = field(default_factory=FinetuneSchedule)
    images: int | None = None
    batch_size: int = 250


class Measure:
    """Measures policies of one traced network, which it never changes.

    Attributes:
        trace: the network, its groups and costs.
        train: what moments, BatchNorm statistics and recovery's steps see.
        validation: what a policy is measured on.
        task: how batches are given to the network and how its outputs are judged.
        compute: device and number format.
    """

    def __init__(
        self,
        space: Trace,
        *,
        train: Any,
        validation: Any,
        metric: Task | Callable[..., Any] | str | None = None,
        loss: Callable[..., Any] | str | None = None,
        batch: Callable[..., Any] | str | None = None,
        settings: MeasureSettings = MeasureSettings(),
        device: Compute | str | torch.device | None = None,
        seed: int = 0,
    ) -> None:
        """Bring a traced network and its data together.

        Args:
            space: what `trace` gave.
            train: batches or examples: a DataLoader, a list of batches, a dataset, or a `Split`.
            validation: likewise; every policy is measured on it.
            metric: from outputs and batch to a score in [0, 1] for each example, as a function or by name; None: the
                accuracy of a classifier, or `agreement` with the dense network where batches carry no labels. See
                `amc.zoo.task`.
            loss: from outputs and batch to the scalar that training makes small; None: cross-entropy.
            batch: from a batch to the network's arguments; None: the batch's first element.
            settings: how a policy becomes a network and a number.
            device: where it runs; None: where the network is.
            seed: of everything random.

        Raises:
            DataError, UsageError: what is wrong with the data or a function, in one line.
        """
        self.trace, self.settings, self.seed = space, settings, seed
        self.compute = Compute.of(next(space.model.parameters()).device if device is None else device)
        self.train, self.validation = KeptSplit(as_split(train, "train")), KeptSplit(as_split(validation, "validation"))
        for name, split in (("train", self.train), ("validation", self.validation)):
            if len(split) == 0:
                raise DataError(f"the {name} split must hold examples, but is empty; check the data")
        task = metric if isinstance(metric, Task) else load_task(batch, metric, loss)
        self.task = task.bound(space.model, self.compute, next(self.validation.batches(1, limit=1), None))

    def prepare(self, done: Callable[[], None] = lambda: None) -> TraceCache:
        """Rank channels and take moments now; `done` is called after each of the two."""
        ranked = self.ranks
        done()
        moments = self.moments
        done()
        return TraceCache(self.trace.table, ranked, moments)

    def adopt(self, cache: TraceCache) -> None:
        """Take over the ranks and moments that an equal measure found."""
        self.ranks, self.moments = cache.rank, cache.moments

    @property
    def model(self) -> nn.Module:
        return self.trace.model

    @property
    def recovery(self) -> RecoverySettings:
        return self.settings.recovery

    @cached_property
    def ranks(self) -> NDArray[np.int32]:
        """(U,) each channel's rank inside its group: a policy keeps the first ones."""
        statistics = Statistics(self.model, lambda: self.train.batches(128, seed=2, limit=EXAMPLES), self.task)
        return rank_channels(self.model, self.trace.table, self.settings.importance, statistics)

    @cached_property
    def moments(self) -> Moments | None:
        """What folding needs; None where recovery does not fold."""
        if not self.recovery.fold:
            return None
        batches = self.train.batches(self.settings.batch_size, seed=0, limit=self.recovery.moment_images)
        return take_moments(self.model, self.trace.table, batches, self.seed, self.task)

    @property
    def data_digest(self) -> str:
        """Hash of the two splits that a trial depends on."""
        return hashlib.sha256(f"{self.train.digest} {self.validation.digest}".encode()).hexdigest()[:16]

    @property
    def images(self) -> int:
        """Examples that a trial is measured on."""
        return min(len(self.validation), self.settings.images or len(self.validation))

    @property
    def passes(self) -> int:
        """Examples that a trial passes through its network, those of training steps not counted."""
        return self.images + (self.recovery.batchnorm_images if tracking_norms(self.model) else 0)

    def protocol(self) -> Protocol:
        """All that a trial's number depends on."""
        groups = [asdict(group) for group in self.trace.groups]
        recovery = self.recovery
        return Protocol(
            model=self.trace.origin,
            weights_digest=self.trace.digest,
            data_digest=self.data_digest,
            task=self.task.fingerprint,
            groups_digest=hashlib.sha256(json.dumps(groups).encode() + self.ranks.tobytes()).hexdigest()[:16],
            importance=self.settings.importance,
            fold=recovery.fold,
            moment_images=recovery.moment_images if recovery.fold else 0,
            batchnorm_images=recovery.batchnorm_images,
            measure_images=self.images,
            batch_size=self.settings.batch_size,
            compute=self.compute.name,
            seed=self.seed,
            versions=("amc 1", f"torch {torch.__version__}"),
            training=short_record(recovery, self.settings.schedule, self.task),
        )

    def with_settings(self, **changes: Any) -> Measure:
        """The same network and data under other settings; what these do not touch is shared.

        Args:
            changes: fields of `MeasureSettings`, all but `importance`.
        """
        other = copy.copy(self)
        other.settings = replace(self.settings, **changes)
        for found in ("moments", "short_distillation", "cutter"):
            other.__dict__.pop(found, None)
        if other.recovery.fold and self.recovery.fold:
            other.moments = self.moments
        return other

    def rough(self, images: int, batchnorm_images: int) -> Measure:
        """The same on fewer examples, after no training."""
        recovery = self.recovery.model_copy(update={"batchnorm_images": batchnorm_images, "steps": 0})
        return self.with_settings(recovery=recovery, images=images)

    @cached_property
    def short_distillation(self) -> ShortDistillation:
        schedule = short_schedule(self.recovery, self.settings.schedule)
        return ShortDistillation(self.model, self.train, schedule, self.recovery.steps, self.compute, self.task)

    @cached_property
    def cutter(self) -> Cutter:
        return Cutter(self.model, self.trace.table, self.moments)

    def __call__(self, policy: NDArray[np.int64], floor: Floor | None = None) -> Trial:
        """Measure one (d,) policy of keep-counts.

        `floor` gives the accuracy below which a policy of these costs cannot matter: the trial stops as soon as a
        sequential test is sure of it.
        """
        seconds, costs = dict.fromkeys(("cut", "fold", "batchnorm", "evaluate"), 0.0), self.trace.costs_of(policy)
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
                self.short_distillation(small)
        with _timed(seconds, "batchnorm"):
            self.settle(small)
        return small

    def cut(self, policy: NDArray[np.int64], seconds: dict[str, float] | None = None) -> nn.Module:
        """Cut and, where there are moments, fold; the seconds of each are added to `seconds`."""
        seconds = {} if seconds is None else seconds
        kept = kept_channels(self.trace.table, self.ranks, policy)
        with _timed(seconds, "cut"):
            sliced = self.cutter.cut(kept)
        with _timed(seconds, "fold"):
            self.cutter.fold(sliced, kept)
        with _timed(seconds, "cut"):
            return self.cutter.build(sliced, kept)

    def settle(self, model: nn.Module) -> None:
        """Re-estimate BatchNorm on training examples, the same ones for every policy."""
        if self.recovery.batchnorm_images:
            batches = self.train.batches(self.settings.batch_size, seed=1, limit=self.recovery.batchnorm_images)
            with self.compute.autocast():
                reestimate_batchnorm(model, batches, self.task)

    def evaluate(self, model: nn.Module, floor: float = 0.0) -> Evaluation:
        """Run `model` on the validation split, in one random order for all policies; no longer than `floor` asks."""
        size = self.settings.batch_size
        test = SequentialTest(floor, self.images, looks=-(-self.images // size), counted=self.task.metric is None)
        return evaluate(
            model, self.validation, self.compute, batch_size=size, limit=self.settings.images, seed=ORDER,
            task=self.task, stop=test if floor > 0 else None,
        )  # fmt: skip

    def evaluate_whole(self, model: nn.Module, split: Split | None = None) -> Evaluation:
        """Run `model` on all of a split, in its own order; None: the validation split."""
        split = self.validation if split is None else split
        return evaluate(model, split, self.compute, batch_size=self.settings.batch_size, task=self.task)

    def batches(self) -> Iterator[Any]:
        """Those of `evaluate`, in its order."""
        return self.validation.batches(self.settings.batch_size, seed=ORDER, limit=self.images)

    @torch.inference_mode()
    def outputs(self, model: nn.Module, batch: Any) -> Any:
        """What `model` makes of a batch."""
        with evaluating(model), self.compute.autocast():
            return self.task.call(batch).to(self.compute.device).on(model)


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    start = perf_counter()
    yield
    seconds[part] = seconds.get(part, 0.0) + perf_counter() - start
