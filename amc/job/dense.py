"""The dense network and everything that is known of it before a policy is measured.

Tracing and moments are taken once and kept in the run folder; a retarget reads them back and needs no torch-pruning.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amc.cost.activations import ActivationCost, profile_activations
from amc.cost.budget import Budget
from amc.cost.counts import ProductCost, count_bytes, count_macs, count_params
from amc.job.recipe import Recipe
from amc.job.rounding import settled
from amc.study.trial import Measure, Protocol
from amc.surgery.channel_table import ChannelTable
from amc.surgery.folding import Moments, take_moments
from amc.surgery.grouping import trace_isolated
from amc.surgery.importance import EXAMPLES, Statistics, rank_channels
from amc.surgery.materialised import materialise
from amc.surgery.trace_cache import TraceCache, read_trace_cache, write_trace_cache
from amc.system.device import Compute
from amc.system.errors import ModelError, UsageError
from amc.system.progress import Progress, Silent
from amc.train.evaluation import Evaluation, evaluate
from amc.train.short_distillation import lesson_record
from amc.zoo.call import Call
from amc.zoo.data.sources import load_splits
from amc.zoo.data.splits import Split, Splits
from amc.zoo.networks.source import ModelSource, build_model, model_source
from amc.zoo.task import Task, load_task
from amc_search import Cap, Policies, Space

CountCost = ProductCost | ActivationCost
LIMITS = {"trace_seconds", "trace_gigabytes"}  # keys of a recipe that no table depends on
RECOVERY = {"fold", "moment_images", "batchnorm_images"}  # keys under which moments are kept


@dataclass
class Dense:
    """A trained network, its data, its groups and their costs.

    Attributes:
        place: (U,) each unit's rank inside its group: a policy keeps the first ones.
        example: what the network is called with for one example: it was traced and its layers counted on this.
        moments: None when the recipe asks for no folding.
        costs: "macs", "params", "bytes": unit -> exact cost of keep-counts.
    """

    recipe: Recipe
    source: ModelSource
    model: nn.Module
    splits: Splits
    task: Task
    example: Call
    compute: Compute
    table: ChannelTable
    place: NDArray[np.int32]
    moments: Moments | None
    costs: dict[str, CountCost]
    weights_digest: str

    @property
    def space(self) -> Space:
        return self.table.space

    @cached_property
    def measure(self) -> Measure:
        """What measures policies of this network."""
        return Measure(
            self.model, self.table, self.place, self.moments, self.splits, self.compute,
            self.recipe.recovery, self.recipe.search, self.costs, self.task, self.recipe.finetune,
        )  # fmt: skip

    @cached_property
    def activation_bytes(self) -> ActivationCost:
        """Peak activation bytes; taken when first asked for, since it needs one pass of the network a group."""
        try:
            return profile_activations(self.model, self.table, self.example)
        except (ValueError, RuntimeError, NotImplementedError) as error:
            first = (str(error).splitlines() or [""])[0]
            raise ModelError(f"this network's peak activations cannot be counted: {first}; cap MACs") from error

    def evaluate(self, model: nn.Module, split: Split) -> Evaluation:
        """Run `model` on the whole of a split."""
        return evaluate(model, split, self.compute, batch_size=self.recipe.search.batch_size, task=self.task)

    def dense_costs(self, budgets: tuple[Budget, ...] = ()) -> dict[str, float]:
        """Unit -> cost of the uncut network, for the units always counted and those of `budgets`."""
        return self.costs_of(self.space.high, budgets)

    def costs_of(self, policy: Policies, budgets: tuple[Budget, ...] = ()) -> dict[str, float]:
        """Unit -> exact cost of one (d,) policy."""
        counts = torch.from_numpy(policy)[None].double()
        units = dict.fromkeys([*self.costs, *(budget.unit for budget in budgets)])
        return {unit: float(self.cost(unit)(counts)) for unit in units}

    def cost(self, unit: str) -> CountCost:
        return self.activation_bytes if unit == "activation_bytes" else self.costs[unit]

    def caps(self, budgets: tuple[Budget, ...]) -> tuple[Cap, ...]:
        """Budgets as caps in absolute units; one above the dense network's cost asks no more than that cost."""
        dense = self.dense_costs(budgets)
        limits = [min(budget.limit(dense), dense[budget.unit]) for budget in budgets]
        return tuple(Cap(self.cost(budget.unit), limit) for budget, limit in zip(budgets, limits, strict=True))

    @property
    def digests(self) -> dict[str, str]:
        """Hashes of what the user brought."""
        return {"weights": self.weights_digest, "data": self.splits.digest}

    def protocol(self) -> Protocol:
        recipe, groups = self.recipe, [asdict(group) for group in self.table.groups]
        settings = recipe.search, recipe.recovery
        digest = hashlib.sha256(json.dumps(groups).encode() + self.place.tobytes()).hexdigest()[:16]
        limit = settings[0].measure_images or len(self.splits.validation)
        return Protocol(
            model=json.dumps(self.source.to_json(), sort_keys=True),
            weights_digest=self.weights_digest,
            data_digest=self.splits.digest,
            task=self.task.fingerprint,
            groups_digest=digest,
            importance=recipe.surgery.importance,
            fold=settings[1].fold,
            moment_images=settings[1].moment_images if settings[1].fold else 0,
            batchnorm_images=settings[1].batchnorm_images,
            measure_images=min(limit, len(self.splits.validation)),
            batch_size=settings[0].batch_size,
            compute=self.compute.name,
            seed=recipe.seed,
            versions=("amc 1", f"torch {torch.__version__}"),
            training=lesson_record(settings[1], recipe.finetune, self.task),
        )


def prepare(
    recipe: Recipe, folder: Path | None = None, progress: Progress | None = None, *, store: bool = True
) -> Dense:
    """Load network and data, then trace, rank and take moments, or read those back from `folder`.

    `store` False leaves `folder` as it is, whatever it holds.

    Raises:
        ModelError, DataError: what is wrong with the network, its weights or the data.
    """
    progress = progress or Silent()
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    compute = Compute.detect()
    task = load_task(recipe.task.batch, recipe.task.metric, recipe.task.loss)
    splits = load_splits(
        recipe.data.name, size=recipe.data.size, split_seed=recipe.data.split_seed, cache=recipe.data.cache
    )
    source, model = load_model(recipe, splits.num_classes, splits.input_shape)
    compute.place(model)
    example = example_call(task, splits).to(compute.device)
    recipe = settled(recipe, model, example, compute, progress.say)
    weights_digest = digest_tensors(model.state_dict())
    key = json.dumps(
        [weights_digest, splits.digest, task.fingerprint, source.to_json(), recipe.surgery.model_dump(exclude=LIMITS),
         recipe.recovery.model_dump(include=RECOVERY), recipe.model.ignore, recipe.seed, compute.name], sort_keys=True,
    )  # fmt: skip
    path = folder / "dense.safetensors" if folder else None
    known = read_trace_cache(path, key) if path else None
    if known is None:
        stage = progress.stage("trace groups, rank channels, take moments", 3)
        table = trace_isolated(model, example, recipe.model.ignore, recipe.surgery.step, recipe.surgery.limits)
        stage.advance()
        statistics = Statistics(model, lambda: splits.train.batches(128, seed=2, limit=EXAMPLES), task)
        place = rank_channels(model, table, recipe.surgery.importance, statistics)
        stage.advance()
        moments = _moments(model, table, splits, task, recipe)
        stage.advance()
        known = TraceCache(table, place, moments)
        if path and store:
            write_trace_cache(path, key, known)
    else:
        materialise(model, example)  # as tracing leaves it: the table is of a baked network
    costs: dict[str, CountCost] = {
        "macs": count_macs(known.table),
        "params": count_params(model, known.table),
        "bytes": count_bytes(model, known.table),
    }
    return Dense(
        recipe, source, model, splits, task, example, compute, known.table, known.rank, known.moments, costs,
        weights_digest,
    )  # fmt: skip


def example_call(task: Task, splits: Splits) -> Call:
    """What the network is called with for one example: the first training example, or noise for a lone float tensor.

    Raises:
        UsageError: the batch function fails, or the data hold no example.
    """
    batch = next(iter(splits.train.batches(1, limit=1)), None)
    if batch is None:
        raise UsageError(f"data must hold a training example, but the train split of {splits.name!r} is empty")
    call = task.call(batch)
    lone = call.args[0] if len(call.args) == 1 and not call.kwargs else None
    if isinstance(lone, Tensor) and lone.is_floating_point():
        return Call((torch.randn(lone.shape, generator=torch.Generator().manual_seed(0)),))
    return call


def load_model(recipe: Recipe, num_classes: int | None, input_shape: tuple[int, ...]) -> tuple[ModelSource, nn.Module]:
    """The dense network of a recipe, in `eval` mode, and the record it can be built from again."""
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


def _moments(model: nn.Module, table: ChannelTable, splits: Splits, task: Task, recipe: Recipe) -> Moments | None:
    if not recipe.recovery.fold:
        return None
    batches = splits.train.batches(recipe.search.batch_size, seed=0, limit=recipe.recovery.moment_images)
    return take_moments(model, table, batches, recipe.seed, task)


def digest_tensors(tensors: dict[str, Tensor]) -> str:
    """A hash of names, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
