"""Kinds of recovery at random policies, before and after an equal short fine-tune."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amc import Job, Measure, Progress, Recipe, open_job
from amc.bench.objectives.trial_kinds import parse_kinds
from amc.bench.table import Table
from amc_search import Cap, random_policies

KINDS = {"none": "none", "batchnorm": "BatchNorm", "fold": "fold + BatchNorm"}


def bench_recovery(recipe: Recipe, policies: int, epochs: float, progress: Progress) -> dict[str, Any]:
    """Accuracy on the validation split by kind of recovery, before and after an equal short fine-tune.

    The policies are random, at 25 to 80 % of the dense network's MACs; the test split is not touched.
    """
    job = open_job(recipe, None, progress)
    schedule = recipe.finetune.model_copy(update={"epochs": epochs})
    job = replace(job, recipe=job.recipe.model_copy(update={"finetune": schedule}))
    shares = np.linspace(0.3, 0.8, policies)
    chosen = [random_policy(job, float(share), recipe.seed + index) for index, share in enumerate(shares)]
    stage = progress.stage("cut, recover, measure, fine-tune", 3 * policies)
    measures = _measures(job)
    rows = []
    for policy in chosen:
        row: dict[str, Any] = {"macs_share": job.trace.costs_of(policy)["macs"] / job.trace.dense_costs()["macs"]}
        for kind, measure in measures.items():
            model = measure.realise(policy)
            before = measure.evaluate_whole(model).accuracy
            job.finetune(model, start=before)
            row[kind] = {"before": before, "after": measure.evaluate_whole(model).accuracy}
            stage.advance()
        rows.append(row)
    return {"dense": job.measure.evaluate_whole(job.model).accuracy, "epochs": epochs, "rows": rows}


def _measures(job: Job) -> dict[str, Measure]:
    """What makes the network of a policy after each kind of recovery."""
    recovery = job.recipe.recovery
    return {
        kind.name: job.measure.with_settings(recovery=kind.recovery(recovery)) for kind in parse_kinds(",".join(KINDS))
    }


def random_policy(job: Job, share: float, seed: int) -> NDArray[np.int64]:
    """A policy of random proportions at 85 to 100 % of `share` of the dense MACs."""
    cap = Cap(job.trace.costs["macs"], share * job.trace.dense_costs()["macs"])
    policy: NDArray[np.int64] = random_policies(job.space, (cap,), 1, np.random.default_rng(seed))[0]
    return policy


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
