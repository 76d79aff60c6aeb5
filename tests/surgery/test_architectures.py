"""What must hold for every network, on one small network for each way of writing one."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amc.release.archive import load_network, save_network
from amc.surgery.cutting import cut_channels, zero_channels
from amc.surgery.flop_counter import count_cut_macs
from amc.surgery.materialised import materialise
from amc.surgery.proof import proved_table
from amc.zoo.call import Call
from amc.zoo.networks.source import ModelSource
from tests.surgery import compositions, transformers, traps
from tests.surgery.networks import Traced, costs, random_policy, randomise

FILES = {"transformers": transformers.CASES, "compositions": compositions.CASES, "traps": traps.CASES}
CASES = {(file, kind): case for file, cases in FILES.items() for kind, case in cases.items()}
RELATIVE = 2e-5  # of the largest output, in float32
POLICIES = 6

every_network = pytest.mark.parametrize("where", CASES, ids=lambda where: where[1])
Where = tuple[str, str]  # the file, and the name of the network in it


@lru_cache
def proved(where: Where) -> Traced:
    """The network with random numbers everywhere, as a study has it: materialised, traced, proved."""
    case = CASES[where]
    torch.manual_seed(0)
    model = randomise(case.make())
    inputs = torch.randn(1, *case.shape, generator=torch.Generator().manual_seed(1))
    materialise(model, Call((inputs,)))
    table = proved_table(model, Call((inputs,)))
    return Traced(model, table, inputs, costs(model, table))


def policies(net: Traced) -> list[np.ndarray]:  # type: ignore[type-arg]
    """Random ones, everything at its smallest, and for every group that may be empty one in which it alone is."""
    space = net.table.space
    found = [random_policy(net.table, seed) for seed in range(POLICIES)] + [space.step, space.low]
    for group in np.flatnonzero(space.low == 0):
        alone = space.high.copy()
        alone[group] = 0
        found.append(alone)
    return found


@torch.no_grad()
def difference(small: nn.Module, large: nn.Module, inputs: Tensor) -> float:
    """How far the outputs are apart, as a share of the largest."""
    ours, theirs = small(inputs), large(inputs)
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


@every_network
def test_the_groups_are_those_that_can_be_cut(where: Where) -> None:
    """Every group by its name and size, none more; what stays says why; and the branches that may go are known."""
    table = proved(where).table
    if where[0] != "traps":
        assert {group.name: group.size for group in table.groups} == CASES[where].groups
    assert all(frozen.reason and "\n" not in frozen.reason for frozen in table.frozen)
    assert set(CASES[where].removable) <= {group.name for group in table.groups if group.removable}


@every_network
def test_a_cut_is_the_dense_network_with_zeros(where: Where) -> None:
    """For random policies, uneven ones and empty branches too, to a share of 2e-5 of the largest output."""
    net = proved(where)
    for seed, policy in enumerate(policies(net)):
        kept = net.kept(policy, seed)
        apart = difference(
            cut_channels(net.model, net.table, kept), zero_channels(net.model, net.table, kept), net.inputs
        )
        assert apart <= RELATIVE, (policy.tolist(), apart)


@every_network
def test_costs_are_what_can_be_counted(where: Where) -> None:
    """Multiply-adds as torch's counter sees them, parameters and bytes, for any policy, exactly."""
    net = proved(where)
    for seed, policy in enumerate(policies(net)):
        small = cut_channels(net.model, net.table, net.kept(policy, seed))
        said = {unit: float(cost(torch.from_numpy(policy)[None])) for unit, cost in net.costs.items()}
        assert said == {
            "macs": count_cut_macs(small, net.inputs),
            "params": sum(parameter.numel() for parameter in small.parameters()),
            "bytes": sum(tensor.nbytes for tensor in small.state_dict().values()),
        }


@every_network
def test_a_cut_network_takes_batches(where: Where) -> None:
    """Traced on one example, cut, and run on three: still the dense network with zeros."""
    net = proved(where)
    draw = torch.Generator().manual_seed(2)
    three = torch.cat([net.inputs, torch.randn(2, *net.inputs.shape[1:], generator=draw)])
    for seed, policy in enumerate(policies(net)):
        kept = net.kept(policy, seed)
        assert (
            difference(cut_channels(net.model, net.table, kept), zero_channels(net.model, net.table, kept), three)
            <= RELATIVE
        )


@every_network
def test_a_cut_network_comes_back_bit_for_bit(tmp_path: Path, where: Where) -> None:
    """Saved, built anew by its factory and loaded: the same output to the last bit, and the same integers."""
    net = proved(where)
    file, kind = where
    source = ModelSource(f"tests.surgery.{file}:make", options={"kind": kind})
    for number, policy in enumerate((net.table.space.low, random_policy(net.table, 3))):
        small = cut_channels(net.model, net.table, net.kept(policy))
        save_network(tmp_path / str(number), small, source, tuple(net.inputs.shape[1:]))
        loaded = load_network(tmp_path / str(number))
        with torch.no_grad():
            assert torch.equal(loaded(net.inputs), small(net.inputs))
        modules = dict(small.named_modules())
        for name, module in loaded.named_modules():
            assert integers(module) == integers(modules[name])


def integers(module: nn.Module) -> dict[str, object]:
    return {name: value for name, value in vars(module).items() if type(value) in (int, tuple, list)}


@every_network
def test_integers_follow_the_channels(where: Where) -> None:
    """What a module calls its heads, their width or its parts is, after a cut, what is left of them."""
    net = proved(where)
    names = net.table.space.names
    for seed in range(POLICIES):
        policy = random_policy(net.table, seed)
        left = dict(zip(names, policy.tolist(), strict=True))
        small = cut_channels(net.model, net.table, net.kept(policy, seed))
        for module, attributes in CASES[where].integers.items():
            for attribute, groups in attributes.items():
                value = getattr(small.get_submodule(module), attribute)
                assert (list(value) if isinstance(value, tuple) else [value]) == [left[group] for group in groups]


@every_network
def test_a_cut_network_trains(where: Where) -> None:
    """In training mode it is the dense network with zeros too, and a loss reaches every parameter that it reached."""
    net = proved(where)
    both = torch.cat([net.inputs, net.inputs.flip(-1)])
    kept = net.kept(np.maximum(random_policy(net.table, 5), net.table.space.step))
    small, zeroed = cut_channels(net.model, net.table, kept).train(), zero_channels(net.model, net.table, kept).train()
    assert difference(small, zeroed, both) <= RELATIVE
    reached = []
    for model in (small, zeroed):
        model(both).square().sum().backward()
        reached.append({name for name, parameter in model.named_parameters() if parameter.grad is not None})
    assert reached[0] == reached[1]
