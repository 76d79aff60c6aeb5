"""What `results.json` holds: figures and goals, with all that they depend on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from amc.bench.machine import machine
from amc.bench.search_methods.context import POLICY, Context
from amc.bench.search_methods.finals import FINAL
from amc.bench.search_methods.findings import Findings, figures
from amc.bench.search_methods.goals import goals

FORMAT = "amc-bench-search/1"


def results(found: Findings, context: Context) -> dict[str, Any]:
    """The whole record, JSON-able."""
    recipe = found.recipe
    trials, finals = context.store.all(POLICY), context.store.all(FINAL)
    return {
        "format": FORMAT,
        "name": recipe.name,
        "about": recipe.about,
        "objective": recipe.objective,
        "methods": recipe.named_methods,
        "recipe": recipe.model_dump(by_alias=True, exclude_none=True),
        "machine": machine(),
        "task": _task(found, context),
        "progress": {
            "searches": len(found.searches),
            "searches_wanted": len(found.wanted),
            "trials": len(trials),
            "finals": sum(final["seconds"] > 0 for final in finals),
        },
        "seconds": {
            "trials": sum(trial["seconds"] for trial in trials),
            "methods": sum(one.own_seconds[-1] for one in found.searches),
            "finals": sum(final["seconds"] for final in finals),
        },
        "left_out": found.left_out,
        "figures": figures(found),
        "goals": [asdict(goal) for goal in goals(found)],
    }


def _task(found: Findings, context: Context) -> dict[str, Any]:
    """The network, its data, and what they score uncut."""
    job, reference = context.job, context.reference
    return {
        "model": job.recipe.model.name,
        "data": job.data.name,
        "metric": job.task.metric_name,
        "groups": len(job.space),
        "protocol": job.measure.protocol().digest,
        "dense": {
            "accuracy": reference.accuracy,
            "loss": reference.loss,
            "objective": context.dense_value,
            "costs": dict(reference.costs),
            "test_accuracy": found.dense.test_accuracy if found.dense else None,
            "test_loss": found.dense.test_loss if found.dense else None,
        },
    }
