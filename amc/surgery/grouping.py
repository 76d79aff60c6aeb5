"""From a network to its table of channel groups, in this process or in a child process with limits."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from amc.surgery.channel_table import ChannelTable
from amc.surgery.materialised import materialise
from amc.surgery.trace_cache import TraceCache, read_trace_cache, write_trace_cache
from amc.system.isolation import Limits, isolated
from amc.zoo.call import Call

TABLE, KEY = "table.safetensors", "table"


def trace_groups(
    model: nn.Module, example: Call | tuple[int, ...], ignore: Sequence[str] = (), step: int = 8
) -> ChannelTable:
    """The channel table of `model`, every group proved by cutting it.

    Layers whose weights are derived from others (weight standardisation) are first turned into plain ones, in place.

    Args:
        example: what the network is called with for one example, or the shape of one: noise is then drawn.
        ignore: names of modules none of whose channels may be removed.
        step: keep-counts are multiples of it where a group is wide enough.

    Raises:
        ModelError: the network cannot be traced, or nothing in it can be cut.
    """
    from amc.surgery.proof import proved_table  # what reads a kept table needs no tracer

    if not isinstance(example, Call):
        example = Call((torch.randn(1, *example, generator=torch.Generator().manual_seed(0)),))
    example = example.to(next(model.parameters()).device)
    materialise(model, example)
    return proved_table(model, example, ignore, step)


def trace_isolated(model: nn.Module, example: Call, ignore: Sequence[str], step: int, limits: Limits) -> ChannelTable:
    """`trace_groups` in a child process, on the CPU; the network is left in the same state.

    Raises:
        LimitExceeded: tracing took more time or memory than `limits` allow.
        ModelError: the network cannot be traced, or nothing in it can be cut.
    """
    on_cpu = all(tensor.device.type == "cpu" for tensor in (*model.parameters(), *model.buffers()))
    traced, call = (model, example) if on_cpu else (copy.deepcopy(model).cpu(), example.to("cpu"))

    def work(folder: Path) -> None:
        table = trace_groups(traced, call, ignore, step)
        unranked = np.zeros(len(table.channel_group), dtype=np.int32)
        write_trace_cache(folder / TABLE, KEY, TraceCache(table, unranked, None))

    with isolated(work, limits) as folder:
        found = read_trace_cache(folder / TABLE, KEY)
    assert found is not None  # the child wrote it, or an error was raised
    materialise(model, example)  # the child's copy is gone, and the table is of a materialised network
    return found.table
