"""Operations entry by entry, and tensors made from sizes alone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from amc.surgery.operators.registry import RULES, aligned, rule
from amc.surgery.trace_record import Factor, Labels
from amc.surgery.trace_state import Operation


def any_pointwise(call: Operation) -> None:
    """Operands broadcast against each other and meet entry by entry."""
    outputs = call.result if isinstance(call.result, (tuple, list)) else [call.result]
    tensors = [t for t in call.tensors() if t.ndim]
    factors = meet(call, tensors, outputs[0])
    for output in outputs:
        call.set(factors, tensor=output)


def meet(call: Operation, tensors: Sequence[Tensor], out: Tensor) -> list[Factor]:
    """The factors of tensors that broadcast to the shape of `out`."""
    operands = [aligned(call, tensor, out.ndim) for tensor in tensors if tensor.ndim <= out.ndim]
    return call.record.couple(operands, call.where) if operands else []


ENTRYWISE = (
    "_prelu_kernel _to_copy alias as_strided_ celu clone contiguous copy detach elu empty_like full_like gelu "
    "hardsigmoid hardswish hardtanh leaky_relu lift_fresh lift_fresh_copy log_sigmoid_forward masked_fill mish "
    "nan_to_num native_dropout ones_like prelu rand_like resolve_conj rrelu_with_noise selu silu softplus where "
    "zeros_like"
)
RULES.update(dict.fromkeys(ENTRYWISE.split(), any_pointwise))


@rule("full", "zeros", "ones", "empty", "arange", "rand", "randn", "scalar_tensor", "linspace", "eye", "new_zeros",
       "new_ones", "new_full", "new_empty", "new_empty_strided", "empty_strided", "tril_indices", "triu_indices",
       "randint", "randperm", "bernoulli")  # fmt: skip
def _made(call: Operation) -> None:
    call.state.labels[call.out] = Labels(pliant=True, parametric=True)


@rule("_local_scalar_dense", "is_same_size", "equal", "_has_compatible_shallow_copy_type", "fill", "zero", "set_",
       "_assert_async", "_assert_tensor_metadata", "sym_size", "item")  # fmt: skip
def _nothing(call: Operation) -> None:
    """No labels come out, or those of a tensor filled in place stay."""
