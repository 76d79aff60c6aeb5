import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm.layers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers.grn import GlobalResponseNorm
from timm.layers.norm import (
    LayerNorm2dFp32,
    LayerNormExp2d,
    RmsNorm2dFp32,
    RmsNormFp32,
    SimpleNorm2dFp32,
    SimpleNormFp32,
)
from timm.layers.norm_act import GroupNorm1Act, LayerNormAct, LayerNormAct2d
from timm.models.metaformer import LayerNormNoBias
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

from amc.surgery.narrow_norm import NarrowNorm, narrow_norm, norm_rule
from amc.system.errors import ModelError
from tests.surgery.exactness import assert_exact

WIDTH = 12


class Llama(nn.Module):
    """Another's RMS norm: other names, no base class."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))
        self.variance_epsilon = 1e-4

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon) * self.gamma


class Planes(nn.Module):
    """A norm over channels that come first, its parameters shaped as a picture's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.b, self.g = nn.Parameter(torch.zeros(1, width, 1, 1)), nn.Parameter(torch.ones(1, width, 1, 1))
        self.eps = 1e-3

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, 1, unbiased=False, keepdim=True)
        return (x - mean) / (variance + self.eps).sqrt() * self.g + self.b


LAST: dict[str, Callable[[], nn.Module]] = {
    "LayerNorm": lambda: nn.LayerNorm(WIDTH),
    "LayerNorm, no bias": lambda: nn.LayerNorm(WIDTH, bias=False, eps=1e-3),
    "LayerNormNoBias": lambda: LayerNormNoBias(WIDTH),
    "timm LayerNorm": lambda: timm.layers.LayerNorm(WIDTH),
    "timm LayerNormFp32": lambda: timm.layers.LayerNormFp32(WIDTH),
    "LayerNormAct": lambda: LayerNormAct(WIDTH),
    "RMSNorm": lambda: nn.RMSNorm(WIDTH),
    "RMSNorm, eps": lambda: nn.RMSNorm(WIDTH, eps=1e-2),
    "timm RmsNorm": lambda: timm.layers.RmsNorm(WIDTH),
    "timm RmsNormFp32": lambda: RmsNormFp32(WIDTH),
    "timm SimpleNorm": lambda: timm.layers.SimpleNorm(WIDTH),
    "timm SimpleNormFp32": lambda: SimpleNormFp32(WIDTH),
    "Llama": lambda: Llama(WIDTH),
    "GlobalResponseNorm": lambda: GlobalResponseNorm(WIDTH, channels_last=True),
}
FIRST: dict[str, Callable[[], nn.Module]] = {
    "torchvision LayerNorm2d": lambda: LayerNorm2d((WIDTH,)),
    "timm LayerNorm2d": lambda: timm.layers.LayerNorm2d(WIDTH),
    "timm LayerNorm2dFp32": lambda: LayerNorm2dFp32(WIDTH),
    "timm LayerNormExp2d": lambda: LayerNormExp2d(WIDTH),
    "LayerNormAct2d": lambda: LayerNormAct2d(WIDTH, act_layer=nn.GELU),
    "timm RmsNorm2d": lambda: timm.layers.RmsNorm2d(WIDTH),
    "timm RmsNorm2dFp32": lambda: RmsNorm2dFp32(WIDTH),
    "timm SimpleNorm2d": lambda: timm.layers.SimpleNorm2d(WIDTH),
    "timm SimpleNorm2dFp32": lambda: SimpleNorm2dFp32(WIDTH),
    "GroupNorm": lambda: nn.GroupNorm(1, WIDTH),
    "timm GroupNorm1": lambda: timm.layers.GroupNorm1(WIDTH),
    "GroupNorm1Act": lambda: GroupNorm1Act(WIDTH),
    "Planes": lambda: Planes(WIDTH),
    "GlobalResponseNorm, channels first": lambda: GlobalResponseNorm(WIDTH, channels_last=False),
}
NORMS = LAST | FIRST


def with_random_constants(name: str, seed: int) -> tuple[nn.Module, Tensor]:
    """A norm with random parameters, and an input for it, some of it as small as eps."""
    draw = torch.Generator().manual_seed(seed)
    module = NORMS[name]().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    shape = (3, 4, 5, WIDTH) if name in LAST else (3, WIDTH, 4, 5)
    scale = torch.tensor([1.0, 0.01, 30.0]).view(3, 1, 1, 1)
    return module, (torch.randn(shape, generator=draw) + torch.randn(1, generator=draw)) * scale


def cut(module: nn.Module, kept: Tensor) -> nn.Module:
    """A copy with the kept entries of every parameter."""
    small = copy.deepcopy(module)
    for name, value in small.named_parameters(recurse=False):
        dim = value.shape.index(WIDTH)
        setattr(small, name, nn.Parameter(value.detach().index_select(dim, kept)))
    return small


def narrowed(name: str, kept: Tensor, seed: int) -> tuple[nn.Module, nn.Module, Tensor, Tensor, int]:
    """The dense norm, the narrow one, the dense one's masked input, the narrow one's, the channel dimension."""
    module, inputs = with_random_constants(name, seed)
    dim = inputs.ndim - 1 if name in LAST else 1
    rule = norm_rule(module)
    small = cut(module, kept)
    narrow_norm(small, WIDTH, rule)
    few = inputs.index_select(dim, kept)
    return module, small, torch.zeros_like(inputs).index_copy(dim, kept, few), few, dim


SUBSETS = st.sets(st.integers(0, WIDTH - 1), min_size=1).map(lambda kept: torch.tensor(sorted(kept)))


@pytest.mark.parametrize("name", NORMS)
def test_a_narrow_norm_is_the_dense_one_on_zeros_where_channels_went(name: str) -> None:
    """On the channels that are left, for any subset of them."""

    @settings(max_examples=10, deadline=None)
    @given(SUBSETS, st.integers(0, 99))
    def check(kept: Tensor, seed: int) -> None:
        dense, small, masked, few, dim = narrowed(name, kept, seed)
        expected, before = dense(masked).index_select(dim, kept), few.clone()
        assert_exact(small(few), expected)
        with torch.inference_mode():  # memory is used anew there, but not that of the input
            assert_exact(small(few), expected)
        assert torch.equal(few, before)

    check()


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_that_lost_nothing_is_the_dense_one_to_the_bit(name: str) -> None:
    """The stand-in runs the code of its class."""
    dense, small, masked, few, _ = narrowed(name, torch.arange(WIDTH), 0)
    assert torch.equal(small(few), dense(masked))


@pytest.mark.parametrize("name", NORMS)
def test_a_narrow_norm_keeps_its_names_hooks_and_class_and_has_the_masked_gradient(name: str) -> None:
    """What trains a network notices no difference."""
    kept = torch.tensor([0, 3, 4, 9])
    dense, small, masked, few, dim = narrowed(name, kept, 1)
    assert isinstance(small, type(dense)) and small.state_dict().keys() == dense.state_dict().keys()
    assert getattr(small, "full_width", None) == WIDTH and not small.training
    masked.requires_grad_(), few.requires_grad_()
    weights = torch.randn(dense(masked).index_select(dim, kept).shape, generator=torch.Generator().manual_seed(2))
    (dense(masked).index_select(dim, kept) * weights).sum().backward()
    (small(few) * weights).sum().backward()
    assert few.grad is not None and masked.grad is not None
    assert_exact(few.grad, masked.grad.index_select(dim, kept))
    for (_, own), (_, full) in zip(small.named_parameters(), dense.named_parameters(), strict=True):
        assert own.grad is not None and full.grad is not None
        assert_exact(own.grad, full.grad.index_select(full.shape.index(WIDTH), kept))


@pytest.mark.parametrize("name", ["LayerNorm", "timm LayerNorm2d", "RMSNorm", "GroupNorm", "Llama"])
def test_a_narrow_norm_can_be_exported_copied_and_pickled(name: str) -> None:
    """Its class is made while the program runs."""
    _, small, _, few, _ = narrowed(name, torch.tensor([1, 2, 7]), 0)
    batch = torch.export.Dim("batch", min=1, max=9)
    exported = torch.export.export(small, (few,), dynamic_shapes=({0: batch},))
    assert_exact(exported.module()(few[:1]), small(few[:1]))
    for twin in (copy.deepcopy(small), pickle.loads(pickle.dumps(small)), copy.copy(small)):
        assert type(twin) is type(small) and torch.equal(twin(few), small(few))


@pytest.mark.parametrize("name", ["LayerNorm", "timm LayerNorm2d", "RMSNorm", "GroupNorm"])
def test_statistics_of_low_precision_are_taken_in_float32(name: str) -> None:
    """bfloat16 in, bfloat16 out, and no error beyond rounding once."""
    _, small, _, few, _ = narrowed(name, torch.tensor([1, 2, 7]), 0)
    few = few.bfloat16()
    exact = small(few.float())
    with torch.autocast("cpu", torch.bfloat16):
        found = small(few)
    assert found.dtype == torch.bfloat16 and torch.equal(found, exact.bfloat16())


@pytest.mark.parametrize(
    "module",
    [nn.LayerNorm(WIDTH, elementwise_affine=False), nn.LayerNorm((3, WIDTH)), nn.GroupNorm(3, WIDTH), nn.Linear(8, 8),
     nn.BatchNorm2d(WIDTH), nn.InstanceNorm2d(WIDTH, affine=True), nn.Conv2d(WIDTH, WIDTH, 1), nn.PReLU(WIDTH),
     nn.ReLU(), nn.Sequential(nn.LayerNorm(WIDTH)), nn.Embedding(1, WIDTH)],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_only_norms_over_channels_can_be_narrowed(module: nn.Module) -> None:
    """Others keep their class, and the error says why."""
    before = type(module)
    assert norm_rule(module) is None
    with pytest.raises(ModelError, match="a normalisation can be cut if"):
        narrow_norm(module, WIDTH)
    assert type(module) is before


def test_the_probe_leaves_the_module_and_the_random_state_alone() -> None:
    """Neither parameters, nor modes of children, nor hooks, nor torch's generator."""
    module: Any = LayerNormAct(WIDTH, drop_layer=nn.Dropout)
    module.register_forward_hook(lambda *_: pytest.fail("ran"))
    before, state = copy.deepcopy(module.state_dict()), torch.random.get_rng_state()
    assert norm_rule(module) is not None
    assert module.training and module.drop.training and torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_narrow_norm_can_be_cut_again() -> None:
    """The second cut is of the same dense width."""
    dense, small, _, _, dim = narrowed("timm LayerNorm2d", torch.tensor([1, 2, 7, 8]), 0)
    for name, value in list(small.named_parameters(recurse=False)):
        setattr(small, name, nn.Parameter(value.detach()[1:3]))
    narrow_norm(small, WIDTH)
    inputs, kept = torch.zeros(2, WIDTH, 3, 3), torch.tensor([2, 7])
    inputs[:, kept] = torch.randn(2, 2, 3, 3)
    assert isinstance(small, NarrowNorm)
    assert_exact(small(inputs[:, kept]), dense(inputs).index_select(dim, kept))
