from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from amc.cost.activations import profile_activations
from amc.cost.counts import count_macs, macs_by_module
from amc.surgery.channel_table import build_table
from amc.surgery.flop_counter import count_cut_macs
from amc.surgery.tracer import trace
from tests.surgery.networks import Twice, known, policies, randomise, traced

UNITS = ("macs", "params", "bytes", "activation_bytes")


@lru_cache
def costs_of(name: str) -> dict[str, object]:
    net = known(name)
    return {**net.costs, "activation_bytes": profile_activations(net.model, net.table, tuple(net.inputs.shape[1:]))}


@pytest.mark.parametrize("unit", UNITS)
def test_a_batch_costs_what_its_policies_cost_one_by_one(unit: str) -> None:
    """Vectorised and single answers are equal: they are whole numbers, exact in float64."""
    space, cost = known("resnet20").table.space, costs_of("resnet20")[unit]
    rng = np.random.default_rng(0)
    batch = torch.from_numpy(space.low * rng.integers(1, space.high // space.low + 1, (50, len(space)))).double()
    together = cost(batch)  # type: ignore[operator]
    assert together.shape == (50,) and together.dtype == torch.float64
    assert together.tolist() == [float(cost(policy[None])) for policy in batch]  # type: ignore[operator]


@pytest.mark.parametrize("unit", UNITS)
@settings(max_examples=15, deadline=None)
@given(policies(known("resnet20").table), st.integers(0, 11))
def test_a_wider_policy_never_costs_less(unit: str, policy: np.ndarray, group: int) -> None:  # type: ignore[type-arg]
    """Costs never fall when a keep-count grows, at integers and between."""
    cost = costs_of("resnet20")[unit]
    space = known("resnet20").table.space
    wider = policy.astype(np.float64)
    wider[group] = min(wider[group] + 0.37 * space.low[group], space.high[group])
    before, after = cost(torch.from_numpy(np.stack([policy.astype(np.float64), wider]))).tolist()  # type: ignore[operator]
    assert after >= before


@pytest.mark.parametrize("unit", ["macs", "params", "bytes"])
@pytest.mark.parametrize("name", ["resnet20", "resnext50_32x4d"])
def test_gradients_are_those_of_finite_differences(name: str, unit: str) -> None:
    """Between legal points the cost is smooth, and autograd gives its slope."""
    net = known(name)
    cost = net.costs[unit]
    point = torch.from_numpy(net.table.space.high * np.random.default_rng(3).uniform(0.3, 0.9, len(net.table.space)))
    point.requires_grad_()
    (gradient,) = torch.autograd.grad(cost(point[None]).sum(), point)
    with torch.no_grad():
        step = torch.eye(len(point), dtype=torch.float64) * 1e-3
        slopes = (cost(point + step) - cost(point - step)) / 2e-3
    assert torch.allclose(gradient, slopes, rtol=1e-6)
    assert (gradient > 0).all()


def test_peak_activations_have_a_gradient() -> None:
    """The peak falls, or stays, along its own gradient: a sum of bytes of the groups alive at that moment."""
    cost = costs_of("resnet20")["activation_bytes"]
    point = torch.from_numpy(known("resnet20").table.space.high * 0.61).requires_grad_()
    (gradient,) = torch.autograd.grad(cost(point[None]).sum(), point)  # type: ignore[operator]
    assert (gradient >= 0).all() and (gradient > 0).any()


def test_resnet20_has_the_cost_of_the_paper() -> None:
    """41 M multiply-adds at 32 x 32 and 0.27 M parameters, counted by hand."""
    model = known("resnet20").model
    table = build_table(model, trace(model, torch.randn(1, 3, 32, 32)))
    stem, first = 3 * 16 * 9 * 32 * 32, 6 * 16 * 16 * 9 * 32 * 32
    second = (16 * 32 + 5 * 32 * 32) * 9 * 16 * 16 + 16 * 32 * 16 * 16
    third = (32 * 64 + 5 * 64 * 64) * 9 * 8 * 8 + 32 * 64 * 8 * 8
    by_hand = stem + first + second + third + 64 * 10
    assert float(count_macs(table)(torch.from_numpy(table.space.high)[None])) == by_hand


def test_modules_share_out_the_macs_in_the_order_in_which_they_run() -> None:
    """One figure a layer and policy; together they are the network's."""
    net = known("resnet20")
    both = torch.from_numpy(np.stack([net.table.space.high, net.table.space.step]))
    shares = macs_by_module(net.table, both)
    layers = [name for name, module in net.model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert next(iter(shares)) == "conv1" and list(shares)[-1] == "fc" and set(shares) == set(layers)
    assert shares["conv1"].tolist() == [3 * 16 * 9 * 16 * 16, 3 * float(both[1, 0]) * 9 * 16 * 16]
    assert torch.stack(list(shares.values())).sum(0).tolist() == net.costs["macs"](both).tolist()


def test_a_layer_that_runs_twice_costs_twice() -> None:
    """MACs are counted at each run, parameters once."""
    net = traced(randomise(Twice()), (3, 12, 12))
    dense = torch.from_numpy(net.table.space.high)[None]
    assert float(net.costs["macs"](dense)) == count_cut_macs(net.model, net.inputs)
    assert float(net.costs["params"](dense)) == sum(p.numel() for p in net.model.parameters())


class Attends(nn.Module):
    """A product of activations, outside any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.b(self.a(x).relu()).flatten(2)
        out: torch.Tensor = self.fc((x @ (x.transpose(1, 2) @ x).softmax(-1)).mean(2))
        return out


def test_products_outside_layers_are_counted_where_they_stand() -> None:
    """Multiply-adds of the forward function itself belong to the module whose function it is, and shrink with it."""
    net = traced(randomise(Attends()), (3, 12, 12))
    dense = torch.from_numpy(net.table.space.high)[None]
    shares = macs_by_module(net.table, dense)
    assert {name: float(share) for name, share in shares.items()} == {
        "a": 100 * 16 * 27, "b": 64 * 16 * 144, "": 2 * 16 * 64 * 64, "fc": 16 * 5,
    }  # fmt: skip
    assert float(net.costs["macs"](dense)) == count_cut_macs(net.model, net.inputs)


def test_counting_leaves_modes_as_they_were() -> None:
    """A network in training mode is counted as it is, and goes on training."""
    model = Twice().train()
    model.b.eval()
    count_cut_macs(model, torch.randn(1, 3, 12, 12))
    assert model.training and not model.b.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
