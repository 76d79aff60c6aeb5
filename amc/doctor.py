"""`amc doctor`: what of a network can be cut, what cannot and why, and how far its cost can go down."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import torch

from amc.budget import format_cost, format_flops_2x
from amc.cost.counts import count_bytes, count_layer_runs, count_macs, count_params
from amc.dense import load_model, trace_groups
from amc.errors import UsageError
from amc.recipe import Recipe


def examine(recipe: Recipe, input_shape: str | None, *, explicit_data: bool) -> dict[str, Any]:
    """Trace a recipe's network and count its reachable costs; no trial is measured.

    Args:
        input_shape: "3x224x224"; None: the data's when data was asked for or the network is ours, else 3x224x224.
        explicit_data: whether the user named the data.

    Raises:
        ModelError: the network cannot be built, traced or cut.
        UsageError: the shape is malformed.
    """
    shape, classes = _input_of(recipe, input_shape, explicit_data)
    source, model = load_model(recipe, classes, shape)
    start = perf_counter()
    table = trace_groups(model, shape, recipe)
    seconds = perf_counter() - start
    runs = count_layer_runs(model, torch.zeros(1, *shape))
    costs = [count_macs(model, table, runs), count_params(model, table), count_bytes(model, table)]
    low, high = (torch.from_numpy(policy)[None].double() for policy in (table.space.low, table.space.high))
    layers = list(runs.positions)
    alone = _alone(table.space.high, table.space.low, costs[0])
    return {
        "model": source.name,
        "input_shape": list(shape),
        "trace_seconds": seconds,
        "groups": [
            {"name": g.name, "channels": g.size, "step": g.step, "granularity": g.granularity,
             "layers": list(g.layers), "macs_share": share}
            for g, share in zip(table.groups, alone, strict=True)
        ],
        "frozen": [vars(frozen) for frozen in table.frozen],
        "layers": len(layers),
        "fixed_macs": runs.other_macs,
        "dense": {cost.unit: float(cost(high)) for cost in costs},
        "smallest": {cost.unit: float(cost(low)) for cost in costs},
    }  # fmt: skip


def _input_of(recipe: Recipe, text: str | None, explicit_data: bool) -> tuple[tuple[int, int, int], int | None]:
    from amc.models.zoo import FACTORIES

    if text is not None:
        parts = text.lower().split("x")
        if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
            raise UsageError(f"--input must be CHANNELSxHEIGHTxWIDTH, but is {text!r}; e.g. 3x224x224")
        channels, height, width = map(int, parts)
        return (channels, height, width), recipe.model.num_classes
    if explicit_data or recipe.model.name in FACTORIES:
        from amc.data.sources import load_splits

        data = recipe.data
        splits = load_splits(data.name, size=data.size, split_seed=data.split_seed, cache=data.cache)
        return splits.input_shape, splits.num_classes
    size = recipe.data.size or 224
    return (3, size, size), recipe.model.num_classes


def _alone(high: Any, low: Any, macs: Any) -> list[float]:
    """The share of all MACs that goes when one group alone is made as small as it can be."""
    policies = torch.from_numpy(high).repeat(len(high), 1)
    policies[range(len(high)), range(len(high))] = torch.from_numpy(low)
    dense = macs(torch.from_numpy(high)[None])
    shares: list[float] = (1 - macs(policies) / dense).tolist()
    return shares


def examination_text(found: dict[str, Any]) -> str:
    """A table of groups, then what is frozen and why, then the reachable costs."""
    shape = "x".join(map(str, found["input_shape"]))
    lines = [
        f"{found['model']} on {shape}: {len(found['groups'])} groups, traced in {found['trace_seconds']:.1f} s",
        "",
        f"{'group':<40}{'channels':>9}{'step':>6}{'MACs it holds':>15}  layers",
    ]
    for group in found["groups"]:
        others = [name for name in group["layers"] if name != group["name"]]
        more = f"{', '.join(others[:2])}{f' and {len(others) - 2} more' if len(others) > 2 else ''}"
        lines.append(f"{group['name']:<40}{group['channels']:>9}{group['step']:>6}{group['macs_share']:>14.1%}  {more}")
    lines += ["", "not cut:"] + [
        f"  {frozen['name']} ({frozen['channels']} channels): {frozen['reason']}" for frozen in found["frozen"]
    ]
    dense, smallest = found["dense"], found["smallest"]
    lines += ["", f"{'':<12}{'dense':>34}{'smallest':>34}"]
    for unit in ("macs", "params", "bytes"):
        lines.append(f"{unit:<12}{format_cost(unit, dense[unit]):>34}{format_cost(unit, smallest[unit]):>34}")
    lines.append(f"{'FLOPs':<12}{format_flops_2x(dense['macs']):>34}{format_flops_2x(smallest['macs']):>34}")
    return "\n".join(lines)
