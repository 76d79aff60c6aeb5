"""Products of two tensors: matrices, attention, convolutions. What they multiply is recorded, to be counted."""

from __future__ import annotations

import math

from torch import Tensor

from amc.surgery.narrow_attention import can_narrow_attention
from amc.surgery.operators.registry import aligned, rule
from amc.surgery.trace_record import Factor, Operand, Product
from amc.surgery.trace_state import Operation


@rule("mm", "bmm", "addmm", "baddbmm", "mv", "addbmm", "dot", "_int_mm", "linear", "matmul")
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
    factors = call.record.contract(operands, parametric, [2], call.where, call.state.module)
    back = {0: 0, 1: 1, 3: 2} if batched else {1: 0, 3: 1}
    factors = [factor.moved(back) for factor in factors]
    if added:
        factors = call.record.couple(
            [Operand(factors, list(call.out.shape)), aligned(call, call.args[0], call.out.ndim)], call.where
        )
    call.set(factors)


def _placed(call: Operation, tensor: Tensor, places: dict[int, int], count: int) -> Operand:
    sizes = [0] * count
    for dim, index in places.items():
        sizes[index] = tensor.shape[dim]
    labels = call.of(tensor)
    factors = [factor.moved(places) for factor in labels.factors if set(factor.dims) <= set(places)]
    return Operand(factors, sizes, labels.pliant)


@rule("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
       "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
       "_scaled_dot_product_fused_attention_overrideable", "_scaled_dot_product_attention_math",
       "scaled_dot_product_attention")  # fmt: skip
def _attention(call: Operation) -> None:
    """softmax(q k^T) v, each (batch, heads, tokens, width)."""
    query, key, value = call.args[:3]
    if query.ndim != 4 or query.shape[1] != key.shape[1]:
        return call.lost()
    module = call.state.module
    own_scale = call.state.patchable or can_narrow_attention(call.state.model.get_submodule(module))
    if call.arg("scale") is None and not own_scale:
        call.record.fix_all(call.of(query), [3], f"the softmax of {call.where} is scaled by the width it finds")
    # the index space: batch, heads, queries, keys, width of q and k
    operands = [_placed(call, query, {0: 0, 1: 1, 2: 2, 3: 4}, 5), _placed(call, key, {0: 0, 1: 1, 2: 3, 3: 4}, 5)]
    scores = call.record.contract(operands, [False, False], [4], call.where, module)
    sizes = [query.shape[0], query.shape[1], query.shape[2], key.shape[2]]
    mask = call.arg("attn_mask")
    met = [Operand(scores, sizes)]
    if isinstance(mask, Tensor):
        met.append(aligned(call, mask, 4))
    scores = call.record.couple(met, call.where)
    # batch, heads, queries, keys, width of v
    weighted = [Operand(scores, [*sizes, 0]), _placed(call, value, {0: 0, 1: 1, 2: 3, 3: 4}, 5)]
    factors = call.record.contract(weighted, [False, False], [3], call.where, module)
    call.set([factor.moved({0: 0, 1: 1, 2: 2, 4: 3}) for factor in factors], query, key, value)


@rule("convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution", "convolution_overrideable")
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
        factors = call.record.contract(operands, parametric, [1, 3], call.where, call.state.module)
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
        call.record.products.append(Product(call.state.module, positions * weight.shape[0] * before.shape[0], ()))
        return []
    inward, outward = source.slots.reshape(groups, -1), target.slots.reshape(groups, -1)
    call.record.join(outward[:, :1], outward)
    call.record.join(outward[:, :1], inward)
    if call.of(weight).parametric:
        call.record.produced.append(target.slots)
    call.record.products.append(Product(call.state.module, positions * before.shape[0], (target.slots,)))
    return [target.moved({0: 1})]
