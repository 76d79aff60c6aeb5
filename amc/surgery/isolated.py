"""Tracing a network in a child process: what it may take in time and memory stands in the recipe."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
from torch import nn

from amc.job.recipe import Recipe
from amc.surgery.baking import bake
from amc.surgery.table import OwnerTable
from amc.surgery.trace_cache import Anatomy, read_anatomy, write_anatomy
from amc.system.isolation import Limits, isolated
from amc.zoo.call import Call

TABLE, KEY = "table.safetensors", "table"


def trace_limits(recipe: Recipe) -> Limits:
    """What tracing a recipe's network may take."""
    return Limits(recipe.surgery.trace_seconds, recipe.surgery.trace_gigabytes)


def trace_apart(model: nn.Module, example: Call, recipe: Recipe) -> OwnerTable:
    """`amc.job.dense.trace_groups` in a child process, on the CPU; the network is left in the same state.

    Raises:
        LimitExceeded: tracing took more time or memory than the recipe allows.
        ModelError: the network cannot be traced, or nothing in it can be cut.
    """
    from amc.job.dense import trace_groups

    on_cpu = all(tensor.device.type == "cpu" for tensor in (*model.parameters(), *model.buffers()))
    traced, call = (model, example) if on_cpu else (copy.deepcopy(model).cpu(), example.to("cpu"))

    def work(folder: Path) -> None:
        table = trace_groups(traced, call, recipe)
        unranked = np.zeros(len(table.unit_group), dtype=np.int32)
        write_anatomy(folder / TABLE, KEY, Anatomy(table, unranked, None))

    with isolated(work, trace_limits(recipe)) as folder:
        found = read_anatomy(folder / TABLE, KEY)
    assert found is not None  # the child wrote it, or an error was raised
    bake(model, example)  # the child's copy is gone, and the table is of a baked network
    return found.table
