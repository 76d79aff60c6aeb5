"""Seconds to trace, cut and count networks, beside torch-pruning's build and step on the same ones."""

from __future__ import annotations

import copy
import warnings
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from amc.bench.machine import seconds
from amc.bench.table import Table
from amc.cost.counts import count_macs
from amc.job.job import load_model
from amc.job.recipe import Recipe
from amc.surgery.channel_table import ChannelTable, kept_channels
from amc.surgery.folding import Cutter
from amc.surgery.grouping import trace_groups
from amc.surgery.importance import rank_channels

NETWORKS = ("resnet50", "mobilenet_v2", "densenet121", "efficientnet_b0", "convnext_tiny")
CUTS = 15
THEIRS = 3
POLICIES = 1000


def bench_cut(recipe: Recipe, size: int) -> dict[str, Any]:
    """Cut a recipe's network on images of `size` pixels: ours and torch-pruning in turns, medians.

    torch-pruning's pruner is built and stepped to a ratio of one half; ours cuts random policies, as a trial does: what
    does not depend on the policy was found once, when the network was traced. A network that torch-pruning cannot prune
    has None for its seconds.
    """
    shape = (3, size, size)
    model = load_model(recipe, recipe.model.num_classes, shape)[1]
    tables: list[ChannelTable] = []
    trace_seconds = seconds(lambda: tables.append(trace_groups(model, shape, recipe.model.ignore, recipe.surgery.step)))
    table = tables[0]
    place = rank_channels(model, table, "magnitude")
    rng, space = np.random.default_rng(recipe.seed), table.space
    policies = rng.integers(1, space.high // space.step, size=(POLICIES, len(space)), endpoint=True) * space.step
    macs, counts = count_macs(table), torch.from_numpy(policies).double()
    cutter = Cutter(model, table, None)
    ours: list[float] = []
    theirs: list[float | None] = []
    for turn in range(THEIRS):
        for policy in policies[turn * CUTS // THEIRS : (turn + 1) * CUTS // THEIRS]:
            ours.append(seconds(lambda policy=policy: cutter(kept_channels(table, place, policy))))  # type: ignore[misc]
        theirs.append(_torch_pruning_seconds(model, shape))
    pruned = [taken for taken in theirs if taken is not None]
    return {
        "model": recipe.model.name,
        "size": size,
        "threads": torch.get_num_threads(),
        "groups": len(table.groups),
        "trace_seconds": trace_seconds,
        "cut_seconds": median(ours),
        "torch_pruning_seconds": median(pruned) if pruned else None,
        "ratio": median(pruned) / median(ours) if pruned else None,
        "macs_of_1000_policies_seconds": median(seconds(lambda: macs(counts)) for _ in range(5)),
    }


def _torch_pruning_seconds(model: nn.Module, shape: tuple[int, ...]) -> float | None:
    """What a trial costs when torch-pruning's pruner is built and stepped for it."""
    import torch_pruning

    copied = copy.deepcopy(model)
    outputs = [module for module in copied.modules() if isinstance(module, nn.Linear)]

    def prune() -> None:
        torch_pruning.pruner.BasePruner(
            copied, torch.randn(1, *shape), importance=torch_pruning.importance.MagnitudeImportance(),
            pruning_ratio=0.5, ignored_layers=outputs, in_channel_groups={}, out_channel_groups={}, num_heads={},
        ).step()  # fmt: skip

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return seconds(prune)
        except Exception:  # whatever it may raise on a network that it cannot follow
            return None


def cut_text(rows: list[dict[str, Any]]) -> str:
    """A line a network, then the median ratio."""
    heads = ["model", "trace s", "cut s", "torch-pruning s", "ratio", "MACs of 1,000 policies, s"]
    lines = [_line(row) for row in rows]
    ratios = [row["ratio"] for row in rows if row["ratio"] is not None]
    if len(ratios) > 1:
        lines.append(["median", "", "", "", f"{median(ratios):.0f}x", ""])
    return Table(heads, lines).text


def _line(row: dict[str, Any]) -> list[str]:
    theirs, ratio = row["torch_pruning_seconds"], row["ratio"]
    shown = ["fails", ""] if ratio is None else [f"{theirs:.2f}", f"{ratio:.0f}x"]
    counting = f"{row['macs_of_1000_policies_seconds']:.4f}"
    return [row["model"], f"{row['trace_seconds']:.2f}", f"{row['cut_seconds']:.4f}", *shown, counting]
