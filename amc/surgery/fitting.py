"""After a cut: modules' integers agree with their tensors, and replacements take over where a module cannot go on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from amc.surgery.coupled_channels import KEPT
from amc.surgery.empty_branch import replace_if_empty
from amc.surgery.layers import CONVOLUTIONS, TRANSPOSED
from amc.surgery.narrow_attention import can_narrow_attention, narrow_attention
from amc.surgery.narrow_norm import narrow_norm
from amc.surgery.replacement import Replacement, replace_module
from amc.surgery.shape_patches import ShapePatched, ShapePatches

if TYPE_CHECKING:
    from amc.surgery.channel_table import ChannelTable


def fit(modules: Mapping[str, nn.Module], table: ChannelTable, kept: NDArray[np.bool_]) -> None:
    """Make a freshly cut network run; its modules are given by name, its layers' integers are right already."""
    keep = np.append(kept, True)
    attention: dict[str, dict[str, int]] = {}
    for integer in table.integers:
        left = int(np.logical_and.reduce([keep[index_map] for index_map in integer.index_maps]).sum())
        module = modules[integer.module]
        if can_narrow_attention(module):
            attention.setdefault(integer.module, {})[integer.attribute] = left
        elif integer.item is None:
            setattr(module, integer.attribute, left)
        else:
            values = list(getattr(module, integer.attribute))
            values[integer.item] = left
            setattr(module, integer.attribute, type(getattr(module, integer.attribute))(values))
    for name, calls in _shape_patches(table, keep).items():
        replace_module(modules[name], ShapePatched, ShapePatches(calls))
    for name, rule in table.norms.items():
        if _width(modules[name]) < rule.full_width:
            narrow_norm(modules[name], rule.full_width, rule)
    for name, module in modules.items():
        if isinstance(module, nn.MultiheadAttention) and can_narrow_attention(module) and _is_cut(module):
            _fit_attention(module, attention.get(name, {}))
    if not np.bincount(table.channel_group[kept], minlength=len(table.groups)).all():  # a group keeps nothing
        for module in modules.values():
            replace_if_empty(module)


def _shape_patches(table: ChannelTable, keep: NDArray[np.bool_]) -> dict[str, dict[str, Any]]:
    """Module name -> call site of a request -> its patches, turn by turn; nothing where nothing is cut."""
    found: dict[str, dict[str, Any]] = {}
    for call in () if keep.all() else table.shape_requests:
        sizes = [_size_left(index_maps, keep) for index_maps in call.sizes]
        patches = found.setdefault(call.module, {}).setdefault(call.site, [])
        patches += [None] * (call.turn + 1 - len(patches))
        patches[call.turn] = sizes if call.factor is None else call.factor
    return found


def _size_left(index_maps: tuple[NDArray[np.int32], ...], keep: NDArray[np.bool_]) -> int | None:
    """What is left of a size: negative where nothing of it can be cut, which is less sure; None if nothing is known."""
    if not index_maps:
        return None
    left = int(np.logical_and.reduce([keep[index_map] for index_map in index_maps]).sum())
    return left if any((index_map != KEPT).any() for index_map in index_maps) else -left


def _fit_attention(module: Any, sizes: Mapping[str, int]) -> None:
    heads, width = sizes.get("num_heads", module.num_heads), sizes.get("head_dim", module.head_dim)
    scale = module.settings.scale if isinstance(module, Replacement) else module.head_dim**-0.5
    narrow_attention(module, heads, width, scale)


def _is_cut(module: Any) -> bool:
    rows, width = module.in_proj_weight.shape
    return bool(rows != 3 * module.embed_dim or width != module.embed_dim)


def _width(module: nn.Module) -> int:
    return next(p.numel() for p in module.parameters(recurse=False))


def walk(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """`named_modules`, several times faster: a cut walks a network more than once."""
    found: list[tuple[str, nn.Module]] = []
    seen: set[int] = set()

    def visit(path: str, module: nn.Module) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        found.append((path, module))
        prefix = f"{path}." if path else ""
        for name, child in module._modules.items():
            if child is not None:
                visit(prefix + name, child)

    visit("", model)
    return found


def resize_layers(modules: Iterable[nn.Module]) -> None:
    """Make the integers of every layer agree with its tensors' shapes."""
    for module in modules:
        for attribute, value in widths_of(module).items():
            if getattr(module, attribute) != value:
                setattr(module, attribute, (value,) if attribute == "normalized_shape" else value)


def widths_of(module: nn.Module) -> dict[str, int]:
    """The integers that follow from the shapes of a module's tensors."""
    if isinstance(module, TRANSPOSED):
        return {"in_channels": module.weight.shape[0], "out_channels": module.weight.shape[1] * module.groups}
    if isinstance(module, CONVOLUTIONS):
        out, inward = module.weight.shape[:2]
        groups = max(1, module.groups * out // module.out_channels) if module.out_channels else 1
        return {"out_channels": out, "groups": groups, "in_channels": inward * groups}
    if isinstance(module, nn.Linear):
        return {"out_features": module.weight.shape[0], "in_features": module.weight.shape[1]}
    if isinstance(module, nn.GroupNorm) and module.weight is not None and module.num_groups > 1:
        channels = module.weight.shape[0]
        return {"num_groups": module.num_groups * channels // module.num_channels, "num_channels": channels}
    if isinstance(module, nn.GroupNorm) and module.weight is not None:
        return {"num_channels": module.weight.shape[0]}
    if isinstance(module, nn.Embedding):
        return {"embedding_dim": module.weight.shape[1]}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": module.weight.shape[0]}
    if hasattr(module, "num_features"):
        tensor = getattr(module, "running_mean", None)
        tensor = getattr(module, "weight", None) if tensor is None else tensor
        if isinstance(tensor, Tensor) and isinstance(module.num_features, int):
            return {"num_features": tensor.shape[0]}
    return {}
