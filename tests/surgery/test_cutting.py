import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from amc.cost.activations import live_bytes, profile_activations
from amc.surgery.cutting import cut_channels, cut_tensors, with_tensors, zero_channels
from amc.surgery.fitting import resize_layers
from amc.surgery.flop_counter import count_cut_macs
from amc.surgery.folding import cut_and_fold, reestimate_batchnorm, take_moments
from amc.surgery.tracer import trace
from tests.surgery.networks import SOUND, Traced, assert_cut_is_mask, known, policies, randomise, traced

FEW = settings(max_examples=12, deadline=None)
DEEP = [pytest.param(name, marks=pytest.mark.slow) for name in ("mobilenet_v2", "densenet121", "resnext50_32x4d")]
EFFICIENT = pytest.param("efficientnet_b0", marks=pytest.mark.slow)
NETWORKS = ["resnet20", "resnet18", "vgg_small", "mobilenet_v2", *DEEP[1:]]


def assert_costs_are_counts(net: Traced, small: nn.Module, policy: np.ndarray) -> None:  # type: ignore[type-arg]
    """What the cost functions say is what can be counted on the network that was cut."""
    said = {unit: float(cost(torch.from_numpy(policy)[None])) for unit, cost in net.costs.items()}
    stored = {tensor.data_ptr(): tensor for tensor in small.state_dict().values()}
    assert said == {
        "macs": count_cut_macs(small, net.inputs),
        "params": sum(parameter.numel() for parameter in small.parameters()),
        "bytes": sum(tensor.nbytes for tensor in stored.values()),
    }


@pytest.mark.parametrize("name", [*NETWORKS, EFFICIENT])
def test_a_cut_is_the_dense_network_with_zeros_at_its_exact_cost(name: str) -> None:
    """Output of the cut equals that of zeroing, and MACs, parameters and bytes equal the counts, for any policy."""
    net = known(name)

    @FEW
    @given(policies(net.table), st.integers(0, 99))
    def check(policy: np.ndarray, seed: int) -> None:  # type: ignore[type-arg]
        assert_costs_are_counts(net, assert_cut_is_mask(net, net.kept(policy, seed)), policy)

    check()


@pytest.mark.parametrize("name", SOUND)
def test_every_kind_of_layer_is_cut_exactly(name: str) -> None:
    """Small networks, one trap each: the groups expected, cut equal to zeroing, costs equal to counts."""
    make, groups = SOUND[name]
    torch.manual_seed(0)
    net = traced(randomise(make()), (3, 8, 8) if name == "flattened" else (3, 12, 12))
    assert len(net.table.groups) == groups

    @settings(max_examples=6, deadline=None)
    @given(policies(net.table), st.integers(0, 99))
    def check(policy: np.ndarray, seed: int) -> None:  # type: ignore[type-arg]
        assert_costs_are_counts(net, assert_cut_is_mask(net, net.kept(policy, seed)), policy)

    check()


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "vgg_small", *DEEP])
def test_peak_activations_are_those_of_the_cut_network(name: str) -> None:
    """The peak predicted for a policy is the peak seen while the cut network runs on a picture of its own."""
    net = known(name)
    cost = profile_activations(net.model, net.table, tuple(net.inputs.shape[1:]))

    @settings(max_examples=6, deadline=None)
    @given(policies(net.table), st.integers(0, 99))
    def check(policy: np.ndarray, seed: int) -> None:  # type: ignore[type-arg]
        small = cut_channels(net.model, net.table, net.kept(policy, seed))
        assert float(cost(torch.from_numpy(policy)[None])) == max(live_bytes(small, net.inputs.clone()))

    check()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_dense_policy_changes_nothing(name: str) -> None:
    """Keeping everything gives the same output bit for bit, in tensors of its own."""
    net = known(name)
    same = cut_channels(net.model, net.table, net.kept(net.table.space.high))
    with torch.no_grad():
        assert torch.equal(same(net.inputs), net.model(net.inputs))
    theirs = {tensor.data_ptr() for tensor in net.model.state_dict().values()}
    assert not theirs & {tensor.data_ptr() for tensor in same.state_dict().values()}


def test_a_cut_keeps_devices_formats_flags_and_modes() -> None:
    """`requires_grad`, training flags, dtype and channels-last stay as they are in the dense network."""
    net = known("resnet20")
    model = copy.deepcopy(net.model).to(dtype=torch.float64, memory_format=torch.channels_last)
    model.bn1.train()
    model.layer1.requires_grad_(False)
    small = cut_channels(model, net.table, net.kept(net.table.space.low))
    assert small.bn1.training and not small.training
    assert {name for name, p in small.named_parameters() if not p.requires_grad} == {
        name for name, p in model.named_parameters() if not p.requires_grad
    }
    assert all(p.dtype == torch.float64 for p in small.parameters())
    kernels = [p for p in small.parameters() if p.ndim == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


def state_of(model: nn.Module) -> tuple[dict[str, torch.Tensor], list[bool], list[bool], int]:
    """Everything of a network that a visitor could have left changed."""
    hooks = sum(
        len(getattr(module, kind))
        for module in model.modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    )
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return tensors, [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()], hooks


def test_the_users_network_is_left_as_it_was_found() -> None:
    """Trace, cut, mask, moments, fold and BatchNorm change no number, flag, mode, gradient or hook of the network."""
    net = known("resnet20")
    model = copy.deepcopy(net.model)
    model.train()
    model.bn1.eval()
    model.layer2.requires_grad_(False)
    before = state_of(model)
    trace(model, net.inputs)
    kept = net.kept(net.table.space.low)
    batches = [(torch.randn(8, 3, 16, 16), torch.zeros(8)) for _ in range(2)]
    moments = take_moments(model, net.table, batches)
    small = cut_and_fold(model, net.table, kept, moments)
    cut_channels(model, net.table, kept), zero_channels(model, net.table, kept)
    reestimate_batchnorm(small, batches)
    profile_activations(model, net.table, (3, 16, 16))
    after = state_of(model)
    assert before[1:] == after[1:]
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_training_a_cut_leaves_the_dense_network_alone() -> None:
    """A cut shares no storage with the dense network: a step on one is not seen in the other."""
    net = known("resnet20")
    before = {name: tensor.clone() for name, tensor in net.model.state_dict().items()}
    small = cut_channels(net.model, net.table, net.kept(net.table.space.low)).train()
    small(net.inputs).sum().backward()
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.sub_(parameter.grad)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.model.state_dict().items())


def test_a_shared_parameter_goes_on_being_shared() -> None:
    """Two modules that hold one parameter hold one parameter after the cut, too."""
    net = traced(randomise(SOUND["tied"][0]()), (3, 12, 12))
    small = cut_channels(net.model, net.table, net.kept(net.table.space.low))
    assert small.b.weight is small.c.weight and small.b.weight is not net.model.b.weight


def test_module_integers_follow_their_tensors() -> None:
    """After a cut every module's own widths agree with its tensors, so nothing is left to resize."""
    for name in ("resnext50_32x4d", "mobilenet_v2"):
        net = known(name)
        small = cut_channels(net.model, net.table, net.kept(net.table.space.low))
        before = {path: dict(vars(module)) for path, module in small.named_modules()}
        resize_layers(small.modules())
        assert before == {path: dict(vars(module)) for path, module in small.named_modules()}
        depthwise = [m for m in small.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
        assert all(m.weight.shape[1] * m.groups == m.in_channels for m in depthwise)


def test_the_same_cut_twice_is_the_same_network() -> None:
    """A cut depends on nothing but its arguments."""
    net = known("mobilenet_v2")
    kept = net.kept(net.table.space.nearest(net.table.space.high / 2))
    one, two = cut_channels(net.model, net.table, kept), cut_channels(net.model, net.table, kept)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    again = with_tensors(net.model, cut_tensors(dict(net.model.state_dict()), net.table, kept))
    assert torch.equal(again(net.inputs), one(net.inputs))
