"""Layers that compute the weight they use, given that weight once and for all.

Weight standardisation, weight and spectral norm, and the like look at whole filters, so no channel could be removed
from under them. A materialised network computes the same; only its further
training differs, as the weight is free then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from amc.surgery.layers import LAYERS
from amc.system.errors import ModelError
from amc.system.eval_mode import evaluating
from amc.zoo.call import Call, as_call

RELATIVE = 1e-5  # outputs before and after agree to this share of the largest
USES = (torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_transpose1d, torch.conv_transpose2d,
        torch.conv_transpose3d, functional.linear)  # fmt: skip
HOOKS: dict[type[Any], Callable[[nn.Module, str], Any]] = {
    WeightNorm: remove_weight_norm,
    SpectralNorm: remove_spectral_norm,
}
SAME = "Conv2dSame"  # timm's: padding worked out at every call, as TensorFlow does


@dataclass(frozen=True)
class Materialised:
    """The plain layer that a module has become.

    Attributes:
        layer: the name of its class, in `torch.nn` or timm's `Conv2dSame`; None where it is still of its own.
        bias: whether it has one.
    """

    layer: str | None
    bias: bool


@torch.no_grad()
def materialise(model: nn.Module, example: Call | Tensor) -> dict[str, str]:
    """Replace derived weights by their values, in place; returns what those modules were, by name.

    One pass over `example` shows what weight a layer really uses. A layer whose weight depends on its input, or that is
    no plain layer with its weight put in, is left as it was, and so is one that shares a parameter with another.
    """
    with evaluating(model):
        materialised = {name: was for name, module in model.named_modules() if (was := _drop_library_ones(module))}
        held = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
        finds: dict[str, list[_Plain]] = {}  # what each module may become: whatever agreed at every call so far
        handles = [
            module.register_forward_hook(_examine(finds, name), with_kwargs=True)
            for name, module in model.named_modules()
            if _may_derive(module) and all(held[id(p)] == 1 for p in module.parameters())
        ]
        try:
            as_call(example).on(model)
        finally:
            for handle in handles:
                handle.remove()
        for name, plains in finds.items():
            if plains:
                module = model.get_submodule(name)
                materialised[name] = type(module).__name__
                plains[0].take_the_place_of(module)
    return materialised


def materialised_as(module: nn.Module) -> Materialised | None:
    """What `materialise` has made of a module, None if nothing."""
    found: Materialised | None = module.__dict__.get("materialised")
    return found


def restore_materialised(module: nn.Module, settings: Mapping[str, Any]) -> None:
    """Give a module fresh from its factory the form it was materialised into; its values come after.

    Raises:
        ModelError: the record names a class that no layer is materialised into.
    """
    wanted = Materialised(**settings)
    _drop_library_ones(module)
    if wanted.layer is not None:
        if not isinstance(module, LAYERS):
            raise ModelError(f"only convolutions and linear layers are materialised, got {type(module).__name__}")
        weight = module.weight
        length = module.out_features if isinstance(module, nn.Linear) else module.out_channels
        bias = weight.new_zeros(length) if wanted.bias else None
        _Plain(_layer_class(wanted.layer), weight, bias).take_the_place_of(module)


@dataclass(frozen=True)
class _Plain:
    """A plain layer that may do what another does."""

    layer: type[nn.Module]
    weight: Tensor
    bias: Tensor | None

    def take_the_place_of(self, module: nn.Module) -> None:
        trained = any(parameter.requires_grad for parameter in module._parameters.values() if parameter is not None)
        parameters = {"weight": self.weight.detach().clone(), "bias": self.bias}
        module.__class__ = self.layer
        module._buffers.clear()  # what they were for has been computed
        module._parameters.clear()
        for name, value in parameters.items():
            given = None if value is None else nn.Parameter(value.detach().clone(), requires_grad=trained)
            module.register_parameter(name, given)
        if self.layer.__name__ == SAME:
            module.__dict__["padding"] = (0, 0)
        module.__dict__["materialised"] = Materialised(self.layer.__name__, self.bias is not None)

    def outputs(self, module: nn.Module, inputs: Tensor) -> Tensor:
        """What `module` would give as this plain layer."""
        copied = self.layer.__new__(self.layer)
        copied.__dict__.update(module.__dict__)
        copied.__dict__["_parameters"] = {"weight": self.weight, "bias": self.bias}
        if self.layer.__name__ == SAME:
            copied.__dict__["padding"] = (0, 0)
        outputs: Tensor = copied.forward(inputs)
        return outputs


def _may_derive(module: nn.Module) -> bool:
    """Whether a layer has a `forward` of its own and a weight that can be replaced."""
    if not isinstance(module, LAYERS) or not isinstance(module._parameters.get("weight"), nn.Parameter):
        return False
    return type(module).forward is not _plain_class(module).forward


def _plain_class(module: nn.Module) -> type[nn.Module]:
    return next(layer for layer in LAYERS if isinstance(module, layer))


def _examine(finds: dict[str, list[_Plain]], name: str) -> Callable[..., None]:
    """A hook that keeps the plain layers that give what the module has given."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        plain_call = len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and isinstance(outputs, Tensor)
        plains = finds[name] if name in finds else (_plain_layers(module, args[0]) if plain_call else [])
        finds[name] = [plain for plain in plains if plain_call and _agrees(plain, module, args[0], outputs)]

    return hook


def _plain_layers(module: nn.Module, inputs: Tensor) -> list[_Plain]:
    """Plain layers with the weight that `module` derives from its own parameters; none if it does not."""
    first, second = _used(module, inputs), _used(module, torch.randn_like(inputs))
    if first is None or second is None or not (_same(first[0], second[0]) and _same(first[1], second[1])):
        return []  # not one product, or a weight that follows the input
    weight, bias = first
    own = module._parameters
    if weight is None or own["weight"] is None or weight.shape != own["weight"].shape:
        return []
    if _same(weight, own["weight"]) and _same(bias, own.get("bias")):
        return []
    layers = [_plain_class(module)]
    if layers[0] is nn.Conv2d and find_spec("timm"):
        layers.append(_layer_class(SAME))
    return [_Plain(layer, weight, bias) for layer in layers]


def _layer_class(name: str) -> type[nn.Module]:
    if name == SAME:
        from timm.layers import Conv2dSame  # an extra

        same: type[nn.Module] = Conv2dSame
        return same
    for layer in LAYERS:
        if layer.__name__ == name:
            return layer
    raise ModelError(f"layers are materialised into {', '.join(x.__name__ for x in LAYERS)} or {SAME}, got {name!r}")


def _agrees(plain: _Plain, module: nn.Module, inputs: Tensor, outputs: Tensor) -> bool:
    try:
        found = plain.outputs(module, inputs)
    except (RuntimeError, TypeError, ValueError, AttributeError):  # not the sizes or attributes of this plain layer
        return False
    return found.shape == outputs.shape and bool((found - outputs).abs().max() <= RELATIVE * outputs.abs().max())


def _used(module: nn.Module, inputs: Tensor) -> tuple[Tensor | None, Tensor | None] | None:
    """The weight and bias of the one product in a module's `forward`; None if there is none, or several."""
    with _Uses() as uses:
        module.forward(inputs)
    return uses.seen[0] if len(uses.seen) == 1 else None


def _same(left: Tensor | None, right: Tensor | None) -> bool:
    if left is None or right is None:
        return left is right
    return torch.equal(left, right)


class _Uses(TorchFunctionMode):
    """Notes the weight and bias of every convolution and matrix product of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor | None, Tensor | None]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func in USES:
            named = dict(zip(("input", "weight", "bias"), args, strict=False)) | given
            self.seen.append((named.get("weight"), named.get("bias")))
        return func(*args, **given)


def _drop_library_ones(module: nn.Module) -> str | None:
    """Remove parametrizations and hooks of `torch.nn.utils`; returns what the module was, None if it had none."""
    was = None
    if parametrize.is_parametrized(module):
        was = type(module).__name__
        for name in list(module.parametrizations):  # type: ignore[arg-type]
            _drop_parametrization(module, name)
    for hook in list(module._forward_pre_hooks.values()):
        for kind, remove in HOOKS.items():
            if isinstance(hook, kind):
                was = kind.__name__
                remove(module, hook.name)
    # torch leaves this one behind: loading would ask for tensors that are gone
    for key, wrapped in list(module._load_state_dict_pre_hooks.items()):
        if isinstance(getattr(wrapped, "hook", wrapped), SpectralNormLoadStateDictPreHook):
            del module._load_state_dict_pre_hooks[key]
    if was:
        module.__dict__["materialised"] = Materialised(None, getattr(module, "bias", None) is not None)
    return was


def _drop_parametrization(module: nn.Module, name: str) -> None:
    """Give a module the value of one of its tensors; a frozen parameter stays a parameter."""
    sources = list(module.parametrizations[name].parameters())  # type: ignore[index, union-attr]
    with torch.enable_grad():  # a value made of several has no gradient otherwise, and would be no parameter
        parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    if sources and (value := module._buffers.get(name)) is not None:
        delattr(module, name)
        module.register_parameter(name, nn.Parameter(value.detach(), requires_grad=False))


def record_of(found: Materialised) -> dict[str, Any]:
    """What `restore_materialised` needs."""
    return asdict(found)
