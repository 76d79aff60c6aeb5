"""What becomes of labels in each ATen operation. Rules are optimistic about sizes: the proof has the last word."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from amc.surgery.narrow_attention import can_narrow_attention
from amc.surgery.record import NONE, Factor, Labels, Operand, Product, Sized, Slots

if TYPE_CHECKING:
    from amc.surgery.tracing import Operation

Rule = Callable[["Operation"], None]
RULES: dict[str, Rule] = {}


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


def _dim(dim: int, ndim: int) -> int:
    return dim + ndim if dim < 0 else dim


# Entry by entry


def any_pointwise(call: Operation) -> None:
    """Operands broadcast against each other and meet entry by entry."""
    outputs = call.result if isinstance(call.result, (tuple, list)) else [call.result]
    tensors = [t for t in call.tensors() if t.ndim]
    factors = meet(call, tensors, outputs[0])
    for output in outputs:
        call.set(factors, tensor=output)


def meet(call: Operation, tensors: Sequence[Tensor], out: Tensor) -> list[Factor]:
    """The factors of tensors that broadcast to the shape of `out`."""
    operands = []
    for tensor in tensors:
        labels, shift = call.of(tensor), out.ndim - tensor.ndim
        if shift < 0:
            continue
        moved = [f.moved({dim: dim + shift for dim in f.dims}) for f in labels.factors]
        operands.append(Operand(moved, [0] * shift + list(tensor.shape), labels.pliant))
    return call.record.couple(operands, call.where) if operands else []


ENTRYWISE = (
    "_prelu_kernel _to_copy alias as_strided_ celu clone contiguous copy detach elu empty_like full_like gelu "
    "hardsigmoid hardswish hardtanh leaky_relu lift_fresh lift_fresh_copy log_sigmoid_forward masked_fill mish "
    "nan_to_num native_dropout ones_like prelu rand_like resolve_conj rrelu_with_noise selu silu softplus where "
    "zeros_like"
)
RULES.update(dict.fromkeys(ENTRYWISE.split(), any_pointwise))


@_rule("full", "zeros", "ones", "empty", "arange", "rand", "randn", "scalar_tensor", "linspace", "eye", "new_zeros",
       "new_ones", "new_full", "new_empty", "new_empty_strided", "empty_strided", "tril_indices", "triu_indices",
       "randint", "randperm", "bernoulli")  # fmt: skip
def _made(call: Operation) -> None:
    call.tracer.labels[call.out] = Labels(pliant=True, parametric=True)


@_rule("_local_scalar_dense", "is_same_size", "equal", "_has_compatible_shallow_copy_type", "fill", "zero", "set_",
       "_assert_async", "_assert_tensor_metadata", "sym_size", "item")  # fmt: skip
def _nothing(call: Operation) -> None:
    """No labels come out, or those of a tensor filled in place stay."""


# Sizes


@_rule("view", "_unsafe_view", "_reshape_alias", "reshape")
def _view(call: Operation) -> None:
    before, after = call.args[0], call.out
    factors = reshaped(call.of(before).factors, tuple(before.shape), tuple(after.shape), call)
    for factor in factors:
        if len(factor.dims) > 1:
            call.record.grids.append(factor.slots)
    note_sizes(call, factors)
    call.set(factors, before)


def note_sizes(call: Operation, factors: Sequence[Factor]) -> None:
    """A module's code asked for these sizes; it may hold them in attributes."""
    for factor in factors:
        for dim in factor.dims:
            call.record.sized.append(Sized(call.tracer.module, factor.first(dim)))


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
    """Smallest runs of dimensions with equal products, sizes of one left out."""
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


@_rule("permute", "transpose", "t", "numpy_T", "movedim", "swapaxes", "adjoint", "mT")
def _permute(call: Operation) -> None:
    before = call.args[0]
    order = list(range(before.ndim))
    if call.operation == "permute":
        order = [_dim(dim, before.ndim) for dim in call.args[1]]
    elif call.operation in ("transpose", "swapaxes"):
        a, b = (_dim(dim, before.ndim) for dim in call.args[1:3])
        order[a], order[b] = order[b], order[a]
    elif before.ndim > 1:
        order[-1], order[-2] = order[-2], order[-1]
    places = {source: place for place, source in enumerate(order)}
    call.set([factor.moved(places) for factor in call.of(before).factors], before)


@_rule("squeeze", "unsqueeze")
def _squeeze(call: Operation) -> None:
    before, after = call.args[0], call.out
    call.set(reshaped(call.of(before).factors, tuple(before.shape), tuple(after.shape)), before)


@_rule("expand", "broadcast_to")
def _expand(call: Operation) -> None:
    before, after = call.args[0], call.out
    shift = after.ndim - before.ndim
    factors = [f.moved({dim: dim + shift for dim in f.dims}) for f in call.of(before).factors]
    note_sizes(call, factors)
    call.set(factors, before)


@_rule("repeat", "tile")
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


@_rule("repeat_interleave")
def _repeat_interleave(call: Operation) -> None:
    before, dim = call.args[0], call.arg("dim")
    if dim is None or not isinstance(call.arg("repeats"), int):
        return call.lost()
    factors = []
    for factor in call.of(before).factors:
        if _dim(dim, before.ndim) in factor.dims:
            axis = factor.dims.index(_dim(dim, before.ndim))
            factor = Factor(factor.dims, np.repeat(factor.slots, call.arg("repeats"), axis))
        factors.append(factor)
    call.set(factors, before)


# Parts


@_rule("select")
def _select(call: Operation) -> None:
    before, dim, index = call.args[0], _dim(call.args[1], call.args[0].ndim), call.args[2]
    call.set(_picked(call, before, dim, index), before)


@_rule("unbind")
def _unbind(call: Operation) -> None:
    before, dim = call.args[0], _dim(call.arg("dim", 0), call.args[0].ndim)
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


@_rule("slice", "narrow")
def _slice(call: Operation) -> None:
    before, after = call.args[0], call.out
    dim = _dim(call.arg("dim", 0), before.ndim)
    start = call.arg("start") or 0
    step = call.arg("step", 1) or 1
    start = max(0, start + before.shape[dim] if start < 0 else start)
    if call.tracer.asking and step == 1:  # its bounds follow what is left
        return _free_part(call, before, after, dim, np.arange(start, start + after.shape[dim]))
    _part(call, before, after, dim, np.arange(start, start + step * after.shape[dim], step))


@_rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "unsafe_chunk", "tensor_split")
def _split(call: Operation) -> None:
    before = call.args[0]
    dim = _dim(call.arg("dim", 0), before.ndim)
    start = 0
    if call.tracer.asking and len({part.shape[dim] for part in call.result}) > 1:
        return _uneven_parts(call, before, dim)
    for part in call.result:
        _part(call, before, part, dim, np.arange(start, start + part.shape[dim]))
        start += part.shape[dim]


def _uneven_parts(call: Operation, before: Tensor, dim: int) -> None:
    """Parts whose sizes are asked for one by one."""
    start = 0
    for part in call.result:
        _free_part(call, before, part, dim, np.arange(start, start + part.shape[dim]))
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


@_rule("glu")
def _glu(call: Operation) -> None:
    """One half of a dimension gates the other."""
    before = call.args[0]
    dim = _dim(call.arg("dim", -1), before.ndim)
    _part(call, before, call.out, dim, np.arange(before.shape[dim] // 2))


@_rule("cat", "concat", "concatenate", "stack", "hstack")
def _cat(call: Operation) -> None:
    tensors, out = list(call.args[0]), call.out
    dim = _dim(call.arg("dim", 0), out.ndim)
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


@_rule("roll", "flip")
def _moved_along(call: Operation) -> None:
    before = call.args[0]
    dims = call.arg("dims") or list(range(before.ndim))
    moved = {_dim(dim, before.ndim) for dim in dims}
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


@_rule("index", "_unsafe_index")
def _index(call: Operation) -> None:
    """`table[indices]`: indexed dimensions stay; the others are carried where the indexed ones lie side by side."""
    before, indices = call.args[0], list(call.args[1])
    used = [dim for dim, index in enumerate(indices) if index is not None]
    call.record.fix_all(call.of(before), used, f"{call.where} looks it up")
    for index in indices:
        if isinstance(index, Tensor):
            call.tracer.keep(index, f"{call.where} looks up by it")
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
    call.set(factors, before)


@_rule("index_select", "gather", "embedding")
def _lookup(call: Operation) -> None:
    before = call.args[0]
    if call.operation == "embedding":
        factor = call.of(before).factor(1)
        call.record.fix_all(call.of(before), [0], f"{call.where} looks it up")
        return call.set([] if factor is None else [factor.moved({1: call.out.ndim - 1})], before)
    dim = _dim(call.args[1], before.ndim)
    call.record.fix_all(call.of(before), [dim], f"{call.where} looks it up")
    if call.operation == "gather":
        return call.lost()
    call.set([f for f in call.of(before).factors if dim not in f.dims], before)


# Sums and norms


@_rule("mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm",
       "prod", "any", "all", "argmax", "argmin", "logsumexp", "topk", "sort", "median")  # fmt: skip
def _reduce(call: Operation) -> None:
    tensors = [t for t in call.tensors()]
    if call.operation in ("max", "min") and len(tensors) > 1:
        return any_pointwise(call)
    if call.operation in ("topk", "sort"):
        return call.lost()
    before, out = tensors[0], call.out
    given = call.arg("dim")
    dims = list(range(before.ndim)) if given is None else given if isinstance(given, (list, tuple)) else [given]
    gone = {_dim(dim, before.ndim) for dim in dims} or set(range(before.ndim))
    kept_dims = out.ndim == before.ndim
    left = [dim for dim in range(before.ndim) if dim not in gone]
    places = {dim: dim if kept_dims else left.index(dim) for dim in left}
    factors = []
    for factor in call.of(before).factors:
        reduced = [dim for dim in factor.dims if dim in gone]
        rest = [dim for dim in factor.dims if dim not in gone]
        for dim in reduced:
            call.record.fix(factor, dim, f"{call.where} runs over it")
        if rest:
            small = call.record.project(factor, rest) if reduced else factor
            factors.append(small.moved(places))
    for output in call.result if isinstance(call.result, tuple) else [out]:
        call.set(factors, before, tensor=output)


@_rule("_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumprod", "softmax", "log_softmax")
def _along(call: Operation) -> None:
    before = call.args[0]
    call.record.fix_all(call.of(before), [_dim(call.args[1], before.ndim)], f"{call.where} runs over it")
    call.set(call.of(before).factors, before)


@_rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
       "_batch_norm_with_update", "_batch_norm_no_update", "miopen_batch_norm")  # fmt: skip
def _batch_norm(call: Operation) -> None:
    before = call.args[0]
    factor = call.of(before).factor(1)
    for tensor in call.args[1:5]:
        own = call.of(tensor).factor(0) if isinstance(tensor, Tensor) else None
        if own is not None and factor is not None and len(factor.dims) == 1:
            call.record.join(own.slots, factor.slots)
        elif own is not None:
            call.tracer.keep(tensor, f"{call.where} scales channels that stay")
    if factor is not None and len(factor.dims) > 1:
        call.record.fix(factor, 1, f"{call.where} scales it")
    over = [dim for dim in range(2, before.ndim)]
    if call.arg("training", False):
        call.record.fix_all(call.of(before), over, f"{call.where} normalises over it")
    call.set(call.of(before).factors, before)


@_rule("native_layer_norm", "_fused_rms_norm", "rms_norm", "native_group_norm")
def _whole_norm(call: Operation) -> None:
    """A normalisation that no stand-in can do for fewer channels, or GroupNorm, which loses whole blocks."""
    before = call.args[0]
    if call.operation == "native_group_norm":
        return _group_norm(call)
    over = range(before.ndim - len(call.args[1]), before.ndim)
    call.record.fix_all(call.of(before), over, f"{call.where} normalises over it")
    for tensor in call.args[2:4]:
        if isinstance(tensor, Tensor):
            call.tracer.keep(tensor, f"{call.where} normalises over it")
    call.set(call.of(before).factors, before)


def _group_norm(call: Operation) -> None:
    before, blocks = call.args[0], call.arg("group")
    factor = call.of(before).factor(1)
    own = [call.of(tensor).factor(0) for tensor in call.args[1:3] if isinstance(tensor, Tensor)]
    if factor is not None and len(factor.dims) == 1 and blocks > 1:
        per_block = factor.slots.reshape(blocks, -1)
        call.record.join(per_block[:, :1], per_block)
        for other in own:
            if other is not None:
                call.record.join(other.slots, factor.slots)
    else:
        call.record.fix_all(call.of(before), [1], f"{call.where} normalises over it")
        for tensor in call.args[1:3]:
            if isinstance(tensor, Tensor):
                call.tracer.keep(tensor, f"{call.where} normalises over it")
    call.record.fix_all(call.of(before), range(2, before.ndim), f"{call.where} normalises over it")
    call.set(call.of(before).factors, before)


# Positions


POSITIONAL = (
    "_adaptive_avg_pool1d _adaptive_avg_pool2d _adaptive_avg_pool3d _upsample_bicubic2d_aa _upsample_bilinear2d_aa "
    "_upsample_nearest_exact2d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d constant_pad_nd grid_sampler_2d max_pool1d max_pool2d "
    "max_pool2d_with_indices max_pool3d_with_indices mkldnn_max_pool2d pad reflection_pad1d reflection_pad2d "
    "replication_pad1d replication_pad2d unfold upsample_bicubic2d upsample_bilinear2d upsample_linear1d "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d"
)


@_rule(*POSITIONAL.split())
def _spatial(call: Operation) -> None:
    """Dimensions whose size changed are positions; the others are carried. `unfold` adds one at the end."""
    before, out = call.args[0], call.out
    factors = []
    for factor in call.of(before).factors:
        if any(before.shape[dim] != out.shape[dim] for dim in factor.dims):
            if call.operation == "constant_pad_nd" and len(factor.dims) == 1:
                factors.append(_padded(call, factor))
                continue
            call.record.keep(factor.slots, f"it runs through {call.where}")
        else:
            factors.append(factor)
    call.set(factors, before)


def _padded(call: Operation, factor: Factor) -> Factor:
    """Zeros beside channels: they stay."""
    dim, pad = factor.dims[0], list(call.args[1])
    place = 2 * (call.args[0].ndim - 1 - dim)
    left, right = pad[place], pad[place + 1]
    if left < 0 or right < 0:
        call.record.keep(factor.slots, f"it is cropped by {call.where}")
    slots = factor.slots[max(0, -left) : len(factor.slots) - max(0, -right)]
    return Factor(factor.dims, np.pad(slots, (max(0, left), max(0, right)), constant_values=NONE))


@_rule("im2col")
def _im2col(call: Operation) -> None:
    before = call.args[0]
    kernel = math.prod(call.args[1])
    factor = call.of(before).factor(1)
    if factor is None or len(factor.dims) > 1:
        return call.lost()
    call.set([Factor((1,), np.repeat(factor.slots, kernel))], before)


@_rule("col2im")
def _col2im(call: Operation) -> None:
    before = call.args[0]
    factor = call.of(before).factor(1)
    if factor is None or len(factor.dims) > 1:
        return call.lost()
    rows = factor.slots.reshape(-1, math.prod(call.arg("kernel_size")))
    call.record.join(rows[:, :1], rows)
    call.set([Factor((1,), rows[:, 0])], before)


@_rule("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle")
def _shuffle(call: Operation) -> None:
    before, by = call.args[0], call.args[1]
    factor = call.of(before).factor(1)
    if factor is None or len(factor.dims) > 1:
        return call.lost()
    slots = factor.slots
    if call.operation == "pixel_shuffle":
        rows = slots.reshape(-1, by * by)
        call.record.join(rows[:, :1], rows)
        slots = rows[:, 0]
    elif call.operation == "pixel_unshuffle":
        slots = np.repeat(slots, by * by)
    else:
        call.record.grids.append(slots.reshape(by, -1))
        slots = slots.reshape(by, -1).T.reshape(-1)
    call.set([Factor((1,), slots)], before)


# Products


@_rule("mm", "bmm", "addmm", "baddbmm", "mv", "addbmm", "dot", "_int_mm", "linear", "matmul")
def _matmul(call: Operation) -> None:
    added = call.operation in ("addmm", "baddbmm")
    if call.operation in ("linear", "matmul", "addbmm", "dot", "mv"):
        return call.lost()
    left, right = call.args[int(added) : int(added) + 2]
    batched = left.ndim == 3
    # the index space: batch, rows, summed, columns
    a = {0: 0, 1: 1, 2: 2} if batched else {0: 1, 1: 2}
    b = {0: 0, 1: 2, 2: 3} if batched else {0: 2, 1: 3}
    operands = [_placed(call, left, a, 4), _placed(call, right, b, 4)]
    parametric = [call.of(left).parametric, call.of(right).parametric]
    factors = call.record.contract(operands, parametric, [2], call.where, call.tracer.module)
    back = {0: 0, 1: 1, 3: 2} if batched else {1: 0, 3: 1}
    factors = [factor.moved(back) for factor in factors]
    if added:
        factors = call.record.couple(
            [Operand(factors, list(call.out.shape)), _broadcast(call, call.args[0], call.out)], call.where
        )
    call.set(factors)


def _placed(call: Operation, tensor: Tensor, places: dict[int, int], count: int) -> Operand:
    sizes = [0] * count
    for dim, index in places.items():
        sizes[index] = tensor.shape[dim]
    labels = call.of(tensor)
    factors = [factor.moved(places) for factor in labels.factors if set(factor.dims) <= set(places)]
    return Operand(factors, sizes, labels.pliant)


def _broadcast(call: Operation, tensor: Tensor, out: Tensor) -> Operand:
    shift = out.ndim - tensor.ndim
    factors = [f.moved({dim: dim + shift for dim in f.dims}) for f in call.of(tensor).factors]
    return Operand(factors, [0] * shift + list(tensor.shape), call.of(tensor).pliant)


@_rule("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
       "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
       "_scaled_dot_product_fused_attention_overrideable", "_scaled_dot_product_attention_math",
       "scaled_dot_product_attention")  # fmt: skip
def _attention(call: Operation) -> None:
    """softmax(q k^T) v, each (batch, heads, tokens, width)."""
    query, key, value = call.args[:3]
    if query.ndim != 4 or query.shape[1] != key.shape[1]:
        return call.lost()
    module = call.tracer.module
    own_scale = call.tracer.asking or can_narrow_attention(call.tracer.model.get_submodule(module))
    if call.arg("scale") is None and not own_scale:
        call.record.fix_all(call.of(query), [3], f"the softmax of {call.where} is scaled by the width it finds")
    # the index space: batch, heads, queries, keys, width of q and k
    operands = [_placed(call, query, {0: 0, 1: 1, 2: 2, 3: 4}, 5), _placed(call, key, {0: 0, 1: 1, 2: 3, 3: 4}, 5)]
    scores = call.record.contract(operands, [False, False], [4], call.where, module)
    sizes = [query.shape[0], query.shape[1], query.shape[2], key.shape[2]]
    mask = call.arg("attn_mask")
    met = [Operand(scores, sizes)]
    if isinstance(mask, Tensor):
        shift = 4 - mask.ndim
        moved = [f.moved({dim: dim + shift for dim in f.dims}) for f in call.of(mask).factors]
        met.append(Operand(moved, [0] * shift + list(mask.shape), call.of(mask).pliant))
    scores = call.record.couple(met, call.where)
    # batch, heads, queries, keys, width of v
    weighted = [Operand(scores, [*sizes, 0]), _placed(call, value, {0: 0, 1: 1, 2: 3, 3: 4}, 5)]
    factors = call.record.contract(weighted, [False, False], [3], call.where, module)
    call.set([factor.moved({0: 0, 1: 1, 2: 2, 4: 3}) for factor in factors], query, key, value)


@_rule("convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution", "convolution_overrideable")
def _convolution(call: Operation) -> None:
    before, weight, bias, out = call.args[0], call.args[1], call.arg("bias"), call.out
    groups, transposed = call.arg("groups", 1), bool(call.arg("transposed", False))
    reason = f"it runs through {call.where}"
    call.record.fix_all(call.of(before), range(2, before.ndim), reason)
    call.record.fix_all(call.of(weight), range(2, weight.ndim), reason)
    if groups > 1:
        factors = _grouped(call, before, weight, groups, transposed)
    else:
        # the index space: batch, input channels, output channels, positions and kernel
        positions = math.prod((before if transposed else out).shape[2:]) * math.prod(weight.shape[2:])
        operands = [
            _placed(call, before, {0: 0, 1: 1}, 4),
            _placed(call, weight, {0: 1, 1: 2} if transposed else {0: 2, 1: 1}, 4),
        ]
        operands[0].sizes = [*operands[0].sizes[:3], positions]
        parametric = [call.of(before).parametric, call.of(weight).parametric]
        factors = call.record.contract(operands, parametric, [1, 3], call.where, call.tracer.module)
        factors = [factor.moved({0: 0, 2: 1}) for factor in factors]
    if isinstance(bias, Tensor):
        channel = [factor.moved({0: 1}) for factor in call.of(bias).factors]
        sizes = [0, out.shape[1], *[0] * (out.ndim - 2)]
        factors = call.record.couple([Operand(factors, list(out.shape)), Operand(channel, sizes)], call.where)
    call.set(factors)


def _grouped(call: Operation, before: Tensor, weight: Tensor, groups: int, transposed: bool) -> list[Factor]:
    """A grouped convolution loses whole blocks of channels, so what is left computes the same as before."""
    source, target = call.of(before).factor(1), call.of(weight).factor(0)
    call.record.fix_all(call.of(weight), [1], f"it is within the blocks of {call.where}")
    positions = math.prod((before if transposed else call.out).shape[2:]) * math.prod(weight.shape[1:])
    if source is None or len(source.dims) > 1 or transposed or target is None or len(target.dims) > 1:
        call.record.fix_all(call.of(before), [1], f"it runs through {call.where}")
        call.record.fix_all(call.of(weight), [0], f"it runs through {call.where}")
        call.record.products.append(Product(call.tracer.module, positions * weight.shape[0] * before.shape[0], ()))
        return []
    inward, outward = source.slots.reshape(groups, -1), target.slots.reshape(groups, -1)
    call.record.join(outward[:, :1], outward)
    call.record.join(outward[:, :1], inward)
    if call.of(weight).parametric:
        call.record.produced.append(target.slots)
    call.record.products.append(Product(call.tracer.module, positions * before.shape[0], (target.slots,)))
    return [target.moved({0: 1})]
