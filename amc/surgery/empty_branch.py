"""Layers with no channels left: what they give back where torch itself refuses, or returns a wrong shape.

Not covered: functions that a network calls itself (`max_pool2d`, `interpolate`, `pixel_shuffle`, reflecting `pad`) fail
on tensors without channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import batchnorm, padding, pooling
from torch.overrides import TorchFunctionMode

from amc.surgery.layers import CONVOLUTIONS
from amc.surgery.replacement import Replacement, replace_module

NORMS = (batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.PReLU)  # the first: BatchNorm and InstanceNorm
POOLS = (pooling._MaxPoolNd, pooling._AvgPoolNd, pooling._AdaptiveMaxPoolNd, pooling._LPPoolNd, nn.Upsample,
         padding._ReflectionPadNd, padding._ReplicationPadNd)  # fmt: skip
FORWARD = (torch.conv1d, torch.conv2d, torch.conv3d)
BACKWARD = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)


@dataclass(frozen=True)
class Nothing:
    """The settings of a replacement that needs none."""


class EmptyConvolution(Replacement):
    """A convolution without input or output channels: its bias at every position, as a sum over nothing is zero."""

    kind = "vanished convolution"
    prefix = "Empty"
    Settings = Nothing

    def forward(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with _SumsOverNothing():  # the class's own rule of padding decides on the size
            outputs: Tensor = super().forward(inputs, *args, **kwargs)
        return _attached(outputs, inputs, self)


class EmptyNorm(Replacement):
    """A normalisation, or an activation with parameters: what comes in without channels goes out."""

    kind = "vanished norm"
    prefix = "Empty"
    Settings = Nothing

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.numel():  # without parameters, nothing but the input has the width
            same: Tensor = super().forward(inputs)
            return same
        return _attached(inputs, inputs, self)


class EmptyPool(Replacement):
    """Pooling, upsampling or padding that also takes inputs without channels."""

    kind = "vanished pool"
    prefix = "Empty"
    Settings = Nothing

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.shape[1]:
            same: Tensor = super().forward(inputs)
            return same
        outputs: Tensor = super().forward(inputs.new_zeros((inputs.shape[0], 1, *inputs.shape[2:])))
        return _attached(outputs[:, :0], inputs, self)


REPLACED: tuple[tuple[type[Replacement], tuple[type[nn.Module], ...]], ...] = (
    (EmptyConvolution, CONVOLUTIONS),
    (EmptyNorm, NORMS),
    (EmptyPool, POOLS),
)


def replace_if_empty(module: nn.Module) -> None:
    """Let a module, its tensors already cut, take or give a tensor without channels, if it could not by itself.

    Modules that have channels left, and those that torch runs well without, stay as they are. A convolution whose
    weight is derived from others must be materialised before.
    """
    own = [parameter for parameter in module._parameters.values() if parameter is not None]
    if not isinstance(module, Replacement) and all(not parameter.numel() for parameter in _weights(module, own)):
        for replacement, classes in REPLACED:
            if isinstance(module, classes):
                replace_module(module, replacement, Nothing())


def _weights(module: nn.Module, own: Sequence[Tensor]) -> Sequence[Tensor]:
    """The tensors that are empty when a module has no channels: a bias outlives the inputs of its convolution."""
    if isinstance(module, CONVOLUTIONS):
        return [module.weight]
    buffers = [getattr(module, name, None) for name in ("running_mean", "running_var")]
    return [*own, *(buffer for buffer in buffers if isinstance(buffer, Tensor))]


def _attached(outputs: Tensor, inputs: Tensor, module: nn.Module) -> Tensor:
    """`outputs`, in training with what they do not depend on in their graph.

    Processes that train together wait for a gradient of every parameter, also of an empty one.
    """
    if module.training and torch.is_grad_enabled():
        parameters = [parameter for parameter in module._parameters.values() if parameter is not None]
        for empty in (inputs[:0], *(parameter for parameter in parameters if not parameter.numel())):
            outputs = outputs + empty.sum()  # zero
    return outputs


class _SumsOverNothing(TorchFunctionMode):
    """Convolutions give their bias at every position, and padding only changes sizes."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func in FORWARD:
            return _convolved(*args, **given)
        if func in BACKWARD:
            return _transposed(*args, **given)
        if func is functional.pad:
            return _padded(*args, **given)
        return func(*args, **given)


def _convolved(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """A convolution's output, by the arguments of `torch.conv2d`."""
    dims = weight.ndim - 2
    lengths = input.shape[-dims:]
    if padding != "same":
        around = _each(0 if padding == "valid" else padding, dims)
        spans = [d * (k - 1) for d, k in zip(_each(dilation, dims), weight.shape[2:], strict=True)]
        lengths = [  # type: ignore[assignment]
            (length + 2 * p - span - 1) // s + 1
            for length, p, span, s in zip(lengths, around, spans, _each(stride, dims), strict=True)
        ]
    return _filled(input, weight.shape[0], lengths, bias)


def _transposed(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """A transposed convolution's output, by the arguments of `torch.conv_transpose2d`."""
    dims = weight.ndim - 2
    sizes = (_each(value, dims) for value in (stride, padding, output_padding, dilation))
    lengths = [
        (length - 1) * s - 2 * p + d * (k - 1) + extra + 1
        for length, k, s, p, extra, d in zip(input.shape[-dims:], weight.shape[2:], *sizes, strict=True)
    ]
    return _filled(input, weight.shape[1] * groups if bias is None else len(bias), lengths, bias)


def _padded(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """An empty tensor, or one that nothing will be read from, of the size that `functional.pad` makes."""
    shape = list(input.shape)
    for i in range(0, len(pad), 2):
        shape[-1 - i // 2] += pad[i] + pad[i + 1]
    return input.new_zeros(shape)


def _filled(inputs: Tensor, channels: int, lengths: Sequence[int], bias: Tensor | None) -> Tensor:
    outputs = inputs.new_zeros((*inputs.shape[: -len(lengths) - 1], channels, *lengths))
    if bias is None or not channels:
        return outputs
    return outputs + bias.to(inputs.dtype)[(slice(None), *(None for _ in lengths))]


def _each(value: Any, dims: int) -> Sequence[int]:
    """One integer for every dimension."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * dims if len(values) == 1 else values
