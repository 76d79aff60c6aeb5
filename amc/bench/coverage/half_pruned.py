"""torch-pruning's own result on the same network: its pruner at ratio 0.5, used as its README shows."""

from __future__ import annotations

import warnings
from textwrap import shorten
from time import perf_counter
from typing import Any

import torch
from torch import nn

from amc import build_model, count_cut_macs, is_out_of_memory
from amc.bench.coverage.network_list import Entry

RATIO = 0.5
REASON = 200  # characters


def prune_by_half(entry: Entry) -> dict[str, Any]:
    """Build a network, let torch-pruning remove half of its channels, run it again.

    Returns:
        ok: the pruner stepped, and the network it left runs and gives an output of the right shape. Whether that output
        is right is not looked at. reason: its error in one line, None where ok. macs, pruned_macs, params,
        pruned_params; seconds: of building the pruner and its step.
    """
    model = build_model(entry.name, options=entry.options).eval()
    inputs = torch.randn(1, 3, entry.size, entry.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        shape = model(inputs).shape
    record: dict[str, Any] = {"ok": False, "reason": None, "macs": count_cut_macs(model, inputs)}
    record["params"] = sum(parameter.numel() for parameter in model.parameters())
    start = perf_counter()
    try:
        _step(model, inputs, int(shape[-1]))
        record["seconds"] = round(perf_counter() - start, 2)
        with torch.no_grad():
            after = model(inputs).shape
    except Exception as error:  # in many ways
        if is_out_of_memory(error):
            raise
        return record | {"reason": shorten(f"{type(error).__name__}: {error}", REASON, placeholder="...")}
    if after != shape:
        return record | {"reason": f"the output's shape became {tuple(after)} from {tuple(shape)}"}
    record["ok"] = True
    record["pruned_macs"] = count_cut_macs(model, inputs)
    record["pruned_params"] = sum(parameter.numel() for parameter in model.parameters())
    return record


def _step(model: nn.Module, inputs: torch.Tensor, classes: int) -> None:
    import torch_pruning

    outputs = [
        module
        for module in model.modules()
        if getattr(module, "out_features", getattr(module, "out_channels", None)) == classes
        and isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch_pruning.pruner.BasePruner(
            model, inputs, importance=torch_pruning.importance.MagnitudeImportance(), pruning_ratio=RATIO,
            ignored_layers=outputs, in_channel_groups={}, out_channel_groups={}, num_heads={},
        ).step()  # fmt: skip
