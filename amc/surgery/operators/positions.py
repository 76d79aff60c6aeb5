"""Operations over positions: pooling, padding, unfolding, shuffling."""

from __future__ import annotations

import math

import numpy as np

from amc.surgery.operators.registry import rule
from amc.surgery.trace_record import NONE, Factor
from amc.surgery.trace_state import Operation

POSITIONAL = (
    "_adaptive_avg_pool1d _adaptive_avg_pool2d _adaptive_avg_pool3d _upsample_bicubic2d_aa _upsample_bilinear2d_aa "
    "_upsample_nearest_exact2d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d constant_pad_nd grid_sampler_2d max_pool1d max_pool2d "
    "max_pool2d_with_indices max_pool3d_with_indices mkldnn_max_pool2d pad reflection_pad1d reflection_pad2d "
    "replication_pad1d replication_pad2d unfold upsample_bicubic2d upsample_bilinear2d upsample_linear1d "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d"
)


@rule(*POSITIONAL.split())
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


@rule("im2col")
def _im2col(call: Operation) -> None:
    before = call.args[0]
    kernel = math.prod(call.args[1])
    factor = call.of(before).factor(1)
    if factor is None or len(factor.dims) > 1:
        return call.lost()
    call.set([Factor((1,), np.repeat(factor.slots, kernel))], before)


@rule("col2im")
def _col2im(call: Operation) -> None:
    before = call.args[0]
    factor = call.of(before).factor(1)
    if factor is None or len(factor.dims) > 1:
        return call.lost()
    rows = factor.slots.reshape(-1, math.prod(call.arg("kernel_size")))
    call.record.join(rows[:, :1], rows)
    call.set([Factor((1,), rows[:, 0])], before)


@rule("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle")
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
