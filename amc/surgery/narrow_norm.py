"""Normalisation over what is left of the channels, as if those that are gone were still there and zero.

With k of n channels left and s = k / n, any mean of what is zero for a zero channel is s times that over the k: their
mean m, their mean square. Their variance is s times the mean of (x - m)^2 over the k, and (1 - s) m^2 for the others: a
sum of non-negative terms, so nothing cancels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from amc.surgery.replacement import Replacement, replace_module
from amc.system.errors import ModelError

STATISTICS = (
    "layer",  # mean and variance over channels
    "rms",  # mean square over channels
    "group",  # mean and variance over channels and places
    "simple",  # unbiased variance over channels, the mean left in (timm's SimpleNorm)
    "response",  # mean over channels of their length over places (GlobalResponseNorm of ConvNeXt V2)
)


@dataclass(frozen=True)
class NormRule:
    """What a module that normalises over channels computes.

    Attributes:
        statistics: one of `STATISTICS`.
        channel_dim: 1, or -1 where channels come last.
        scale, shift: the names of its parameters, None where it has none.
        eps: added to the variance; None stands for the smallest step of the type that is computed in.
        full_width: how many channels the statistics are over; those beyond `width` are zeros.
        width: how many channels are there.
    """

    statistics: str
    channel_dim: int
    scale: str | None
    shift: str | None
    eps: float | None
    full_width: int
    width: int


class NarrowNorm(Replacement):
    """A normalisation whose statistics are over `settings.full_width` channels, of which `settings.width` are left."""

    kind = "norm"
    prefix = "Narrow"
    Settings = NormRule
    settings: NormRule

    @property
    def full_width(self) -> int:
        """How many channels the dense module normalises over."""
        return self.settings.full_width

    def settle(self) -> None:
        if hasattr(self, "normalized_shape"):
            self.normalized_shape = (self.settings.width,)
        if hasattr(self, "num_channels"):
            self.num_channels = self.settings.width

    def forward(self, inputs: Tensor) -> Tensor:
        rule = self.settings
        if rule.width in (0, rule.full_width):
            same: Tensor = super().forward(inputs) if rule.width else inputs
            return same
        scale, shift = (getattr(self, name) if name else None for name in (rule.scale, rule.shift))
        outputs = normalise(inputs, rule, scale, shift)
        for child in self.children():  # timm's norms may hold a dropout and an activation
            outputs = child(outputs)
        return outputs


def normalise(inputs: Tensor, rule: NormRule, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """Normalised `inputs`, in their dtype; statistics are taken in float32 at least."""
    x = inputs if inputs.dtype in (torch.float32, torch.float64) else inputs.float()
    dims = list(range(1, x.ndim)) if rule.statistics == "group" else [rule.channel_dim]
    share = rule.width / rule.full_width
    if rule.statistics == "response":
        return (x + _scaled_response(x, share, rule, scale, shift)).to(inputs.dtype)
    if rule.statistics == "rms":
        spread = share * x.square().mean(dims, keepdim=True)
        return _affine(x * torch.rsqrt(spread + _eps(x, rule)), rule, scale, shift).to(inputs.dtype)
    mean = share * x.mean(dims, keepdim=True)
    centred = x - mean  # twice over x, as the sum of squares alone would cancel; `var_mean` is slow on a CPU
    spread = share * centred.square().mean(dims, keepdim=True) + (1 - share) * mean.square()
    if rule.statistics == "simple":
        centred, spread = x.clone(), spread * (rule.full_width / (rule.full_width - 1))
    return _affine(_times(centred, torch.rsqrt(spread + _eps(x, rule))), rule, scale, shift).to(inputs.dtype)


def _scaled_response(x: Tensor, share: float, rule: NormRule, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """Every channel times its length over places, in units of the mean length of all channels."""
    places = [dim for dim in range(1, x.ndim) if dim != rule.channel_dim % x.ndim]
    length = torch.linalg.vector_norm(x, dim=places, keepdim=True)
    mean = share * length.mean(rule.channel_dim, keepdim=True)
    return _affine(x * (length / (mean + _eps(x, rule))), rule, scale, shift)


def _affine(x: Tensor, rule: NormRule, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    beside: list[slice | None] = [None] * x.ndim
    beside[rule.channel_dim] = slice(None)  # no reshape: those of the network's own code are counted (`resizing`)
    x = x if scale is None else _times(x, scale.flatten()[tuple(beside)])
    if shift is None:
        return x
    shift = shift.flatten()[tuple(beside)]
    return x + shift if torch.is_grad_enabled() else x.add_(shift)


def _times(x: Tensor, factor: Tensor) -> Tensor:
    """The product, in the memory of `x` where nothing is trained: fresh memory costs more than the arithmetic."""
    return x * factor if torch.is_grad_enabled() else x.mul_(factor)


def _eps(x: Tensor, rule: NormRule) -> float:
    return torch.finfo(x.dtype).eps if rule.eps is None else rule.eps


def narrow_norm(module: nn.Module, full_width: int, rule: NormRule | None = None) -> None:
    """Have a normalisation, its parameters already cut, go on as if it still had `full_width` channels.

    Args:
        rule: what `norm_rule` said of the dense module; found anew where it is None.

    Raises:
        ModelError: nothing is known of what the module computes.
    """
    if isinstance(module, NarrowNorm):
        rule = module.settings
    rule = rule or norm_rule(module)
    if rule is None:
        raise ModelError(
            f"a normalisation can be cut if it is one over channels, got {type(module).__name__}; ignore it"
        )
    width = getattr(module, rule.scale or rule.shift or "").numel()
    replace_module(module, NarrowNorm, replace(rule, full_width=full_width, width=width))


@torch.no_grad()
def norm_rule(module: nn.Module) -> NormRule | None:
    """What a module that normalises over its channels computes, learnt from running it; None if it is no such module.

    The module may be cut already. Without parameters of its own nothing determines its width, and it is none of
    these.
    """
    own = {name: value for name, value in module._parameters.items() if value is not None}
    widths = {value.numel() if value.numel() == max(value.shape, default=0) else 0 for value in own.values()}
    if isinstance(module, (NarrowNorm, _NormBase)) or len(own) not in (1, 2) or len(widths) != 1 or max(widths) < 2:
        return None
    if any(True for child in module.children() for _ in child.parameters()):  # a norm may hold a dropout, not a layer
        return None
    width, device = widths.pop(), next(iter(own.values())).device
    draw = torch.Generator().manual_seed(0)
    drawn = {name: torch.randn(value.shape, generator=draw).to(device) for name, value in own.items()}
    copied = _copy_with(module, drawn)
    for shape, channel_dim in (((2, width, 3, 4), 1), ((2, 3, 4, width), -1), ((2, 3, width), -1), ((2, width, 5), 1)):
        for eps in _epsilons(module):
            inputs = torch.randn(shape, generator=draw).to(device) + 0.5
            inputs[1] *= 1e-3 if eps is None else eps**0.5  # eps must show
            try:
                expected = copied.forward(inputs.clone())
            except Exception:  # anyone's code, given a shape that may not be its own
                continue
            for rule in _rules(list(own), channel_dim, eps, width):
                outputs = normalise(
                    inputs,
                    rule,
                    drawn.get(rule.scale or ""),
                    drawn.get(rule.shift or ""),
                )
                for child in copied.children():
                    outputs = child(outputs)
                if outputs.shape == expected.shape and torch.allclose(outputs, expected, rtol=1e-3, atol=1e-5):
                    return rule
    return None


def _rules(names: list[str], channel_dim: int, eps: float | None, width: int) -> Iterator[NormRule]:
    """Every rule with parameters of these names."""
    roles = [(names[0], None), (None, names[0])] if len(names) == 1 else [(names[0], names[1]), (names[1], names[0])]
    for statistics, (scale, shift) in product(STATISTICS, roles):
        if statistics != "group" or channel_dim == 1:
            yield NormRule(statistics, channel_dim, scale, shift, eps, width, width)


def _epsilons(module: nn.Module) -> list[float | None]:
    """Attributes that may be what is added to the variance, by their size: their names differ."""
    found: list[float | None] = [v for v in vars(module).values() if isinstance(v, float) and 0 < v <= 0.1]
    return [*dict.fromkeys(found), *([None] if vars(module).get("eps", 0) is None else [])]


def _copy_with(module: nn.Module, parameters: dict[str, Tensor]) -> nn.Module:
    """The module with other parameters, as wide as they are, in `eval` mode; nothing of the original is touched."""
    copied = copy.copy(module)
    if "normalized_shape" in module.__dict__:
        copied.__dict__["normalized_shape"] = (next(iter(parameters.values())).numel(),)
    copied.__dict__["_parameters"] = {**module._parameters, **parameters}
    copied.__dict__["_modules"] = {name: copy.deepcopy(child) for name, child in module._modules.items()}
    return copied.eval()
