"""What must hold for every network, on one small network for each way of writing one.

A construct is a network as libraries write it: its groups are known, and it is cut, costed, saved, loaded and trained.
A trap is written to mislead: what of it is cut, if anything, must be cut rightly. A network stands here for an
operation or a shape that no other one has; how they meet is drawn at random.
"""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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
from tests.surgery.transformers import Case

CONSTRUCTS = {(file, kind): case for file, cases in (("transformers", transformers.CASES),
              ("compositions", compositions.CASES)) for kind, case in cases.items()}  # fmt: skip
TRAPS = {("traps", kind): case for kind, case in traps.CASES.items()}
CASES = CONSTRUCTS | TRAPS
RELATIVE = 2e-5  # of the largest output, in float32
POLICIES = 6

Where = tuple[str, str]  # the file, and the name of the network in it


def each_of(networks: Iterable[Where]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("where", networks, ids=lambda where: where[1])


@lru_cache
def proved(where: Where) -> Traced:
    return prove(CASES[where])


def prove(case: Case) -> Traced:
    """The network with random numbers everywhere, as a study has it: materialised, traced, proved."""
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


@each_of(CONSTRUCTS)
def test_the_groups_are_those_that_can_be_cut(where: Where) -> None:
    """Every group by its name and size, none more; and the branches that may go are known."""
    table = proved(where).table
    assert {group.name: group.size for group in table.groups} == CASES[where].groups
    assert set(CASES[where].removable) <= {group.name for group in table.groups if group.removable}


@each_of(CASES)
def test_a_cut_is_the_dense_network_with_zeros_at_the_cost_that_was_told(where: Where) -> None:
    """For random policies, uneven ones and empty branches; traced on one example and run on one and on three.

    Outputs agree to a share of 2e-5 of the largest; multiply-adds by torch's counter, parameters and bytes are exact;
    what a module calls its heads or their width is what is left of them; and what stays says why.
    """
    assert_exact_cuts(proved(where), CASES[where])


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(compositions.MIDDLES)), st.booleans()), min_size=2, max_size=3))
def test_constructs_in_any_order_are_cut_exactly(parts: list[tuple[str, bool]]) -> None:
    """Two or three parts in a row, each with or without an identity path, hold what each holds by itself."""
    case = Case(lambda: compositions.in_a_row(parts), {})
    assert_exact_cuts(prove(case), case)


def assert_exact_cuts(net: Traced, case: Case) -> None:
    draw = torch.Generator().manual_seed(2)
    three = torch.cat([net.inputs, torch.randn(2, *net.inputs.shape[1:], generator=draw)])
    for seed, policy in enumerate(policies(net)):
        kept = net.kept(policy, seed)
        small, zeroed = cut_channels(net.model, net.table, kept), zero_channels(net.model, net.table, kept)
        for inputs in (net.inputs, three):
            apart = difference(small, zeroed, inputs)
            assert apart <= RELATIVE, (policy.tolist(), len(inputs), apart)
        told = {unit: float(cost(torch.from_numpy(policy)[None])) for unit, cost in net.costs.items()}
        assert told == {
            "macs": count_cut_macs(small, net.inputs),
            "params": sum(parameter.numel() for parameter in small.parameters()),
            "bytes": sum(tensor.nbytes for tensor in small.state_dict().values()),
        }
        left = dict(zip(net.table.space.names, policy.tolist(), strict=True))
        for module, attributes in case.integers.items():
            for attribute, groups in attributes.items():
                value = getattr(small.get_submodule(module), attribute)
                assert (list(value) if isinstance(value, tuple) else [value]) == [left[group] for group in groups]
    assert all(frozen.reason and "\n" not in frozen.reason for frozen in net.table.frozen)


@each_of(CONSTRUCTS)
def test_a_cut_network_comes_back_bit_for_bit(tmp_path: Path, where: Where) -> None:
    """Saved, built anew by its factory and loaded: the same output to the last bit, and the same integers."""
    net = proved(where)
    file, kind = where
    source = ModelSource(f"tests.surgery.{file}:make", options={"kind": kind})
    for number, policy in enumerate((net.table.space.low, random_policy(net.table, 3))):
        small = cut_channels(net.model, net.table, net.kept(policy))
        save_network(tmp_path / str(number), small, source, tuple(net.inputs.shape[1:]))
        loaded = load_network(tmp_path / str(number), trust=f"tests.surgery.{file}:make")
        with torch.no_grad():
            assert torch.equal(loaded(net.inputs), small(net.inputs))
        modules = dict(small.named_modules())
        for name, module in loaded.named_modules():
            assert integers(module) == integers(modules[name])


def integers(module: nn.Module) -> dict[str, object]:
    return {name: value for name, value in vars(module).items() if type(value) in (int, tuple, list)}


@each_of([*CONSTRUCTS, ("traps", "more in training")])
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
