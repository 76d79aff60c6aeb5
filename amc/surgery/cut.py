"""A policy cut out of the tensors: one `index_select` per sliced dimension, no graph, no pruner.

A cut network is a new module tree that shares every untouched tensor's shape, never its storage, with the dense one;
the dense network stays as it was, parameters frozen or not, in training mode or not.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amc.surgery.dependencies import CONVOLUTIONS, TRANSPOSED

if TYPE_CHECKING:  # loading a release needs this file, and not what the table needs: optuna, deap
    from amc.surgery.table import OwnerTable

Module = TypeVar("Module", bound=nn.Module)
Kept = NDArray[np.bool_]  # (U,) which units stay


def cut(model: Module, table: OwnerTable, kept: Kept) -> Module:
    """A copy of `model` without the units that are not `kept`, (U,) bool.

    Parameters keep their `requires_grad`, modules their `training` mode, tensors their device, dtype and memory format.
    """
    sliced = cut_tensors(named_tensors(model), table, kept)
    return with_tensors(model, sliced)


def cut_tensors(tensors: Mapping[str, Tensor], table: OwnerTable, kept: Kept) -> dict[str, Tensor]:
    """Slice every tensor by the owner table; those that lose nothing still share their storage."""
    keep = torch.from_numpy(np.append(kept, True))  # the last entry answers for KEPT = -1
    indices: dict[int, Tensor] = {}  # one per distinct owner array: coupled layers share them
    sliced = {}
    for name, tensor in tensors.items():
        small = tensor.detach()
        for dim, owner in table.owners.get(name, {}).items():
            if id(owner) not in indices:
                indices[id(owner)] = keep[torch.from_numpy(owner).long()].nonzero().squeeze(1)
            small = small.index_select(dim, indices[id(owner)].to(small.device))
        sliced[name] = _like(small, tensor)
    return sliced


def with_tensors(model: Module, tensors: Mapping[str, Tensor]) -> Module:
    """A copy of `model` that holds `tensors` (by name, copied) in place of its own, its modules' integers to fit."""
    memo: dict[int, object] = {}
    for tensor in named_tensors(model).values():  # deepcopy then builds modules only; tensors come right after
        memo[id(tensor)] = tensor
    twin = copy.deepcopy(model, memo)
    replaced: dict[int, nn.Parameter] = {}  # by the dense parameter's id: layers that share one go on sharing
    for path, module in twin.named_modules():
        prefix = f"{path}." if path else ""
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in replaced and f"{prefix}{name}" in tensors:
                data = tensors[f"{prefix}{name}"]
                data = data.clone() if data.data_ptr() == parameter.data_ptr() else data
                replaced[id(parameter)] = nn.Parameter(data, requires_grad=parameter.requires_grad)
            module._parameters[name] = replaced.get(id(parameter), parameter)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and f"{prefix}{name}" in tensors:
                module._buffers[name] = tensors[f"{prefix}{name}"].clone()
    resize_modules(twin)
    return twin


def resize_modules(model: nn.Module) -> dict[str, dict[str, int]]:
    """Make every module's own integers agree with its tensors; returns those that changed, by module name."""
    changed: dict[str, dict[str, int]] = {}
    for name, module in model.named_modules():
        for attribute, value in _widths(module).items():
            if getattr(module, attribute) != value:
                setattr(module, attribute, (value,) if attribute == "normalized_shape" else value)
                changed.setdefault(name, {})[attribute] = value
    return changed


def _widths(module: nn.Module) -> dict[str, int]:
    """The integers that follow from the shapes of a module's tensors."""
    if isinstance(module, TRANSPOSED):
        return {"in_channels": module.weight.shape[0], "out_channels": module.weight.shape[1] * module.groups}
    if isinstance(module, CONVOLUTIONS):
        out, inward = module.weight.shape[:2]
        groups = max(1, module.groups * out // module.out_channels)
        return {"out_channels": out, "groups": groups, "in_channels": inward * groups}
    if isinstance(module, nn.Linear):
        return {"out_features": module.weight.shape[0], "in_features": module.weight.shape[1]}
    if isinstance(module, nn.GroupNorm) and module.weight is not None:
        channels = module.weight.shape[0]
        return {"num_groups": module.num_groups * channels // module.num_channels, "num_channels": channels}
    if isinstance(module, nn.Embedding):
        return {"embedding_dim": module.weight.shape[1]}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": module.weight.shape[0]}
    if hasattr(module, "num_features"):
        tensor = module.running_mean if getattr(module, "running_mean", None) is not None else module.weight
        if isinstance(tensor, Tensor) and isinstance(module.num_features, int):
            return {"num_features": tensor.shape[0]}
    return {}


def mask(model: Module, table: OwnerTable, kept: Kept) -> Module:
    """A dense copy of `model` in which every slice of every removed unit is zero: what a cut must compute."""
    twin = copy.deepcopy(model)
    zero = torch.from_numpy(np.append(~kept, False))
    with torch.no_grad():
        for name, tensor in named_tensors(twin).items():
            if name.endswith("running_var"):
                continue  # nothing is divided by zero; with mean, weight and bias zero it no longer matters
            for dim, owner in table.owners.get(name, {}).items():
                gone = zero[torch.from_numpy(owner).long()].nonzero().squeeze(1)
                tensor.index_fill_(dim, gone.to(tensor.device), 0)
    return twin


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer under each of its names."""
    named = model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    return {name: tensor for pairs in named for name, tensor in pairs}


def _like(tensor: Tensor, model: Tensor) -> Tensor:
    """Keep channels-last weights channels-last: slicing along a dimension may have lost it."""
    if tensor.ndim == 4 and model.is_contiguous(memory_format=torch.channels_last):
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor.contiguous()
