"""Exits answer on the way, and cost nothing where they are not used."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from amc.cascade.methods.exits.exit_network import ExitNetwork, exit_network
from amc.cascade.methods.exits.exit_training import ExitSchedule, train_exits
from amc.cascade.methods.exits.heads import HeadShape, Pool
from amc.cascade.methods.exits.saved_exits import RECORD, WEIGHTS, load_exits, save_exits
from amc.cascade.stages.recording import record
from amc.cascade.stages.stage import path_costs, without
from amc.job.run import Run
from amc.release.archive import load_network
from amc.surgery.flop_counter import count_cut_macs
from amc.system.device import Compute
from amc.system.errors import ModelError, RunError, UsageError
from amc.zoo.data.sources import load_splits
from amc.zoo.data.splits import TensorSplit
from amc.zoo.networks.source import build_model
from tests.cascade.cascades import assert_close
from tests.tiny import pictures, residual

PLAIN = Compute(torch.device("cpu"), bfloat16=False)
QUICK = ExitSchedule(epochs=12, batch_size=50)
EXAMPLE = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(3))
BATCH = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(4))


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def some_exits(seed: int = 0) -> ExitNetwork:
    torch.manual_seed(seed)
    return exit_network(residual(), EXAMPLE, fractions=(0.1, 0.5), hidden=16)


@torch.no_grad()
def test_the_last_stage_is_the_network() -> None:
    """Its output bit for bit; with no exits used, its cost too."""
    network = some_exits()
    outputs, wanted = network.outputs(BATCH), network.backbone(BATCH)
    assert torch.equal(outputs[-1], wanted) and torch.equal(network(BATCH), wanted)
    last = without(network.stages(), [len(network.heads)])[0]
    assert torch.equal(last.run(BATCH, {})[0], wanted)
    costs = [stage.cost for stage in network.stages()]
    assert path_costs(costs, [len(costs) - 1]) == [count_cut_macs(network.backbone, EXAMPLE)]


@torch.no_grad()
def test_stages_in_a_row_are_the_exits_and_record_alike() -> None:
    """State is handed on; what is recorded is what exits say; each answers for one example as in a batch."""
    network = some_exits()
    split = TensorSplit(BATCH, torch.arange(5))
    found = record(network.stages(), split, PLAIN)
    assert found.stages == network.names
    wanted = torch.stack(network.outputs(BATCH))
    assert torch.equal(found.logits, wanted)
    alone = torch.stack([torch.cat(parts) for parts in zip(*(network.outputs(x[None]) for x in BATCH), strict=True)])
    assert_close(alone, wanted)


def test_exits_cost_what_their_heads_cost() -> None:
    """Visiting all stages costs the network and the heads."""
    network = some_exits()
    heads = [head.shape for head in network.heads]
    by_hand = [shape.features * shape.hidden + shape.hidden * shape.classes for shape in heads]  # type: ignore[union-attr, operator]
    whole = count_cut_macs(network.backbone, EXAMPLE) + sum(by_hand)  # type: ignore[arg-type]
    assert [stage.cost.head for stage in network.stages()] == [*by_hand, 0]
    assert sum(path_costs(network.costs, range(3))) == whole


def test_heads_learn_and_a_frozen_backbone_stays_as_it_was() -> None:
    """Well above chance on held-out images; not even a BatchNorm statistic of the network moves."""
    splits, network = pictures(), some_exits()
    before = tensors(network.backbone)
    losses = train_exits(network, splits.train, PLAIN, QUICK)
    found = record(network.stages(), splits.validation, PLAIN)
    assert same(before, tensors(network.backbone)) and not network.joint
    assert len(losses) == 2 and bool((found.accuracies[:2] > 0.5).all())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_same_seed_trains_the_same_heads() -> None:
    """Two trainings with one seed in one process end with equal heads."""
    heads = []
    for _ in range(2):
        network = some_exits()
        train_exits(network, pictures().train, PLAIN, ExitSchedule(epochs=2, batch_size=50), seed=5)
        heads.append(tensors(network.heads))
    assert same(*heads)


def test_the_deepest_exit_teaches_the_others() -> None:
    """With its outputs alone as targets, exits come to agree with it, right or wrong."""
    splits, network = pictures(), some_exits()
    train_exits(network, splits.train, PLAIN, ExitSchedule(epochs=12, batch_size=50, distill=1.0))
    found = record(network.stages(), splits.train, PLAIN)
    assert found.accuracies[2] < 0.2  # an untrained network
    assert bool(((found.predictions[:2] == found.predictions[2]).double().mean(1) > 0.8).all())


def test_exits_come_back_bit_for_bit_beside_a_release(tiny_run: Run, tmp_path: Path) -> None:
    """On the pruned network, loaded anew."""
    release = tiny_run.folder
    network = exit_network(load_network(release), EXAMPLE, exits=1)
    train_exits(network, pictures().train, PLAIN, ExitSchedule(epochs=1, batch_size=50))
    save_exits(tmp_path, network)
    again = load_exits(tmp_path, load_network(release))
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(network.outputs(BATCH), again.outputs(BATCH), strict=True))
    assert (again.costs, again.places, again.names) == (network.costs, network.places, network.names)


def test_joint_training_changes_the_backbone_which_is_then_saved_with_the_exits(tmp_path: Path) -> None:
    """Loaded onto another network, exits and backbone answer as before."""
    network = some_exits()
    first = copy.deepcopy(network.backbone)
    schedule = ExitSchedule(epochs=1, distill=0.0, joint_epochs=6, joint_lr=0.2, joint_batch_size=50)
    train_exits(network, pictures().train, PLAIN, schedule)
    assert network.joint and not same(tensors(first), tensors(network.backbone))
    assert float(record(network.stages(), pictures().validation, PLAIN).accuracies[-1]) > 0.4
    save_exits(tmp_path, network)
    again = load_exits(tmp_path, first, chain="other")
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(network.outputs(BATCH), again.outputs(BATCH), strict=True))
        assert torch.equal(first(BATCH), network(BATCH))
    assert again.names == ("other.exit1", "other.exit2", "other")


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    """Another backbone, another weights file, none at all."""
    network = some_exits()
    save_exits(tmp_path, network)
    with pytest.raises(ModelError, match="trained on"):
        load_exits(tmp_path, some_exits(seed=1).backbone)
    (tmp_path / WEIGHTS).write_bytes(b"something else")
    with pytest.raises(RunError, match="SHA-256"):
        load_exits(tmp_path, network.backbone)
    (tmp_path / RECORD).write_text('{"format": "amc-exits/0"}')
    with pytest.raises(RunError, match="format"):
        load_exits(tmp_path, network.backbone)
    with pytest.raises(RunError, match="make it anew"):
        load_exits(tmp_path / "nowhere", network.backbone)


@pytest.mark.parametrize(
    ("shape", "channel_dim", "grid", "features"),
    [
        ((16, 28, 28), 1, (4, 4), 256),
        ((64, 7, 7), 1, (3, 3), 576),
        ((512, 2, 2), 1, (1, 1), 512),
        ((14, 14, 384), -1, (1, 1), 384),
        ((32, 64), 1, (4,), 128),
        ((197, 192), -1, (1,), 192),
        ((640,), 1, (), 640),
    ],
)
def test_pooling_keeps_as_many_places_as_there_is_room_for(
    shape: tuple[int, ...], channel_dim: int, grid: tuple[int, ...], features: int
) -> None:
    """Tokens are averaged; the record of a head is all that is needed to build it again."""
    found = HeadShape.of(shape, channel_dim, classes=10, hidden=8)
    assert (found.grid, found.features) == (grid, features)
    assert Pool(channel_dim, grid)(torch.randn(2, *shape)).shape == (2, features)
    assert HeadShape.from_json(found.to_json()) == found


def test_pooling_does_not_care_where_channels_stand() -> None:
    """Channels first or last, the pooled values agree to 1e-6."""
    maps = torch.randn(2, 6, 9, 9)
    for grid in ((1, 1), (2, 2), (4, 4)):
        assert torch.allclose(Pool(1, grid)(maps), Pool(-1, grid)(maps.permute(0, 2, 3, 1)), atol=1e-6)


@pytest.mark.parametrize("arguments", [{"exits": 0}, {"fractions": (0.5, 1.0)}, {"fractions": ()}])
def test_exits_must_be_asked_for_sensibly(arguments: dict[str, object]) -> None:
    """Fractions and numbers out of range are a `UsageError`."""
    with pytest.raises(UsageError):
        exit_network(residual(), EXAMPLE, **arguments)  # type: ignore[arg-type]


def test_a_sequence_network_has_exits_too() -> None:
    """Inputs of two dimensions give at least two exits with the network's classes."""
    example = torch.randn(1, 6, 64)
    network = exit_network(build_model("sensor_net", num_classes=5), example)
    assert [tuple(logits.shape) for logits in network.outputs(torch.randn(3, 6, 64))] == [(3, 5)] * len(network.costs)
    assert len(network.heads) >= 2


@pytest.mark.slow
def test_on_the_shipped_weights_deeper_exits_know_more() -> None:
    """ResNet-20 on the embedded images, backbone frozen: nine in ten are right at a quarter of the multiply-adds."""
    splits = load_splits("fashion-mnist-10k")
    network = exit_network(build_model("resnet20", weights="default", in_channels=1), EXAMPLE)
    train_exits(network, splits.train, PLAIN)
    accuracies = record(network.stages(), splits.validation, PLAIN).accuracies.tolist()
    added = path_costs(network.costs, range(len(network.costs)))
    assert accuracies == sorted(accuracies) and accuracies[0] > 0.88
    assert added[0] < 0.25 * sum(added) and sum(added) < 1.01 * count_cut_macs(network.backbone, EXAMPLE)
