"""Numbers that let no mistake hide: nothing zero or constant, and the input felt at the last layer.

As they are made, networks hide what is cut wrongly: a layer scale of 1e-6, a last BatchNorm or a classifier that starts
at zero. And where most channels are zero, a deep network forgets its input after some layers.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from amc.zoo.call import Call

LEAST_VARIANCE = 0.1  # of the layer's mean: a channel that hardly varies would blow up what rounding leaves


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give normalisations random statistics, vectors and whatever starts constant random values, in place."""
    draw = torch.Generator().manual_seed(seed)
    statistics = [(n, t) for n, t in model.named_buffers() if n.endswith(("running_mean", "running_var"))]
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *statistics]:
            if not tensor.is_floating_point() or not tensor.numel():
                continue
            flat = max(tensor.shape, default=1) == tensor.numel()
            if flat and name.endswith(("running_var", "weight")):
                tensor.copy_(torch.rand(tensor.shape, generator=draw) + 0.5)
            elif flat:
                tensor.copy_(torch.randn(tensor.shape, generator=draw) * 0.3)
            elif bool((tensor == tensor.flatten()[0]).all()):
                tensor.copy_(torch.randn(tensor.shape, generator=draw) / math.sqrt(tensor[0].numel()))
    return model.eval()


@torch.no_grad()
def with_random_constants(model: nn.Module) -> nn.Module:
    """A copy in `eval` mode; tensors that are all one value, as before training, are drawn at random."""
    copied = copy.deepcopy(model).eval()
    draw = torch.Generator().manual_seed(0)
    for name, tensor in [*copied.named_parameters(), *copied.named_buffers()]:
        if not tensor.is_floating_point() or tensor.numel() < 2 or not bool((tensor == tensor.flatten()[0]).all()):
            continue
        spread = torch.rand(tensor.shape, generator=draw).to(tensor)
        if name.endswith(("bias", "running_mean")):
            tensor.copy_(0.4 * spread - 0.2)
        elif tensor.numel() == max(tensor.shape):
            tensor.copy_(0.5 + spread)
        else:
            tensor.copy_((2 * spread - 1) * (3 / tensor[0].numel()) ** 0.5)
    return copied


def normalise_activations(model: nn.Module, call: Call) -> nn.Module:
    """Keep the input felt at the last layer of a network in which many channels are zero.

    Under the dense network's statistics, or with none, it is forgotten after some layers, and whatever is cut wrongly
    before that would not show. BatchNorm's statistics are set near those of `call`; in a network without BatchNorm,
    what layers give is centred and scaled so by their own weights and biases.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None
    ]
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Conv1d, nn.Linear))]
    draw = torch.Generator().manual_seed(0)

    def take(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        _take_statistics(norm, inputs[0], draw)

    handles = [norm.register_forward_pre_hook(take) for norm in norms]
    handles += [layer.register_forward_hook(_centre) for layer in layers if not norms]
    try:
        with torch.no_grad():
            call.on(model)
    finally:
        for handle in handles:
            handle.remove()
    return model


def _take_statistics(norm: Any, inputs: Tensor, draw: torch.Generator) -> None:
    """Give a BatchNorm the statistics of what it reads, each off by a random part; channels that are zero stay so."""
    others = [dim for dim in range(inputs.ndim) if dim != 1]
    variance, mean = torch.var_mean(inputs, others, correction=0)
    # one position alone has no variance: then the size of the numbers says what is much
    spread = float(variance.mean()) or float(inputs.square().mean()) or 1.0
    variance = variance.clamp(min=spread * LEAST_VARIANCE)
    mean += 0.3 * torch.randn(mean.shape, generator=draw) * variance.sqrt() * (mean != 0)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance * (torch.rand(variance.shape, generator=draw) + 0.5))


def _centre(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Change a layer so that each channel has a mean near zero and a spread of one; channels that are zero stay so."""
    channels = output.ndim - 1 if isinstance(layer, nn.Linear) else 1
    others = [dim for dim in range(output.ndim) if dim != channels]
    mean, spread = output.mean(others), output.std(others, correction=0)
    spread = spread.clamp(min=float(spread.mean()) * LEAST_VARIANCE).nan_to_num(1.0)
    spread[spread == 0] = 1.0
    weight, bias = layer.weight, layer.bias
    weight /= spread.view(-1, *[1] * (weight.ndim - 1))
    if bias is not None:
        bias.sub_(0.9 * mean).div_(spread)
    again: Tensor = type(layer).forward(layer, *inputs)
    return again
