"""The rules of operations, by name, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from amc.surgery.trace_record import Factor, Operand, Sized
from amc.surgery.trace_state import Operation

Rule = Callable[["Operation"], None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the rule of the operations of these names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def dim_of(dim: int, ndim: int) -> int:
    """A dimension that may be counted from the end."""
    return dim + ndim if dim < 0 else dim


def aligned(call: Operation, tensor: Tensor, ndim: int) -> Operand:
    """A tensor that is broadcast to `ndim` dimensions: its own are the last."""
    labels, shift = call.of(tensor), ndim - tensor.ndim
    factors = [factor.moved({dim: dim + shift for dim in factor.dims}) for factor in labels.factors]
    return Operand(factors, [0] * shift + list(tensor.shape), labels.pliant)


def note_sizes(call: Operation, factors: Sequence[Factor]) -> None:
    """A module's code requested these sizes; it may hold them in attributes."""
    for factor in factors:
        for dim in factor.dims:
            call.record.sized.append(Sized(call.state.module, factor.first(dim)))
