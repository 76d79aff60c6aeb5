"""Operations that take parts, join them, or look them up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from amc.surgery.operators.registry import dim_of, note_sizes, rule
from amc.surgery.trace_record import NONE, Factor, Operand, Slots
from amc.surgery.trace_state import Operation


@rule("select")
def _select(call: Operation) -> None:
    before, dim, index = call.args[0], dim_of(call.args[1], call.args[0].ndim), call.args[2]
    call.set(_picked(call, before, dim, index), before)


@rule("unbind")
def _unbind(call: Operation) -> None:
    before, dim = call.args[0], dim_of(call.arg("dim", 0), call.args[0].ndim)
    for index, tensor in enumerate(call.result):
        call.set(_picked(call, before, dim, index), before, tensor=tensor)


def _picked(call: Operation, before: Tensor, dim: int, index: int) -> list[Factor]:
    """One index of a dimension, which goes."""
    lower = {d: d - (d > dim) for d in range(before.ndim) if d != dim}
    factors = []
    for factor in call.of(before).factors:
        if dim not in factor.dims:
            factors.append(factor.moved(lower))
            continue
        call.record.fix(factor, dim, f"{call.where} takes a part by its number")
        if len(factor.dims) > 1:
            rest = [d for d in factor.dims if d != dim]
            part = np.take(factor.slots, [index], factor.dims.index(dim)).squeeze(factor.dims.index(dim))
            factors.append(Factor(tuple(lower[d] for d in rest), part))
    return factors


@rule("slice", "narrow")
def _slice(call: Operation) -> None:
    before, after = call.args[0], call.out
    dim = dim_of(call.arg("dim", 0), before.ndim)
    start = call.arg("start") or 0
    step = call.arg("step", 1) or 1
    start = max(0, start + before.shape[dim] if start < 0 else start)
    if call.state.patchable and step == 1:  # its bounds follow what is left
        return _free_part(call, before, after, dim, np.arange(start, start + after.shape[dim]))
    _part(call, before, after, dim, np.arange(start, start + step * after.shape[dim], step))


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "unsafe_chunk", "tensor_split")
def _split(call: Operation) -> None:
    before = call.args[0]
    dim = dim_of(call.arg("dim", 0), before.ndim)
    start = 0
    uneven = len({part.shape[dim] for part in call.result}) > 1
    take = _free_part if call.state.patchable and uneven else _part
    for part in call.result:
        take(call, before, part, dim, np.arange(start, start + part.shape[dim]))
        start += part.shape[dim]


def _free_part(call: Operation, before: Tensor, after: Tensor, dim: int, places: Slots) -> None:
    """A part that goes on with what is left of it."""
    factor = call.of(before).factor(dim)
    factors = [f for f in call.of(before).factors if f is not factor]
    if factor is not None:
        if len(factor.dims) > 1 and len(places) < before.shape[dim]:
            call.record.fix(factor, dim, f"{call.where} takes a part")
        factors.append(Factor(factor.dims, factor.slots.take(places, factor.dims.index(dim))))
    note_sizes(call, [f for f in factors if dim in f.dims])
    call.set(factors, before, tensor=after)


def _part(call: Operation, before: Tensor, after: Tensor, dim: int, places: Slots) -> None:
    """Some places of one dimension. Equal parts stay equal if each loses the same places."""
    factor = call.of(before).factor(dim)
    whole, length = before.shape[dim], len(places)
    factors = [f for f in call.of(before).factors if f is not factor]
    if factor is not None:
        if length and length < whole:
            _divide(call, factor, dim, whole, places)
        if length:
            factors.append(Factor(factor.dims, factor.slots.take(places, factor.dims.index(dim))))
    note_sizes(call, [f for f in factors if dim in f.dims])
    call.set(factors, before, tensor=after)


def _divide(call: Operation, factor: Factor, dim: int, whole: int, places: Slots) -> None:
    """Equal parts: one after the other (chunk), or every n-th place."""
    length = len(places)
    contiguous = length == 1 or places[1] - places[0] == 1
    if whole % length or (contiguous and places[0] % length) or len(factor.dims) > 1:
        return call.record.fix(factor, dim, f"{call.where} takes an uneven part")
    parts = factor.slots.reshape(-1, length) if contiguous else factor.slots.reshape(length, -1).T
    if length == 1:
        return call.record.fix(factor, dim, f"{call.where} takes a part by its number")
    call.record.join(parts[:1], parts)


@rule("glu")
def _glu(call: Operation) -> None:
    """One half of a dimension gates the other."""
    before = call.args[0]
    dim = dim_of(call.arg("dim", -1), before.ndim)
    _part(call, before, call.out, dim, np.arange(before.shape[dim] // 2))


@rule("cat", "concat", "concatenate", "stack", "hstack")
def _cat(call: Operation) -> None:
    tensors, out = list(call.args[0]), call.out
    dim = dim_of(call.arg("dim", 0), out.ndim)
    if call.operation == "stack":
        raised = {d: d + (d >= dim) for d in range(out.ndim - 1)}
        operands = [
            Operand([f.moved(raised) for f in call.of(t).factors], _with(t.shape, dim, 0), call.of(t).pliant)
            for t in tensors
        ]
        return call.set(call.record.couple(operands, call.where), *tensors)
    tensors = [t for t in tensors if t.numel() or t.ndim == out.ndim]
    along, across = [], []
    for tensor in tensors:
        factor = call.of(tensor).factor(dim)
        if factor is not None and len(factor.dims) > 1:
            call.record.fix(factor, dim, f"{call.where} joins it")
            factor = None
        along.append(np.full(tensor.shape[dim], NONE) if factor is None else factor.slots)
        rest = [f for f in call.of(tensor).factors if f is not factor and dim not in f.dims]
        across.append(Operand(rest, _with(tensor.shape, dim, None), call.of(tensor).pliant))
    factors = call.record.couple(across, call.where)
    slots = np.concatenate(along)
    if (slots != NONE).any():
        factors.append(Factor((dim,), slots))
    call.set(factors, *tensors)


def _with(shape: Sequence[int], dim: int, size: int | None) -> list[int]:
    """Sizes over an index space in which `dim` is absent: inserted (0) or struck out (None)."""
    sizes = list(shape)
    if size is None:
        sizes[dim] = 0
    else:
        sizes.insert(dim, size)
    return sizes


@rule("roll", "flip")
def _moved_along(call: Operation) -> None:
    before = call.args[0]
    dims = call.arg("dims") or list(range(before.ndim))
    moved = {dim_of(dim, before.ndim) for dim in dims}
    factors = []
    for factor in call.of(before).factors:
        for dim in moved & set(factor.dims):
            if call.operation == "roll":
                call.record.fix(factor, dim, f"{call.where} shifts it")
                factor = Factor(factor.dims, np.full_like(factor.slots, NONE))
            else:
                factor = Factor(factor.dims, np.flip(factor.slots, factor.dims.index(dim)))
        if (factor.slots != NONE).any():
            factors.append(factor)
    call.set(factors, before)


@rule("index", "_unsafe_index")
def _index(call: Operation) -> None:
    """`table[indices]`: indexed dimensions stay; the others are carried where the indexed ones lie side by side."""
    before, indices = call.args[0], list(call.args[1])
    used = [dim for dim, index in enumerate(indices) if index is not None]
    call.record.fix_all(call.of(before), used, f"{call.where} looks it up")
    for index in indices:
        if isinstance(index, Tensor):
            call.state.keep(index, f"{call.where} looks up by it")
    if used != list(range(used[0], used[-1] + 1)) or any(indices[dim].dtype.is_floating_point for dim in used):
        return call.lost()
    spread = max(indices[dim].ndim for dim in used)
    shift = spread - len(used) if indices[used[0]].dtype.itemsize > 1 else call.out.ndim - before.ndim
    factors = [
        factor.moved({dim: dim if dim < used[0] else dim + shift for dim in factor.dims})
        for factor in call.of(before).factors
        if not set(factor.dims) & set(used)
    ]
    for factor in call.of(before).factors:
        if len(factor.dims) > 1 and set(factor.dims) & set(used):
            call.record.keep(factor.slots, f"{call.where} looks it up")
    call.set(factors, before, *(index for index in indices if isinstance(index, Tensor)))


@rule("index_select", "gather", "embedding")
def _lookup(call: Operation) -> None:
    before = call.args[0]
    if call.operation == "embedding":
        factor = call.of(before).factor(1)
        call.record.fix_all(call.of(before), [0], f"{call.where} looks it up")
        found = [] if factor is None else [factor.moved({1: call.out.ndim - 1})]
        return call.set(found, before, call.args[1])  # of tokens that are read, it is no parameter any more
    dim = dim_of(call.args[1], before.ndim)
    call.record.fix_all(call.of(before), [dim], f"{call.where} looks it up")
    if call.operation == "gather":
        return call.lost()
    call.set([f for f in call.of(before).factors if dim not in f.dims], before, call.args[2])
