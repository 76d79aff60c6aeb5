"""Seconds to trace, cut and count networks, beside torch-pruning's build and step on the same ones."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from amc import Measure, MeasureSettings, Recipe, RecoverySettings, Trace, build_model, trace
from amc.bench.machine import seconds
from amc.bench.table import Table

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
    given, shape = recipe.model, (3, size, size)
    model = build_model(
        given.name, weights=given.weights, num_classes=given.num_classes, in_channels=3, size=size,
        options=given.options, seed=recipe.seed,
    ).eval()  # fmt: skip
    images = torch.randn(1, *shape, generator=torch.Generator().manual_seed(recipe.seed))
    traced: list[Trace] = []
    step = recipe.surgery.step
    trace_seconds = seconds(lambda: traced.append(trace(model, images, ignore=given.ignore, round_to=step)))
    (network,) = traced
    batches, settings = [(images, torch.zeros(1).long())], MeasureSettings(recovery=RecoverySettings(fold=False))
    measure = Measure(network, train=batches, validation=batches, settings=settings)
    rng, space = np.random.default_rng(recipe.seed), network.space
    policies = rng.integers(1, space.high // space.step, size=(POLICIES, len(space)), endpoint=True) * space.step
    macs, counts = network.costs["macs"], torch.from_numpy(policies).double()
    measure.cut(space.high)  # channels are ranked once
    ours: list[float] = []
    theirs: list[float | None] = []
    for turn in range(THEIRS):
        for policy in policies[turn * CUTS // THEIRS : (turn + 1) * CUTS // THEIRS]:
            ours.append(seconds(partial(measure.cut, policy)))
        theirs.append(_torch_pruning_seconds(model, shape))
    pruned = [taken for taken in theirs if taken is not None]
    return {
        "model": recipe.model.name,
        "size": size,
        "threads": torch.get_num_threads(),
        "groups": len(network.groups),
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
