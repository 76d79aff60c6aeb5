"""A policy cut out of the tensors: one `index_select` per sliced dimension, no graph, no pruner.

A cut network is a new module tree that shares every untouched tensor's shape, never its storage, with the dense one;
the dense network stays as it was, parameters frozen or not, in training mode or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amc.surgery.blueprint import Blueprint
from amc.surgery.fitting import fit

if TYPE_CHECKING:  # loading a release needs this file, and not what the table needs: optuna, deap
    from amc.surgery.channel_table import ChannelTable, IndexMaps

Module = TypeVar("Module", bound=nn.Module)
Kept = NDArray[np.bool_]  # (C,) which coupled channels stay


def cut_channels(model: Module, table: ChannelTable, kept: Kept) -> Module:
    """A copy of `model` without the coupled channels that are not `kept`, (C,) bool.

    Parameters keep their `requires_grad`, modules their `training` mode, tensors their device, dtype and memory format.
    """
    return assembled(Blueprint(model), table, kept, cut_tensors(named_tensors(model), table, kept))


def assembled(blueprint: Blueprint[Module], table: ChannelTable, kept: Kept, tensors: Mapping[str, Tensor]) -> Module:
    """A copy of a network that holds tensors already cut to the `kept` channels, and runs."""
    small, modules = blueprint.build(tensors)
    fit(modules, table, kept)
    return small


def cut_tensors(tensors: Mapping[str, Tensor], table: ChannelTable, kept: Kept) -> dict[str, Tensor]:
    """Slice every tensor by the index_map table; those that lose nothing still share their storage."""
    keep = np.append(kept, True)  # the last entry is for KEPT = -1
    indices: dict[tuple[int, ...], Tensor] = {}  # one per distinct index_maps: coupled layers share them
    sliced = {}
    for name, tensor in tensors.items():
        small = tensor.detach()
        for dim, index_maps in table.index_maps.get(name, {}).items():
            key = tuple(map(id, index_maps))
            if key not in indices:
                indices[key] = torch.from_numpy(np.flatnonzero(stays(index_maps, keep)))
            if len(indices[key]) < small.shape[dim]:
                small = small.index_select(dim, indices[key].to(small.device))
        sliced[name] = _like(small, tensor)
    return sliced


def stays(index_maps: IndexMaps, keep: Kept) -> Kept:
    """(length,) which indices of a dimension are left, given which coupled channels are kept, and KEPT, (C + 1,)."""
    left: Kept = np.logical_and.reduce([keep[index_map] for index_map in index_maps])
    return left


def with_tensors(model: Module, tensors: Mapping[str, Tensor]) -> Module:
    """A copy of `model` that holds `tensors` (by name, copied) in place of its own, its modules' integers to fit."""
    return Blueprint(model).build(tensors)[0]


def zero_channels(model: Module, table: ChannelTable, kept: Kept) -> Module:
    """A dense copy of `model` in which every slice of every removed channel is zero: what a cut must compute."""
    keep = np.append(kept, True)
    masked = {}
    for name, tensor in named_tensors(model).items():
        axes = table.index_maps.get(name, {})
        masked[name] = zeroed = tensor.detach().clone() if axes else tensor.detach()
        if name.endswith("running_var"):
            continue  # nothing is divided by zero; with mean, weight and bias zero it no longer matters
        for dim, index_maps in axes.items():
            gone = torch.from_numpy(np.flatnonzero(~stays(index_maps, keep)))
            zeroed.index_fill_(dim, gone.to(tensor.device), 0)
    return with_tensors(model, masked)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer under each of its names."""
    parameters, buffers = {}, {}
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        parameters.update({prefix + name: tensor for name, tensor in module._parameters.items() if tensor is not None})
        buffers.update({prefix + name: tensor for name, tensor in module._buffers.items() if tensor is not None})
    return {**parameters, **buffers}


def _like(tensor: Tensor, model: Tensor) -> Tensor:
    """Keep channels-last weights channels-last: slicing along a dimension may have lost it."""
    if tensor.ndim == 4 and model.is_contiguous(memory_format=torch.channels_last):
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor.contiguous()
