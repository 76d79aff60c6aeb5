"""Operations that give the same numbers other dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from amc.surgery.operators.registry import aligned, dim_of, note_sizes, rule
from amc.surgery.trace_record import Factor
from amc.surgery.trace_state import Operation


@rule("view", "_unsafe_view", "_reshape_alias", "reshape")
def _view(call: Operation) -> None:
    before, after = call.args[0], call.out
    factors = reshaped(call.of(before).factors, tuple(before.shape), tuple(after.shape), call)
    for factor in factors:
        if len(factor.dims) > 1:
            call.record.grids.append(factor.slots)
    note_sizes(call, factors)
    call.set(factors, before)


def reshaped(
    factors: Sequence[Factor], before: tuple[int, ...], after: tuple[int, ...], call: Operation | None = None
) -> list[Factor]:
    """Factors after a row-major reshape from one shape to another."""
    blocks = _blocks(before, after)
    joined: list[tuple[list[int], list[int], list[Factor]]] = []
    for sources, targets in blocks:
        own = [f for f in factors if set(f.dims) & set(sources)]
        overlapping = [b for b in joined if any(f in b[2] for f in own)]
        for block in overlapping:
            joined.remove(block)
            sources, targets = sorted({*sources, *block[0]}), sorted({*targets, *block[1]})
            own += [f for f in block[2] if f not in own]
        joined.append((sources, targets, own))
    result = []
    for sources, targets, own in joined:
        if not own:
            continue
        if len(sources) == len(targets) == 1:
            result.append(own[0].moved({sources[0]: targets[0]}))
            continue
        if len(own) > 1:
            if call is not None:
                for factor in own:
                    call.record.keep(factor.slots, f"two kinds of channels become one dimension in {call.where}")
            continue
        result += _respread(own[0], sources, targets, before, after)
    return result


def _respread(
    factor: Factor, sources: Sequence[int], targets: Sequence[int], before: Sequence[int], after: Sequence[int]
) -> list[Factor]:
    """One factor's slots over the whole of `sources`, read as `targets`; dimensions along which nothing changes go."""
    shape = [before[dim] if dim in factor.dims else 1 for dim in sources]
    whole = np.broadcast_to(factor.slots.reshape(shape), [before[dim] for dim in sources])
    spread = whole.reshape([after[dim] for dim in targets])
    varying = [axis for axis in range(spread.ndim) if (spread != spread.take([0], axis)).any()]
    if not varying:
        return []
    place = tuple(slice(None) if axis in varying else 0 for axis in range(spread.ndim))
    return [Factor(tuple(targets[axis] for axis in varying), np.ascontiguousarray(spread[place]))]


def _blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of dimensions with equal products, without sizes of one."""
    sources = [dim for dim, size in enumerate(before) if size != 1]
    targets = [dim for dim, size in enumerate(after) if size != 1]
    blocks, i, j = [], 0, 0
    while i < len(sources) and j < len(targets):
        left, right, first, second = before[sources[i]], after[targets[j]], i, j
        while left != right:
            if left < right:
                i += 1
                left *= before[sources[i]]
            else:
                j += 1
                right *= after[targets[j]]
        i, j = i + 1, j + 1
        blocks.append((sources[first:i], targets[second:j]))
    return blocks


@rule("permute", "transpose", "t", "numpy_T", "movedim", "swapaxes", "adjoint", "mT")
def _permute(call: Operation) -> None:
    before = call.args[0]
    order = list(range(before.ndim))
    if call.operation == "permute":
        order = [dim_of(dim, before.ndim) for dim in call.args[1]]
    elif call.operation in ("transpose", "swapaxes"):
        a, b = (dim_of(dim, before.ndim) for dim in call.args[1:3])
        order[a], order[b] = order[b], order[a]
    elif before.ndim > 1:
        order[-1], order[-2] = order[-2], order[-1]
    places = {source: place for place, source in enumerate(order)}
    call.set([factor.moved(places) for factor in call.of(before).factors], before)


@rule("squeeze", "unsqueeze")
def _squeeze(call: Operation) -> None:
    before, after = call.args[0], call.out
    call.set(reshaped(call.of(before).factors, tuple(before.shape), tuple(after.shape)), before)


@rule("expand", "broadcast_to")
def _expand(call: Operation) -> None:
    before = call.args[0]
    factors = aligned(call, before, call.out.ndim).factors
    note_sizes(call, factors)
    call.set(factors, before)


@rule("repeat", "tile")
def _repeat(call: Operation) -> None:
    before, times = call.args[0], list(call.args[1])
    shift = len(times) - before.ndim
    factors = []
    for factor in call.of(before).factors:
        reps = [times[dim + shift] for dim in factor.dims]
        if len(factor.dims) > 1 and any(rep > 1 for rep in reps):
            call.record.keep(factor.slots, f"it is repeated by {call.where}")
            continue
        factors.append(Factor(tuple(dim + shift for dim in factor.dims), np.tile(factor.slots, reps)))
    call.set(factors, before)


@rule("repeat_interleave")
def _repeat_interleave(call: Operation) -> None:
    before, dim = call.args[0], call.arg("dim")
    if dim is None or not isinstance(call.arg("repeats"), int):
        return call.lost()
    factors = []
    for factor in call.of(before).factors:
        if dim_of(dim, before.ndim) in factor.dims:
            axis = factor.dims.index(dim_of(dim, before.ndim))
            factor = Factor(factor.dims, np.repeat(factor.slots, call.arg("repeats"), axis))
        factors.append(factor)
    call.set(factors, before)
