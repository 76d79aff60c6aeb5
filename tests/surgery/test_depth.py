"""Depth: a residual branch whose inner group keeps nothing is gone, and its identity path stays."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from amc.cost.counts import macs_by_module
from amc.surgery.cutting import cut_channels
from amc.surgery.proof import proved_table
from amc.zoo.call import Call
from tests.surgery.networks import Traced, costs, known, randomise


class Residual(nn.Module):
    """Two blocks with an identity path, each with its norm, and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.inner = nn.ModuleList([nn.Conv2d(16, 24, 3, padding=1) for _ in range(2)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(24) for _ in range(2)])
        self.outer = nn.ModuleList([nn.Conv2d(24, 16, 3, padding=1, bias=False) for _ in range(2)])
        self.straight, self.last, self.fc = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for inner, norm, outer in zip(self.inner, self.norms, self.outer, strict=True):
            x = x + outer(relu(norm(inner(x))))
        out: Tensor = self.fc(relu(self.last(relu(self.straight(x)))).mean((2, 3)))
        return out


@pytest.fixture(scope="module")
def net() -> Traced:
    torch.manual_seed(0)
    model, inputs = randomise(Residual()), torch.randn(1, 3, 8, 8)
    table = proved_table(model, Call((inputs,)))
    return Traced(model, table, inputs, costs(model, table))


def without(net: Traced, *names: str) -> np.ndarray:  # type: ignore[type-arg]
    policy = net.table.space.high.copy()
    for name in names:
        policy[net.table.space.names.index(name)] = 0
    return policy


def test_branches_may_go_and_the_trunk_may_not(net: Traced) -> None:
    """A group may keep nothing exactly if the answer still depends on the input without it."""
    assert {group.name for group in net.table.groups if group.removable} == {"inner.0", "inner.1"}
    assert (net.table.space.low == [0 if group.removable else group.step for group in net.table.groups]).all()


def test_without_its_inner_channels_a_block_is_its_identity_path(net: Traced) -> None:
    """The network without a block computes what one computes that never had it, bit for bit."""
    small = cut_channels(net.model, net.table, net.kept(without(net, "inner.1")))
    shorter = randomise(Residual())
    shorter.load_state_dict(net.model.state_dict())
    for part in (shorter.inner, shorter.norms, shorter.outer):
        del part[1]
    with torch.no_grad():
        assert torch.equal(small(net.inputs), shorter(net.inputs))


def test_a_block_that_is_gone_costs_nothing(net: Traced) -> None:
    """Neither multiply-adds nor parameters, exactly."""
    policy = without(net, "inner.0", "inner.1")
    shares = macs_by_module(net.table, torch.from_numpy(policy)[None])
    gone = [name for name in shares if name.startswith(("inner", "outer"))]
    assert len(gone) == 4 and all(float(shares[name]) == 0 for name in gone)
    small = cut_channels(net.model, net.table, net.kept(policy))
    assert (
        sum(parameter.numel() for part in (small.inner, small.norms, small.outer) for parameter in part.parameters())
        == 0
    )


def test_all_branches_may_go_at_once(net: Traced) -> None:
    """The smallest policy of all runs, and its answer depends on the input."""
    small = cut_channels(net.model, net.table, net.kept(net.table.space.low))
    with torch.no_grad():
        assert not torch.equal(small(net.inputs), small(-net.inputs))


def test_what_is_left_of_a_block_trains(net: Traced) -> None:
    """Every parameter, an empty one too, gets a gradient of its own shape."""
    small = cut_channels(net.model, net.table, net.kept(without(net, "inner.0"))).train()
    small(torch.cat([net.inputs, -net.inputs])).square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


def test_blocks_of_real_networks_may_go() -> None:
    """In a ResNet every block with an identity path, in a MobileNetV2 every block with one, and no other."""
    for name, expected in (("resnet20", 9), ("mobilenet_v2", 10)):
        net = known(name)
        table = proved_table(net.model, Call((net.inputs,)))
        assert sum(group.removable for group in table.groups) >= expected
        assert not table.groups[0].removable
        policy = table.space.low
        proved = Traced(net.model, table, net.inputs, costs(net.model, table))
        assert cut_channels(net.model, table, proved.kept(policy))(net.inputs).shape == (1, 10)
