import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from amc.surgery.empty_branch import replace_if_empty
from tests.surgery.exactness import assert_exact

CONVOLUTIONS: dict[str, Callable[[], Any]] = {
    "1d": lambda: nn.Conv1d(4, 6, 5, stride=2, dilation=2),
    "2d": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "2d, oblong": lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2)),
    "2d, no bias": lambda: nn.Conv2d(4, 6, 3, bias=False),
    "2d, same": lambda: nn.Conv2d(4, 6, 4, padding="same", dilation=2),
    "2d, valid": lambda: nn.Conv2d(4, 6, 3, padding="valid"),
    "2d, reflect": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=2, padding_mode="reflect"),
    "2d, circular": lambda: nn.Conv2d(4, 6, 3, padding=(2, 1), padding_mode="circular"),
    "timm Conv2dSame": lambda: Conv2dSame(4, 6, 3, stride=2),
    "3d": lambda: nn.Conv3d(4, 6, 3, stride=(1, 2, 2), padding=1),
    "transposed 1d": lambda: nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1),
    "transposed 2d": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, dilation=2),
    "transposed 3d": lambda: nn.ConvTranspose3d(4, 6, 2, stride=2, bias=False),
}
SIDES = {"1d": (17,), "3d": (5, 7, 9)}


def picture(name: str, channels: int) -> Tensor:
    return torch.randn(2, channels, *SIDES.get(name.removeprefix("transposed "), (9, 10)))


def emptied(convolution: Any, inward: bool, outward: bool) -> Any:
    """A copy that has lost all its input channels, or all its output channels, or both, as a cut leaves it."""
    small = copy.deepcopy(convolution)
    transposed = isinstance(small, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
    weight = small.weight.detach()
    for gone, dim in ((outward, int(transposed)), (inward, int(not transposed))):
        weight = weight.narrow(dim, 0, 0) if gone else weight
    small.weight = nn.Parameter(weight)
    if outward and small.bias is not None:
        small.bias = nn.Parameter(small.bias.detach()[:0])
    replace_if_empty(small)
    return small


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_without_channels_gives_what_zero_weights_give(name: str) -> None:
    """Without output channels a tensor of the right size, without input channels the bias at every place."""
    dense = CONVOLUTIONS[name]().eval()
    with torch.no_grad():
        dense.weight.zero_()
    expected = dense(picture(name, 4))
    assert_exact(emptied(dense, True, False)(picture(name, 0)), expected)
    for inward in (True, False):
        small = emptied(dense, inward, True)
        assert isinstance(small, type(dense)) and small.state_dict().keys() == dense.state_dict().keys()
        assert small(picture(name, 0 if inward else 4)).shape == (2, 0, *expected.shape[2:])
        assert small(picture(name, 0 if inward else 4)[0]).shape == (0, *expected.shape[2:])


@pytest.mark.parametrize("groups", [2, 4])
def test_a_grouped_convolution_without_groups_gives_nothing(groups: int) -> None:
    """Depthwise or not."""
    small = nn.Conv2d(4, 4, 3, groups=groups, stride=2)
    small.weight, small.bias = nn.Parameter(small.weight[:0].detach()), nn.Parameter(torch.zeros(0))
    small.groups = 0
    replace_if_empty(small)
    assert small(torch.zeros(2, 0, 9, 9)).shape == (2, 0, 4, 4)


NORMS: dict[str, Callable[[], Any]] = {
    "BatchNorm1d": lambda: nn.BatchNorm1d(4),
    "BatchNorm2d": lambda: nn.BatchNorm2d(4),
    "BatchNorm2d, no parameters": lambda: nn.BatchNorm2d(4, affine=False),
    "BatchNormAct2d": lambda: BatchNormAct2d(4),
    "GroupNorm": lambda: nn.GroupNorm(2, 4),
    "GroupNorm, no parameters": lambda: nn.GroupNorm(2, 4, affine=False),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(4, affine=True),
    "InstanceNorm2d, no parameters": lambda: nn.InstanceNorm2d(4),
    "PReLU": lambda: nn.PReLU(4),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NORMS)
def test_a_norm_without_channels_gives_what_it_is_given(name: str, training: bool) -> None:
    """In both modes, and it is still an instance of its class."""
    small = NORMS[name]().train(training)
    for own, value in [*small._parameters.items(), *small._buffers.items()]:
        if value is not None and value.ndim:
            store = small._parameters if own in small._parameters else small._buffers
            store[own] = nn.Parameter(value.detach()[:0]) if own in small._parameters else value[:0]
    replace_if_empty(small)
    x = torch.zeros((2, 0) if name == "BatchNorm1d" else (2, 0, 3, 3))
    assert small(x).shape == x.shape and isinstance(small, type(NORMS[name]()))


def test_a_layer_norm_without_channels_gives_what_it_is_given() -> None:
    """Its channels come last."""
    small = nn.LayerNorm(4)
    small.weight, small.bias = nn.Parameter(torch.zeros(0)), nn.Parameter(torch.zeros(0))
    replace_if_empty(small)
    assert small(torch.zeros(2, 3, 0)).shape == (2, 3, 0)


@pytest.mark.parametrize(
    "module",
    [nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, ceil_mode=True), nn.AvgPool2d(3, 2), nn.AdaptiveMaxPool2d(2),
     nn.Upsample(scale_factor=2), nn.Upsample(size=(4, 5), mode="bilinear"), nn.ReflectionPad2d(2),
     nn.AdaptiveAvgPool2d(1), nn.GroupNorm(2, 4, affine=False)],
    ids=str,
)  # fmt: skip
def test_pools_take_pictures_with_and_without_channels(module: nn.Module) -> None:
    """Nothing but the input tells them apart."""
    x = torch.randn(2, 4, 9, 9)
    expected = module(x)
    replace_if_empty(module)
    assert torch.equal(module(x), expected)
    assert module(x[:, :0]).shape == (2, 0, *expected.shape[2:])


def test_modules_with_channels_and_those_that_torch_runs_stay_as_they_are() -> None:
    """Among them a Linear layer without inputs."""
    for module in (nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.Linear(2, 2), nn.ReLU(), nn.LayerNorm(1)):
        before = type(module)
        replace_if_empty(module)
        assert type(module) is before
    linear = nn.Linear(3, 2)
    linear.weight = nn.Parameter(torch.zeros(2, 0))
    for kind in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == torch.bfloat16):
            found = linear(torch.zeros(5, 0))
        assert torch.equal(found, linear.bias.to(kind).expand(5, 2))
    linear(torch.zeros(5, 0)).sum().backward()
    assert linear.bias.grad is not None and linear.bias.grad.tolist() == [5, 5]


class Branch(nn.Module):
    """A residual network whose branch can lose its inner channels."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        self.conv1 = nn.Conv2d(4, inner, 3, stride=2, padding=1, bias=False)
        self.norm1, self.relu = nn.BatchNorm2d(inner), nn.ReLU(inplace=True)
        self.depthwise = Conv2dSame(inner, inner, 3, groups=max(1, inner))
        self.norm2, self.conv2, self.norm3 = nn.PReLU(inner), nn.Conv2d(inner, 4, 1), nn.BatchNorm2d(4)
        self.down = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm2(self.depthwise(self.relu(self.norm1(self.conv1(x)))))
        x = self.relu(self.down(x) + self.relu(self.norm3(self.conv2(y))))
        return torch.as_tensor(self.head(x.mean((2, 3))))


def vanished_branch() -> tuple[nn.Module, nn.Module]:
    """A network whose branch has only zeros, and the same without those channels."""
    torch.manual_seed(0)
    dense = Branch(4)
    with torch.no_grad():
        for layer in (dense.conv1, dense.norm1, dense.depthwise, dense.norm2):
            for parameter in layer.parameters():
                parameter.zero_()
    small: Any = Branch(4)
    small.load_state_dict(dense.state_dict())
    for layer in (small.conv1, small.norm1, small.depthwise, small.norm2):
        for own, value in layer._parameters.items():
            layer._parameters[own] = None if value is None else nn.Parameter(value.detach()[:0])
        for own, value in layer._buffers.items():
            layer._buffers[own] = value[:0] if value.ndim else value
    small.conv2.weight = nn.Parameter(small.conv2.weight.detach()[:, :0])
    for layer in small.modules():
        replace_if_empty(layer)
    return dense.eval(), small.eval()


def test_a_network_with_a_vanished_branch_is_the_one_with_zeros_and_no_product_is_computed_for_it() -> None:
    """Also where nobody looks but torch's own counter; in float32 and bfloat16, channels last or not."""
    dense, small = vanished_branch()
    x = torch.randn(2, 3, 10, 10)
    for inputs in (x, x.contiguous(memory_format=torch.channels_last)):
        assert_exact(small(inputs), dense(inputs))
        with torch.autocast("cpu", torch.bfloat16):
            assert_exact(small(inputs), dense(inputs), 1e-2)
    counter = FlopCounterMode(display=False)
    with counter:
        small(x)
    assert counter.get_total_flops() == 2 * 2 * (3 * 4 * 9 * 64 + 4 * 2)


def test_a_network_with_a_vanished_branch_trains_and_every_parameter_is_seen_used() -> None:
    """Processes that train together wait for the gradient of each parameter."""
    dense, small = vanished_branch()
    x = torch.randn(4, 3, 10, 10)
    for net in (dense, small):
        net.train()
        net(x).square().sum().backward()
    full = dict(dense.named_parameters())
    for name, parameter in small.named_parameters():
        assert parameter.grad is not None, name
        if parameter.numel():
            expected = full[name].grad
            assert expected is not None
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6)
    for (_, ours), (_, theirs) in zip(small.named_buffers(), dense.named_buffers(), strict=True):
        if ours.numel() and ours.is_floating_point():
            assert_exact(ours, theirs)


def test_a_network_with_a_vanished_branch_can_be_exported() -> None:
    """With the batch size left open; no product over nothing is in the graph."""
    _, small = vanished_branch()
    shapes = ({0: torch.export.Dim("batch", min=1, max=9)},)
    exported = torch.export.export(small, (torch.randn(2, 3, 10, 12),), dynamic_shapes=shapes)
    x = torch.randn(3, 3, 10, 12)
    assert_exact(exported.module()(x), small(x))
    assert sum("conv" in str(node.target) for node in exported.graph.nodes if node.op == "call_function") == 1
