"""Sums and normalisations over dimensions."""

from __future__ import annotations

from torch import Tensor

from amc.surgery.operators.entrywise import any_pointwise
from amc.surgery.operators.registry import dim_of, rule
from amc.surgery.trace_state import Operation


@rule("mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm",
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
    gone = {dim_of(dim, before.ndim) for dim in dims} or set(range(before.ndim))
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


@rule("_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumprod", "softmax", "log_softmax")
def _along(call: Operation) -> None:
    before = call.args[0]
    call.record.fix_all(call.of(before), [dim_of(call.args[1], before.ndim)], f"{call.where} runs over it")
    call.set(call.of(before).factors, before)


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
       "_batch_norm_with_update", "_batch_norm_no_update", "miopen_batch_norm")  # fmt: skip
def _batch_norm(call: Operation) -> None:
    before = call.args[0]
    factor = call.of(before).factor(1)
    for tensor in call.args[1:5]:
        own = call.of(tensor).factor(0) if isinstance(tensor, Tensor) else None
        if own is not None and factor is not None and len(factor.dims) == 1:
            call.record.join(own.slots, factor.slots)
        elif own is not None:
            call.state.keep(tensor, f"{call.where} scales channels that stay")
    if factor is not None and len(factor.dims) > 1:
        call.record.fix(factor, 1, f"{call.where} scales it")
    over = [dim for dim in range(2, before.ndim)]
    if call.arg("training", False):
        call.record.fix_all(call.of(before), over, f"{call.where} normalises over it")
    call.set(call.of(before).factors, before)


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm", "native_group_norm")
def _whole_norm(call: Operation) -> None:
    """A normalisation that no replacement computes for fewer channels, or GroupNorm, which loses whole blocks."""
    before = call.args[0]
    if call.operation == "native_group_norm":
        return _group_norm(call)
    over = range(before.ndim - len(call.args[1]), before.ndim)
    call.record.fix_all(call.of(before), over, f"{call.where} normalises over it")
    for tensor in call.args[2:4]:
        if isinstance(tensor, Tensor):
            call.state.keep(tensor, f"{call.where} normalises over it")
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
                call.state.keep(tensor, f"{call.where} normalises over it")
    call.record.fix_all(call.of(before), range(2, before.ndim), f"{call.where} normalises over it")
    call.set(call.of(before).factors, before)
