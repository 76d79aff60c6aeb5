"""From a network that another tool pruned to the policy of ours that is nearest to it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amc import Job, ModelError
from amc_search import Policies

WIDTH = ":width"  # ends the name of a group that is the width of heads
LONGEST = 200  # characters of another tool's error


class PeerFailed(ModelError):
    """Another tool does not run on this network, or not under these caps; the message is its reason in one line."""


def failure(tool: str, error: Exception) -> Exception:
    """What to raise for an error of another tool: the error itself where memory was refused."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return error
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return PeerFailed(f"{tool} fails on this network: {text if len(text) <= LONGEST else text[: LONGEST - 3] + '...'}")


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer under each of its names."""
    parameters, buffers = (of(remove_duplicate=False) for of in (model.named_parameters, model.named_buffers))
    return {**dict(parameters), **dict(buffers)}


def policy_left(job: Job, pruned: nn.Module) -> Policies:
    """The legal policy (d,) nearest to the widths that are left in `pruned`, a changed copy of the dense network.

    Widths are read off the shapes of the tensors, by name. Where the other tool couples layers otherwise than we do, a
    group takes the median of its tensors. No group is dropped: nor did the other tool.

    Raises:
        PeerFailed: `pruned` has other tensors than the dense network, or other dimensions.
    """
    space = job.space
    counts = kept_fractions(job, pruned) * space.high
    return space.nearest(counts, least=space.step)


def kept_fractions(job: Job, pruned: nn.Module) -> NDArray[np.float64]:
    """The share of each group's channels that is left, (d,): the median over all tensors that hold the group alone.

    Where heads and their width share a dimension, its loss is put down to the width, as a pruner of channels has it.
    """
    table, left = job.trace.table, named_tensors(pruned)
    alone: list[list[float]] = [[] for _ in table.groups]
    shared: list[list[float]] = [[] for _ in table.groups]
    for name, axes in table.index_maps.items():
        if name not in left or left[name].ndim <= max(axes):
            raise PeerFailed(f"a pruned network must keep its tensors, but {name} is gone or has other dimensions")
        for dim, index_maps in axes.items():
            owned = np.logical_or.reduce([index_map >= 0 for index_map in index_maps])
            share = (left[name].shape[dim] - (~owned).sum()) / owned.sum()
            groups = np.unique(
                np.concatenate([table.channel_group[index_map[index_map >= 0]] for index_map in index_maps])
            )
            for group in groups:
                (alone if len(groups) == 1 else shared)[group].append(float(share))
    found = np.ones(len(table.groups))
    for index, group in enumerate(table.groups):
        if alone[index]:
            found[index] = np.median(alone[index])
        elif shared[index] and group.name.endswith(WIDTH):
            found[index] = np.median(shared[index])
    return found
