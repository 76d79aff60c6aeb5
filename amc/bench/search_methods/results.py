"""What `results.json` holds: figures and goals, with all that they depend on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from amc.bench.machine import machine
from amc.bench.search_methods.context import Arena
from amc.bench.search_methods.findings import Findings, figures
from amc.bench.search_methods.goals import goals

FORMAT = "amc-contest/1"


def results(found: Findings, arena: Arena) -> dict[str, Any]:
    """The whole record, JSON-able."""
    recipe, store = found.recipe, arena.store
    return {
        "format": FORMAT,
        "name": recipe.name,
        "about": recipe.about,
        "label": recipe.label,
        "methods": recipe.named_methods,
        "recipe": recipe.model_dump(by_alias=True, exclude_none=True),
        "machine": machine(),
        "task": _task(found, arena),
        "progress": {
            "searches": len(found.searches),
            "searches_wanted": len(found.wanted),
            "labels": len(store),
            "finals": sum(final.seconds > 0 for final in store.finals),
        },
        "seconds": {
            "labels": store.label_seconds,
            "methods": sum(one.own_seconds[-1] for one in found.searches),
            "finals": sum(final.seconds for final in store.finals),
        },
        "left_out": found.left_out,
        "figures": figures(found),
        "goals": [asdict(goal) for goal in goals(found)],
    }


def _task(found: Findings, arena: Arena) -> dict[str, Any]:
    """The network, its data, and what they score uncut."""
    dense, reference = arena.dense, arena.reference
    return {
        "model": dense.recipe.model.name,
        "data": dense.splits.name,
        "metric": dense.task.metric_name,
        "groups": len(dense.space),
        "protocol": dense.protocol().digest,
        "dense": {
            "accuracy": reference.accuracy,
            "loss": reference.loss,
            "label": arena.dense_label,
            "costs": dict(reference.costs),
            "test_accuracy": found.dense.test_accuracy if found.dense else None,
            "test_loss": found.dense.test_loss if found.dense else None,
        },
    }
