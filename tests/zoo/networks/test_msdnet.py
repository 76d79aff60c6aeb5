"""A network with exits of its own: an ordinary classifier, and a cascade."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from amc.cascade.methods.exits.exit_network import exit_network
from amc.cascade.methods.exits.exit_training import ExitSchedule, train_exits
from amc.cascade.methods.exits.saved_exits import load_exits, save_exits
from amc.cascade.stages.recording import record
from amc.surgery.flop_counter import count_cut_macs
from amc.system.device import Compute
from amc.system.errors import ModelError, UsageError
from amc.zoo.networks.msdnet import MSDNet, Sizes
from amc.zoo.networks.source import build_model
from tests.tiny import pictures

PLAIN = Compute(torch.device("cpu"), bfloat16=False)
SMALL = Sizes(exits=3, first=1, steps=1, growing=False, channels=4, growth=2)
EVERY = tuple(share / 100 for share in range(1, 100))


@pytest.mark.parametrize(("variant", "exits"), [("budgeted", 5), ("anytime", 7), ("small", 4)])
def test_the_last_exit_is_what_the_network_gives(variant: str, exits: int) -> None:
    """Exits are those of the paper's two settings and ours; running all of them is running the network."""
    model = build_model("msdnet", num_classes=100, options={"variant": variant})
    network = exit_network(model, torch.randn(1, 3, 32, 32), fractions=EVERY)
    inputs = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        outputs = network.outputs(inputs)
        assert torch.equal(outputs[-1], model(inputs))
    assert [tuple(logits.shape) for logits in outputs] == [(2, 100)] * exits
    assert sum(cost.body for cost in network.costs) == count_cut_macs(model, inputs[:1])


def test_the_first_exit_costs_what_a_hand_count_says() -> None:
    """Three scales of a first layer, one dense layer, and the classifier's two convolutions."""
    network = exit_network(build_model("msdnet"), torch.randn(1, 3, 32, 32), fractions=EVERY)
    first = 9 * (3 * 16 * 32**2 + 16 * 32 * 16**2 + 32 * 64 * 8**2)
    fine = (16 * 6 + 9 * 6 * 6) * 32**2
    middle = (32 * 12 + 9 * 12 * 6) * 16**2 + 16 * 6 * 32**2 + 9 * 6 * 6 * 16**2
    coarse = (64 * 48 + 9 * 48 * 12) * 8**2 + 32 * 24 * 16**2 + 9 * 24 * 12 * 8**2
    assert network.costs[0].body == first + fine + middle + coarse
    assert network.costs[0].head == 9 * (88 * 128 * 4**2 + 128 * 128 * 2**2) + 128 * 10


def test_exits_that_are_not_wanted_lend_their_blocks_to_the_next() -> None:
    """The nearest of its own exits, their costs still the network's."""
    model = build_model("msdnet", in_channels=1)
    network = exit_network(model, torch.randn(1, 1, 28, 28), exits=2)
    assert len(network.heads) == 2
    inputs = torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(network(inputs), model(inputs))
    assert sum(cost.body for cost in network.costs) == count_cut_macs(model, inputs[:1])


@pytest.mark.slow
def test_its_exits_are_trained_with_it_and_come_back_bit_for_bit(tmp_path: Path) -> None:
    """A frozen backbone has no head to train; jointly, every exit learns."""
    splits, example = pictures(), torch.randn(1, 1, 28, 28)
    network = exit_network(MSDNet(SMALL, in_channels=1), example)
    with pytest.raises(UsageError, match="joint_epochs"):
        train_exits(network, splits.train, PLAIN)
    train_exits(network, splits.train, PLAIN, ExitSchedule(joint_epochs=6, joint_batch_size=50, joint_lr=0.1))
    assert bool((record(network.stages(), splits.validation, PLAIN).accuracies > 0.4).all())
    save_exits(tmp_path, network)
    again = load_exits(tmp_path, MSDNet(SMALL, in_channels=1))
    with torch.no_grad():
        for one, two in zip(network.outputs(example), again.outputs(example), strict=True):
            assert torch.equal(one, two)
    assert again.costs == network.costs


def test_an_unknown_variant_is_named() -> None:
    """The message lists the variants."""
    with pytest.raises(ModelError, match="budgeted"):
        build_model("msdnet", options={"variant": "huge"})
