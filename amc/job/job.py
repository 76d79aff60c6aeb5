"""A job: one opened task, handed on as one value. Network, data, task, device, budgets and caps in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from amc.cost.budget import Budget
from amc.cost.layer_speeds import measure_rounding
from amc.cost.trace import Trace, digest_tensors, traced
from amc.job.recipe import Recipe, check_trust
from amc.study.measure import Measure, MeasureSettings
from amc.study.storage import shared_study_url, study_url
from amc.study.trials import Study
from amc.surgery.trace_cache import read_trace_cache, write_trace_cache
from amc.system.device import Compute
from amc.system.errors import RunError, UsageError
from amc.system.progress import Progress, Silent
from amc.train.training import TrainingHistory, train
from amc.zoo.call import Call
from amc.zoo.data.sources import load_splits
from amc.zoo.data.splits import Splits
from amc.zoo.networks.source import ModelSource, build_model, model_source
from amc.zoo.task import Task, load_task
from amc.zoo.teacher import RememberingTeacher
from amc_search import Cap, Space

TRACE_CACHE = "dense.safetensors"
TRACE_LIMITS = {"trace_seconds", "trace_gigabytes"}  # keys of a recipe that no table depends on
CACHED_RECOVERY = {"fold", "moment_images", "batchnorm_images"}  # keys under which moments are kept


@dataclass(frozen=True, eq=False)
class Brought:
    """What the user brings: a network and its source, data and task, as objects.

    Names of the command line become these in `bring`; the library's callers hand them over.
    """

    source: ModelSource
    model: nn.Module
    data: Splits
    task: Task


@dataclass(frozen=True, eq=False)
class Job:
    """One opened task.

    Attributes:
        recipe: what is asked for.
        source: what the network can be built from again.
        data: train, validation and test split.
        measure: what measures policies; it holds the traced network, the task and the device.
    """

    recipe: Recipe
    source: ModelSource
    data: Splits
    measure: Measure

    @property
    def trace(self) -> Trace:
        return self.measure.trace

    @property
    def model(self) -> nn.Module:
        """The dense network."""
        return self.trace.model

    @property
    def space(self) -> Space:
        return self.trace.space

    @property
    def task(self) -> Task:
        return self.measure.task

    @property
    def compute(self) -> Compute:
        return self.measure.compute

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """Raises `UsageError` where the recipe has none."""
        return self.recipe.budgets

    @cached_property
    def caps(self) -> tuple[Cap, ...]:
        """The budgets in absolute units of this network."""
        return self.trace.caps(self.budgets)

    @property
    def digests(self) -> dict[str, str]:
        """Hashes of what the user brought."""
        return {"weights": self.trace.digest, "data": self.data.digest}

    @property
    def normalisation(self) -> dict[str, list[float]] | None:
        """Mean and standard deviation per channel that inputs are normalised with, where the data say so."""
        mean, std = (getattr(self.data.validation, name, None) for name in ("mean", "std"))
        return {"mean": list(mean), "std": list(std)} if mean and std else None

    @cached_property
    def teacher(self) -> nn.Module:
        """The dense network as fine-tunes ask it: where there are several, they learn from the same batches."""
        return RememberingTeacher(self.model) if self.recipe.finetune.uniform else self.model

    def study(self, folder: Path, *, alone: bool = False) -> Study:
        """The study that a run in `folder` measures for."""
        return Study.of(self.measure, study_location(self.recipe, folder), folder, alone=alone)

    def finetune(
        self,
        model: nn.Module,
        *,
        start: float,
        data: Splits | None = None,
        checkpoint: Path | None = None,
        title: str = "fine-tune",
        progress: Progress | None = None,
    ) -> TrainingHistory:
        """Train a cut network in place, as the recipe says, with the dense network as teacher.

        Args:
            start: its accuracy on the validation split, which no epoch may fall below.
            data: other splits than the job's.
            checkpoint: written after every epoch; the same call goes on from it.
        """
        return train(
            model, data or self.data, self.recipe.finetune, self.compute,
            seed=self.recipe.seed, teacher=self.teacher, checkpoint=checkpoint, title=title, progress=progress,
            task=self.task, start=start,
        )  # fmt: skip


def study_location(recipe: Recipe, folder: Path) -> str:
    """The storage of a run's trials: the recipe's, the run's own, or the one that all runs of this user share."""
    wanted = recipe.search.study
    own = wanted == "run" or (wanted is None and (folder / "study.db").is_file())  # as runs were before there was one
    return study_url(folder) if own else wanted or shared_study_url()


def bring(recipe: Recipe) -> Brought:
    """The network, data and task that a recipe names.

    Raises:
        ModelError, DataError, UsageError: what is wrong with the network, its weights, the data or a function.
    """
    if any(name.startswith("object:") for name in (recipe.model.name, recipe.data.name)):
        raise RunError(
            "this run was made from objects, which no name brings back; open it in Python, with the same objects: "
            "amc.open_run(folder, model=..., train=..., validation=..., test=...)"
        )
    check_trust(recipe)
    task = load_task(recipe.task.batch, recipe.task.metric, recipe.task.loss)
    data = load_data(recipe)
    return Brought(*load_model(recipe, data.num_classes, data.input_shape), data, task)


def load_data(recipe: Recipe) -> Splits:
    """The splits of the data that a recipe names. Raises `DataError`."""
    wanted = recipe.data
    return load_splits(wanted.name, size=wanted.size, split_seed=wanted.split_seed, cache=wanted.cache)


def open_job(
    recipe: Recipe,
    folder: Path | None = None,
    progress: Progress | None = None,
    *,
    brought: Brought | None = None,
    store: bool = True,
) -> Job:
    """Bring network and data, trace, rank and take moments, or read those three back from `folder`.

    Args:
        brought: objects in place of what the recipe names.
        store: whether what was found is kept in `folder`.

    Raises:
        ModelError, DataError: what is wrong with the network, its weights or the data.
    """
    progress = progress or Silent()
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    brought = brought or bring(recipe)
    data, task, source = brought.data, brought.task, brought.source
    compute = Compute.of(recipe.device)
    model = compute.place(brought.model.eval())
    example = example_call(task, data).to(compute.device)
    recipe = settled(recipe, model, example, compute, progress.say)
    digest = digest_tensors(model.state_dict())
    key = _cache_key(recipe, brought, digest, compute)
    path = folder / TRACE_CACHE if folder else None
    known = read_trace_cache(path, key) if path else None
    stage = progress.stage("trace groups, rank channels, take moments", 3) if known is None else Silent()
    network = traced(
        model, example, digest, ignore=recipe.model.ignore, step=recipe.surgery.step,
        limits=recipe.surgery.limits,
        origin=_text_of(source), table=known.table if known else None,
    )  # fmt: skip
    stage.advance()
    settings = MeasureSettings(
        recipe.surgery.importance, recipe.recovery, recipe.finetune, recipe.search.measure_images,
        recipe.search.batch_size,
    )  # fmt: skip
    measure = Measure(
        network, train=data.train, validation=data.validation, metric=task, settings=settings, device=compute,
        seed=recipe.seed,
    )  # fmt: skip
    if known is None:
        known = measure.prepare(stage.advance)
        if path and store:
            write_trace_cache(path, key, known)
    else:
        measure.adopt(known)
    return Job(recipe, source, data, measure)


def _cache_key(recipe: Recipe, brought: Brought, digest: str, compute: Compute) -> str:
    """All that groups, ranks and moments depend on, as a text."""
    return json.dumps(
        [digest, brought.data.digest, brought.task.fingerprint, brought.source.to_json(),
         recipe.surgery.model_dump(exclude=TRACE_LIMITS), recipe.recovery.model_dump(include=CACHED_RECOVERY),
         recipe.model.ignore, recipe.seed, compute.name], sort_keys=True,
    )  # fmt: skip


def _text_of(source: ModelSource) -> str:
    return json.dumps(source.to_json(), sort_keys=True)


def settled(recipe: Recipe, model: nn.Module, example: Call, compute: Compute, say: Callable[[str], None]) -> Recipe:
    """The recipe with a number for `surgery.round_to`, measured on `model` if it is `auto`."""
    if recipe.surgery.round_to != "auto":
        return recipe
    found = measure_rounding(model, example, compute)
    say(found.text)
    return with_step(recipe, found.step)


def with_step(recipe: Recipe, step: int) -> Recipe:
    """The recipe with a number for `surgery.round_to`."""
    return recipe.model_copy(update={"surgery": recipe.surgery.model_copy(update={"round_to": step})})


def example_call(task: Task, data: Splits) -> Call:
    """What the network is called with for one example: the first training example, or noise for a lone float tensor.

    Raises:
        UsageError: the batch function fails, or the data hold no example.
    """
    batch = next(iter(data.train.batches(1, limit=1)), None)
    if batch is None:
        raise UsageError(f"data must hold a training example, but the train split of {data.name!r} is empty")
    call = task.call(batch)
    lone = call.args[0] if len(call.args) == 1 and not call.kwargs else None
    if isinstance(lone, Tensor) and lone.is_floating_point():
        return Call((torch.randn(lone.shape, generator=torch.Generator().manual_seed(0)),))
    return call


def load_model(recipe: Recipe, num_classes: int | None, input_shape: tuple[int, ...]) -> tuple[ModelSource, nn.Module]:
    """The dense network of a recipe, in `eval` mode, and the source it can be built from again."""
    given = {
        "num_classes": recipe.model.num_classes or num_classes,
        "in_channels": input_shape[0] if len(input_shape) > 1 else None,
        "size": input_shape[-1] if input_shape else None,
        "options": recipe.model.options,
        "weights": recipe.model.weights,
    }
    source = model_source(recipe.model.name, **given)  # type: ignore[arg-type]
    model = build_model(recipe.model.name, seed=recipe.seed, **given)  # type: ignore[arg-type]
    return source, model.eval()
