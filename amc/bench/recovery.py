"""Kinds of recovery at random policies, before and after an equal short fine-tune."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from amc.bench.table import Table
from amc.job.job import Job, open_job
from amc.job.recipe import Recipe
from amc.surgery.channel_table import kept_channels
from amc.surgery.folding import cut_and_fold
from amc.system.progress import Progress
from amc.train.evaluation import evaluate
from amc.train.training import train
from amc_search import Cap, random_policies

KINDS = {"none": "none", "batchnorm": "BatchNorm", "fold_batchnorm": "fold + BatchNorm"}


def bench_recovery(recipe: Recipe, policies: int, epochs: float, progress: Progress) -> dict[str, Any]:
    """Accuracy on the validation split by kind of recovery, before and after an equal short fine-tune.

    The policies are random, at 25 to 80 % of the dense network's MACs; the test split is not touched.
    """
    dense = open_job(recipe, None, progress)
    shares = np.linspace(0.3, 0.8, policies)
    chosen = [random_policy(dense, float(share), recipe.seed + index) for index, share in enumerate(shares)]
    stage = progress.stage("cut, recover, measure, fine-tune", 3 * policies)
    rows = []
    for policy in chosen:
        row: dict[str, Any] = {"macs_share": dense.trace.costs_of(policy)["macs"] / dense.trace.dense_costs()["macs"]}
        for kind in KINDS:
            model = recovered(dense, policy, kind)
            before = evaluate(model, dense.data.validation, dense.compute, task=dense.task).accuracy
            schedule = recipe.finetune.model_copy(update={"epochs": epochs})
            train(model, dense.data, schedule, dense.compute, seed=recipe.seed, teacher=dense.model, task=dense.task)
            after = evaluate(model, dense.data.validation, dense.compute, task=dense.task).accuracy
            row[kind] = {"before": before, "after": after}
            stage.advance()
        rows.append(row)
    reference = evaluate(dense.model, dense.data.validation, dense.compute, task=dense.task).accuracy
    return {"dense": reference, "epochs": epochs, "rows": rows}


def random_policy(dense: Job, share: float, seed: int) -> NDArray[np.int64]:
    """A policy of random proportions at 85 to 100 % of `share` of the dense MACs."""
    cap = Cap(dense.trace.costs["macs"], share * dense.trace.dense_costs()["macs"])
    policy: NDArray[np.int64] = random_policies(dense.space, (cap,), 1, np.random.default_rng(seed))[0]
    return policy


def recovered(dense: Job, policy: NDArray[np.int64], kind: str) -> nn.Module:
    """The network of a policy after one kind of recovery: "none", "batchnorm" or "fold_batchnorm"."""
    moments = dense.measure.moments if kind == "fold_batchnorm" else None
    model = cut_and_fold(
        dense.model, dense.trace.table, kept_channels(dense.trace.table, dense.measure.ranks, policy), moments
    )
    if kind != "none":
        dense.measure.settle(model)
    return model


def recovery_text(found: dict[str, Any]) -> str:
    """A line a policy, then their means."""
    heads = ["MACs kept", *KINDS.values()]
    rows = [[f"{row['macs_share']:.1%}", *(_before_after([row], kind) for kind in KINDS)] for row in found["rows"]]
    rows.append(["mean", *(_before_after(found["rows"], kind) for kind in KINDS)])
    title = f"dense {found['dense']:.2%}; fine-tune of {found['epochs']:g} epochs; accuracy before -> after"
    return Table(heads, rows, title).text


def _before_after(rows: list[dict[str, Any]], kind: str) -> str:
    before, after = (np.mean([row[kind][when] for row in rows]) for when in ("before", "after"))
    return f"{before:.2%} -> {after:.2%}"
