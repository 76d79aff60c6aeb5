"""`amc bench`: our own claims, measured side by side in one run that anyone can repeat."""

from __future__ import annotations

import copy
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from amc.cost.counts import count_layer_runs, count_macs
from amc.dense import Dense, load_model, prepare, trace_groups
from amc.evaluation import evaluate
from amc.progress import Progress
from amc.recipe import Recipe
from amc.surgery.cut import cut, named_tensors
from amc.surgery.recovery import cut_and_fold
from amc.surgery.table import kept_units, ranks, unit_scores
from amc.training import train
from amc_search import Cap, random_policies

REPEATS = 5
POLICIES = 1000


def bench_cut(recipe: Recipe, size: int) -> dict[str, Any]:
    """Seconds to trace, cut and count a network, beside torch-pruning's build and step on the same one.

    torch-pruning prunes every layer by half; ours cuts `REPEATS` random policies. Medians; threads as torch has them.
    """
    shape = (3, size, size)
    model = load_model(recipe, recipe.model.num_classes, shape)[1]
    start = perf_counter()
    table = trace_groups(model, shape, recipe)
    trace_seconds = perf_counter() - start
    place = ranks(table, unit_scores(table, named_tensors(model)))
    rng = np.random.default_rng(recipe.seed)
    step, most = table.space.step, table.space.high // table.space.step
    policies = step * rng.integers(1, most, size=(POLICIES, len(table.space)), endpoint=True)
    cuts = [_seconds(lambda p=p: cut(model, table, kept_units(table, place, p))) for p in policies[:REPEATS]]  # type: ignore[misc]
    macs = count_macs(model, table, count_layer_runs(model, torch.zeros(1, *shape)))
    counts = torch.from_numpy(policies).double()
    theirs = [_seconds(lambda m=twin: _prune_by_half(m, shape)) for twin in (copy.deepcopy(model) for _ in range(3))]  # type: ignore[misc]
    return {
        "model": recipe.model.name,
        "size": size,
        "threads": torch.get_num_threads(),
        "groups": len(table.groups),
        "trace_seconds": trace_seconds,
        "cut_seconds": median(cuts),
        "torch_pruning_seconds": median(theirs),
        "ratio": median(theirs) / median(cuts),
        "macs_of_1000_policies_seconds": median(_seconds(lambda: macs(counts)) for _ in range(REPEATS)),
    }


def _prune_by_half(model: nn.Module, shape: tuple[int, ...]) -> None:
    """What a trial costs when torch-pruning's pruner is built and stepped for it."""
    import torch_pruning

    outputs = [module for module in model.modules() if isinstance(module, nn.Linear)]
    torch_pruning.pruner.BasePruner(
        model, torch.randn(1, *shape), importance=torch_pruning.importance.MagnitudeImportance(), pruning_ratio=0.5,
        ignored_layers=outputs, in_channel_groups={}, out_channel_groups={}, num_heads={},
    ).step()  # fmt: skip


def _seconds(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


def cut_text(rows: list[dict[str, Any]]) -> str:
    """A line a network."""
    lines = [
        f"{'model':<20}{'trace s':>9}{'cut s':>9}{'torch-pruning s':>17}{'ratio':>8}{'MACs of 1,000 policies, s':>27}"
    ]
    for row in rows:
        lines.append(
            f"{row['model']:<20}{row['trace_seconds']:>9.2f}{row['cut_seconds']:>9.3f}"
            f"{row['torch_pruning_seconds']:>17.2f}{row['ratio']:>7.0f}x{row['macs_of_1000_policies_seconds']:>27.4f}"
        )
    return "\n".join(lines)


def bench_recovery(recipe: Recipe, policies: int, epochs: float, progress: Progress) -> dict[str, Any]:
    """Accuracy on the measure split by kind of recovery, before and after an equal short fine-tune.

    The policies are random, at 25 to 80 % of the dense network's MACs; the test split is not touched.
    """
    dense = prepare(recipe, None, progress)
    shares = np.linspace(0.3, 0.8, policies)
    chosen = [random_policy(dense, float(share), recipe.seed + index) for index, share in enumerate(shares)]
    stage = progress.stage("cut, recover, measure, fine-tune", 3 * policies)
    rows = []
    for policy in chosen:
        row: dict[str, Any] = {"macs_share": dense.costs_of(policy)["macs"] / dense.dense_costs()["macs"]}
        for kind in ("none", "batchnorm", "fold_batchnorm"):
            model = recovered(dense, policy, kind)
            before = evaluate(model, dense.splits.measure, dense.compute, task=dense.task).accuracy
            schedule = recipe.finetune.model_copy(update={"epochs": epochs})
            train(model, dense.splits, schedule, dense.compute, seed=recipe.seed, teacher=dense.model, task=dense.task)
            after = evaluate(model, dense.splits.measure, dense.compute, task=dense.task).accuracy
            row[kind] = {"before": before, "after": after}
            stage.advance()
        rows.append(row)
    reference = evaluate(dense.model, dense.splits.measure, dense.compute, task=dense.task).accuracy
    return {"dense": reference, "epochs": epochs, "rows": rows}


def random_policy(dense: Dense, share: float, seed: int) -> NDArray[np.int64]:
    """A policy of random proportions at 85 to 100 % of `share` of the dense MACs."""
    cap = Cap(dense.costs["macs"], share * dense.dense_costs()["macs"])
    policy: NDArray[np.int64] = random_policies(dense.space, (cap,), 1, np.random.default_rng(seed))[0]
    return policy


def recovered(dense: Dense, policy: NDArray[np.int64], kind: str) -> nn.Module:
    """The network of a policy after one kind of recovery: "none", "batchnorm" or "fold_batchnorm"."""
    moments = dense.moments if kind == "fold_batchnorm" else None
    model = cut_and_fold(dense.model, dense.table, kept_units(dense.table, dense.place, policy), moments)
    if kind != "none":
        dense.measure.settle(model)
    return model


def recovery_text(found: dict[str, Any]) -> str:
    """A line a policy, then their means."""
    kinds = {"none": "none", "batchnorm": "BatchNorm", "fold_batchnorm": "fold + BatchNorm"}
    lines = [
        f"dense {found['dense']:.2%}; fine-tune of {found['epochs']:g} epochs; accuracy before -> after",
        f"{'MACs kept':>9}" + "".join(f"{name:>22}" for name in kinds.values()),
    ]
    for row in found["rows"]:
        cells = [f"{row[kind]['before']:.2%} -> {row[kind]['after']:.2%}" for kind in kinds]
        lines.append(f"{row['macs_share']:>9.1%}" + "".join(f"{cell:>22}" for cell in cells))
    means = [
        f"{np.mean([row[kind]['before'] for row in found['rows']]):.2%} -> "
        f"{np.mean([row[kind]['after'] for row in found['rows']]):.2%}"
        for kind in kinds
    ]
    return "\n".join([*lines, f"{'mean':>9}" + "".join(f"{cell:>22}" for cell in means)])
