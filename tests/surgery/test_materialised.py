import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import Conv2dSame
from timm.layers.std_conv import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, spectral_norm

from amc.surgery.materialised import materialise
from amc.surgery.replacement_records import replacement_record, restore_replacement
from amc.zoo.call import Call
from tests.surgery.exactness import assert_exact


class Tanh(nn.Linear):
    """A layer whose weight and bias are derived by a rule of its own, with a buffer."""

    limit: Tensor

    def __init__(self) -> None:
        super().__init__(5, 7)
        self.register_buffer("limit", torch.tensor(0.5))

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.limit * self.weight.tanh(), self.bias - 1)


class Centred(nn.ConvTranspose1d):
    """A transposed convolution with another name for its input and no bias in use."""

    def forward(self, signal: Tensor) -> Tensor:  # type: ignore[override]
        return functional.conv_transpose1d(signal, weight=self.weight - self.weight.mean(0), stride=self.stride)


class Dynamic(nn.Conv2d):
    """The weight follows the input."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight * x.mean(), self.bias)


class Twice(nn.Conv2d):
    """Two products, so no plain layer."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight.abs()) + functional.conv2d(x, self.weight, self.bias)


class Rectified(nn.Conv2d):
    """A derived weight, and more than a plain layer does."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight.abs(), self.bias).relu()


class Untouched(nn.Conv2d):
    """Its own forward, its own weight."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight, self.bias)


def old_weight_norm() -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(nn.Conv2d(4, 6, 3))


def warm(module: nn.Module) -> nn.Module:
    """Spectral norm needs a few steps in training before its weight means something."""
    for _ in range(3):
        module.train()(torch.randn(2, 5))
    return module


PICTURE, ROWS, SIGNAL = (2, 4, 9, 9), (3, 5), (2, 4, 9)
MATERIALISED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "StdConv2d": (lambda: StdConv2d(4, 6, 3, bias=True), PICTURE, "Conv2d"),
    "StdConv2d, no bias": (lambda: StdConv2d(4, 6, 3, stride=2, groups=2), PICTURE, "Conv2d"),
    "StdConv2dSame": (lambda: StdConv2dSame(4, 6, 3, stride=2), PICTURE, "Conv2dSame"),
    "StdConv2dSame, static": (lambda: StdConv2dSame(4, 6, 3), PICTURE, "Conv2d"),
    "ScaledStdConv2d": (lambda: ScaledStdConv2d(4, 6, 3, gamma=1.7), PICTURE, "Conv2d"),
    "ScaledStdConv2dSame": (lambda: ScaledStdConv2dSame(4, 6, 3, stride=2), PICTURE, "Conv2dSame"),
    "Tanh": (Tanh, ROWS, "Linear"),
    "Centred": (lambda: Centred(4, 3, 2, stride=2), SIGNAL, "ConvTranspose1d"),
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Conv2d(4, 6, 3)), PICTURE, "Conv2d"),
    "spectral_norm": (lambda: warm(parametrizations.spectral_norm(nn.Linear(5, 7))), ROWS, "Linear"),
    "old weight_norm": (old_weight_norm, PICTURE, "Conv2d"),
    "old spectral_norm": (lambda: warm(spectral_norm(nn.Linear(5, 7))), ROWS, "Linear"),
    "weight_norm of StdConv2d": (lambda: parametrizations.weight_norm(StdConv2d(4, 6, 3)), PICTURE, "Conv2d"),
}
LEFT: dict[str, Callable[[], nn.Module]] = {
    "Dynamic": lambda: Dynamic(4, 6, 3),
    "Twice": lambda: Twice(4, 6, 3),
    "Rectified": lambda: Rectified(4, 6, 3),
    "Untouched": lambda: Untouched(4, 6, 3),
    "Conv2dSame": lambda: Conv2dSame(4, 6, 3),
    "Conv2d": lambda: nn.Conv2d(4, 6, 3),
}


def randomise(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.1 * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize("name", MATERIALISED)
def test_a_layer_that_derives_its_weight_becomes_a_plain_one_that_does_the_same(name: str) -> None:
    """Also on inputs of other sizes; nothing but weight and bias is left; it can be rebuilt from its record."""
    make, shape, plain = MATERIALISED[name]
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Identity(), make() if "spectral" in name else randomise(make()))
    first = torch.randn(shape)
    inputs = [first, torch.randn((5, shape[1], *(side + 2 for side in shape[2:])))]
    expected = [model.eval()(x).detach() for x in inputs]
    model.train()
    was = materialise(model, first)
    layer = model[1]
    assert list(was) == ["1"] and type(layer).__name__ == plain
    assert {key for key, _ in layer.named_parameters()} <= {"weight", "bias"} and not list(layer.buffers())
    assert layer.training and all(parameter.requires_grad for parameter in layer.parameters())
    for x, dense in zip(inputs, expected, strict=True):
        assert_exact(layer.eval()(x), dense)
    fresh = make()
    restore_replacement(fresh, json.loads(json.dumps(replacement_record(layer))))
    assert type(fresh) is type(layer)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh.eval()(first), layer(first))
    assert replacement_record(fresh) == replacement_record(layer)


@pytest.mark.parametrize("name", LEFT)
def test_other_layers_are_left_as_they_were(name: str) -> None:
    """Not a tensor, not a class, not a mode of them changes."""
    model: Any = randomise(nn.Sequential(LEFT[name]()))
    kind, state = type(model[0]), copy.deepcopy(model.state_dict())
    assert materialise(model, Call((torch.randn(PICTURE),))) == {}
    assert (
        type(model[0]) is kind and model.training and replacement_record(model[0]) == {} and not model[0]._forward_hooks
    )
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_layers_that_share_a_parameter_are_left_as_they_were() -> None:
    """Baked, each would have a weight of its own."""
    model = nn.Sequential(StdConv2d(4, 4, 3), StdConv2d(4, 4, 3))
    model[1].weight = model[0].weight
    assert materialise(model, torch.randn(PICTURE)) == {}


def test_a_layer_called_twice_is_baked_once() -> None:
    """It must agree at both calls."""
    layer = randomise(StdConv2d(4, 4, 3))
    model = nn.Sequential(layer, layer)
    x = torch.randn(PICTURE)
    expected = model(x)
    assert materialise(model, x) == {"0": "StdConv2d"}
    assert type(layer) is nn.Conv2d
    assert_exact(model(x), expected)


def test_frozen_parameters_stay_frozen_parameters() -> None:
    """Whether a weight was made of one tensor or of several."""
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 7)), Tanh()).requires_grad_(False)
    assert set(materialise(nn.Sequential(model[0]), torch.randn(ROWS))) == {"0"}
    assert set(materialise(nn.Sequential(model[1]), torch.randn(ROWS))) == {"0"}
    assert {name: p.requires_grad for name, p in model.named_parameters()} == dict.fromkeys(
        ["0.weight", "0.bias", "1.weight", "1.bias"], False
    )


def test_attributes_of_parametrized_modules_that_are_no_layers_are_baked_too() -> None:
    """Any tensor under `torch.nn.utils.parametrize`."""
    module: Any = nn.MultiheadAttention(8, 2)
    parametrizations.orthogonal(module, "in_proj_weight")
    x = torch.randn(3, 2, 8)
    expected = module(x, x, x)[0]
    assert materialise(module, Call((x, x, x))) == {"": "ParametrizedMultiheadAttention"}
    assert type(module) is nn.MultiheadAttention
    assert_exact(module(x, x, x)[0], expected)
