"""Multiply-adds as torch's own counter sees them, with attention run operation by operation so that all are seen."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from amc.zoo.call import Call, as_call


@contextlib.contextmanager
def composed_attention() -> Iterator[None]:
    """Torch's transformer layers run operation by operation, not as one kernel."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def count_cut_macs(model: nn.Module, inputs: Call | Tensor) -> int:
    """Multiply-adds of a network as torch's own counter sees them (it counts 2 each), for one example."""
    with counting(model) as counter:
        as_call(inputs).on(model)
    return counter.get_total_flops() // 2


@contextlib.contextmanager
def counting(model: nn.Module) -> Iterator[FlopCounterMode]:
    """Torch's counter, which counts 2 for each multiply-add, on all that is run inside with modules of `model`."""
    counter = FlopCounterMode(display=False)
    plain = sdpa_kernel(SDPBackend.MATH)  # the counter overlooks the CPU's own kernels for attention
    with torch.no_grad(), _without_gradients(model), composed_attention(), plain, counter:
        yield counter


@contextlib.contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient: torch's counter fails on one that is handed from module to module."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
