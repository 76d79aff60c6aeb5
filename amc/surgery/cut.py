"""A policy cut out of the tensors: one `index_select` per sliced dimension, no graph, no pruner.

A cut network is a new module tree that shares every untouched tensor's shape, never its storage, with the dense one;
the dense network stays as it was, parameters frozen or not, in training mode or not.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amc.surgery.fitting import fit, resize_layers, walk

if TYPE_CHECKING:  # loading a release needs this file, and not what the table needs: optuna, deap
    from amc.surgery.table import Owners, OwnerTable

Module = TypeVar("Module", bound=nn.Module)
Kept = NDArray[np.bool_]  # (U,) which units stay
PLAIN = frozenset((type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size))  # never change


def cut(model: Module, table: OwnerTable, kept: Kept) -> Module:
    """A copy of `model` without the units that are not `kept`, (U,) bool.

    Parameters keep their `requires_grad`, modules their `training` mode, tensors their device, dtype and memory format.
    """
    return assembled(model, table, kept, cut_tensors(named_tensors(model), table, kept))


def assembled(model: Module, table: OwnerTable, kept: Kept, tensors: Mapping[str, Tensor]) -> Module:
    """A copy of `model` that holds tensors already cut to the `kept` units, and runs."""
    small = with_tensors(model, tensors)
    fit(small, table, kept)
    return small


def cut_tensors(tensors: Mapping[str, Tensor], table: OwnerTable, kept: Kept) -> dict[str, Tensor]:
    """Slice every tensor by the owner table; those that lose nothing still share their storage."""
    keep = np.append(kept, True)  # the last entry answers for KEPT = -1
    indices: dict[tuple[int, ...], Tensor] = {}  # one per distinct owners: coupled layers share them
    sliced = {}
    for name, tensor in tensors.items():
        small = tensor.detach()
        for dim, owners in table.owners.get(name, {}).items():
            key = tuple(map(id, owners))
            if key not in indices:
                indices[key] = torch.from_numpy(np.flatnonzero(stays(owners, keep)))
            small = small.index_select(dim, indices[key].to(small.device))
        sliced[name] = _like(small, tensor)
    return sliced


def stays(owners: Owners, keep: Kept) -> Kept:
    """(length,) which indices of a dimension are left, given what is kept of the units and of KEPT, (U + 1,)."""
    left: Kept = np.logical_and.reduce([keep[owner] for owner in owners])
    return left


def with_tensors(model: Module, tensors: Mapping[str, Tensor]) -> Module:
    """A copy of `model` that holds `tensors` (by name, copied) in place of its own, its modules' integers to fit."""
    twin = _copied_tree(model)
    replaced: dict[int, nn.Parameter] = {}  # by the dense parameter's id: layers that share one go on sharing
    modules = walk(twin)
    for path, module in modules:
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
                data = tensors[f"{prefix}{name}"]
                module._buffers[name] = data.clone() if data.data_ptr() == buffer.data_ptr() else data
    resize_layers(module for _, module in modules)
    return twin


def _copied_tree(model: Module) -> Module:
    """`copy.deepcopy` of the modules alone, many times faster: the tensors are still those of `model`.

    Modules are made anew with their attributes; what is neither plain nor a module is left to `deepcopy`, and so is the
    whole network where a class says itself how it is copied.
    """
    modules = [module for _, module in walk(model)]
    memo: dict[int, Any] = {
        id(tensor): tensor for module in modules for tensor in (*module._parameters.values(), *module._buffers.values())
    }
    if any(_copies_itself(kind) for kind in set(map(type, modules))):
        return copy.deepcopy(model, memo)
    for module in modules:
        memo[id(module)] = type(module).__new__(type(module))
    for module in modules:
        state = memo[id(module)].__dict__
        state.update(module.__dict__)
        for name, value in module.__dict__.items():
            if type(value) not in PLAIN:
                state[name] = _copied(value, memo)
    return memo[id(model)]  # type: ignore[no-any-return]


def _copies_itself(kind: type[nn.Module]) -> bool:
    rules = ("__reduce_ex__", "__reduce__", "__getstate__")
    return hasattr(kind, "__deepcopy__") or any(getattr(kind, rule) is not getattr(nn.Module, rule) for rule in rules)


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """An attribute of a module, copied as `deepcopy` would."""
    kind = type(value)
    if kind is OrderedDict and not value:  # hooks, mostly none; never shared by two modules
        return OrderedDict()
    if kind in PLAIN:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind is dict:  # parameters, buffers, submodules
        memo[id(value)] = {key: _copied(item, memo) for key, item in value.items()} if value else {}
    elif kind in (tuple, set) and PLAIN.issuperset(map(type, value)):
        memo[id(value)] = kind(value)
    else:
        return copy.deepcopy(value, memo)
    return memo[id(value)]


def mask(model: Module, table: OwnerTable, kept: Kept) -> Module:
    """A dense copy of `model` in which every slice of every removed unit is zero: what a cut must compute."""
    keep = np.append(kept, True)
    masked = {}
    for name, tensor in named_tensors(model).items():
        axes = table.owners.get(name, {})
        masked[name] = zeroed = tensor.detach().clone() if axes else tensor.detach()
        if name.endswith("running_var"):
            continue  # nothing is divided by zero; with mean, weight and bias zero it no longer matters
        for dim, owners in axes.items():
            gone = torch.from_numpy(np.flatnonzero(~stays(owners, keep)))
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
