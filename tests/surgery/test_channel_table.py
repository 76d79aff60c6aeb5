import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from amc.surgery.channel_table import KEPT, build_table, legal_step, ranks
from amc.surgery.cutting import cut_channels
from amc.surgery.grouping import trace_groups
from amc.surgery.tracer import trace
from amc.system.errors import ModelError
from tests.surgery.networks import (
    SOUND,
    UNSOUND,
    Stream,
    Traced,
    assert_cut_is_mask,
    costs,
    known,
    random_policy,
    randomise,
    traced,
)

GROUPS = [
    ("resnet20", 12), ("resnet18", 12), ("mobilenet_v2", 25), ("densenet121", 120), ("efficientnet_b0", 40),
    ("vgg_small", 6),
]  # fmt: skip


def names(net: Traced) -> tuple[str, ...]:
    return tuple(group.name for group in net.table.groups)


@given(st.integers(1, 300), st.sampled_from((1, 2, 3, 4, 8, 16, 32)), st.integers(1, 64))
def test_a_step_is_legal(units: int, granularity: int, round_to: int) -> None:
    """It divides the size, is whole units, divides what was asked for, and is no coarser than an eighth if possible."""
    size = units * granularity
    step = legal_step(size, granularity, round_to)
    assert size % step == 0 and step % granularity == 0
    assert (step // granularity) and max(1, round_to // granularity) % (step // granularity) == 0
    assert step * 8 <= size or step == granularity
    coarser = [s for s in range(step // granularity + 1, units + 1)
               if max(1, round_to // granularity) % s == 0 and units % s == 0 and s * 8 <= units]  # fmt: skip
    assert not coarser


@pytest.mark.parametrize("round_to", [1, 8, 16, 64])
def test_no_rounding_ever_keeps_a_group_whole_or_empties_it(round_to: int) -> None:
    """Every group has a smallest width above zero and below its own, whatever the rounding (torch-pruning's trap 1)."""
    net = known("resnet18")
    table = build_table(net.model, trace(net.model, net.inputs), round_to)
    assert (0 < table.space.low).all() and (table.space.low * 8 <= table.space.high).all()
    small = cut_channels(net.model, table, Traced(net.model, table, net.inputs, {}).kept(table.space.low))
    assert small.conv1.out_channels == table.space.low[0]


def test_macs_fall_with_every_step() -> None:
    """One step down in any group costs strictly less, so no part of a policy is ignored (trap 1)."""
    net = known("resnet18")
    space = net.table.space
    dense = float(net.costs["macs"](torch.from_numpy(space.high)[None]))
    fewer = torch.from_numpy(np.tile(space.high, (len(space), 1)) - np.diag(space.low))
    assert (net.costs["macs"](fewer) < dense).all()


def test_grouped_convolutions_lose_whole_blocks() -> None:
    """A block of a grouped convolution is one unit, and rounding never leaves it uncut (trap 2)."""
    net = known("resnext50_32x4d")
    block = next(group for group in net.table.groups if group.name == "layer1.0.conv1")
    assert block.granularity == 4 and block.size == 128
    small = cut_channels(net.model, net.table, net.kept(net.table.space.nearest(net.table.space.high / 2)))
    assert small.layer1[0].conv2.groups == 16 and small.layer1[0].conv2.out_channels == 64


def test_coupled_layers_share_one_coordinate() -> None:
    """All writers of a residual stream stand in one group and are cut to one width (trap 3)."""
    net = known("resnet18")
    stream = next(group for group in net.table.groups if group.name == "conv1")
    assert {"conv1", "bn1", "layer1.0.conv2", "layer1.1.conv2", "layer2.0.downsample.0"} <= set(stream.layers)
    policy = net.table.space.high.copy()
    policy[0] = 24
    small = cut_channels(net.model, net.table, net.kept(policy))
    writers = (small.conv1, small.layer1[0].conv2, small.layer1[1].conv2)
    assert [layer.out_channels for layer in writers] == [24, 24, 24]


def test_traces_do_not_remember_other_networks() -> None:
    """A second trace, and one after a grouped network's, gives the same table (trap 4)."""
    net = known("resnet18")
    trace(SOUND["grouped"][0](), torch.randn(1, 3, 12, 12))
    again = build_table(net.model, trace(net.model, net.inputs))
    assert again.groups == net.table.groups and again.frozen == net.table.frozen
    for name, axes in net.table.index_maps.items():
        assert all(np.array_equal(index_maps, again.index_maps[name][dim]) for dim, index_maps in axes.items())


@pytest.mark.parametrize("name", [name for name, _ in GROUPS])
def test_the_classifier_keeps_its_outputs(name: str) -> None:
    """No policy touches the network's outputs, and the table says why (trap 5)."""
    net = known(name)
    last = [path for path, module in net.model.named_modules() if isinstance(module, nn.Linear)][-1]
    assert 0 not in net.table.index_maps.get(f"{last}.weight", {}) and f"{last}.bias" not in net.table.index_maps
    assert last in {frozen.name for frozen in net.table.frozen}
    assert cut_channels(net.model, net.table, net.kept(net.table.space.low))(net.inputs).shape == (1, 10)


@pytest.mark.parametrize(("name", "groups"), GROUPS)
def test_networks_have_the_groups_they_should(name: str, groups: int) -> None:
    """As many groups as they should, outputs apart, each with a name of its own and a size it can divide."""
    net = known(name)
    assert len(names(net)) == groups == len(set(names(net)))
    assert np.bincount(net.table.channel_group).tolist() == [g.size // g.granularity for g in net.table.groups]


@pytest.mark.parametrize("frozen", ["all", "stem", "none"])
def test_frozen_parameters_hide_no_group(frozen: str) -> None:
    """ResNet-18 has 12 groups whether its parameters are frozen or not, and they stay frozen or not."""
    net = known("resnet18")
    model = copy.deepcopy(net.model)
    for part in {"all": [model], "stem": [model.conv1, model.layer1], "none": []}[frozen]:
        part.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    assert build_table(model, trace(model, net.inputs)).groups == net.table.groups
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


def test_subclasses_are_layers_too() -> None:
    """A convolution of a derived class is cut and counted as any other (trap 7)."""
    derived, plain = (traced(randomise(SOUND[name][0]()), (3, 12, 12)) for name in ("subclass", "stream"))
    assert derived.table.groups == plain.table.groups
    policy = torch.from_numpy(plain.table.space.low)[None]
    assert all(float(derived.costs[unit](policy)) == float(cost(policy)) for unit, cost in plain.costs.items())


@pytest.mark.parametrize("name", UNSOUND)
def test_what_cannot_be_followed_stays_with_a_reason(name: str) -> None:
    """Networks with layers that cannot be cut: the groups left are cut exactly, the others are frozen and say why."""
    torch.manual_seed(0)
    model = randomise(UNSOUND[name]())
    table = trace_groups(model, (3, 12, 12))
    reasons = {frozen.name: frozen.reason for frozen in table.frozen}
    assert len(reasons) >= 2 and all(reason and "\n" not in reason for reason in reasons.values())
    inputs = torch.randn(1, 3, 12, 12)
    net = Traced(model, table, inputs, costs(model, table))
    for seed in range(5):
        assert_cut_is_mask(net, net.kept(random_policy(table, seed), seed))


@pytest.mark.parametrize("name", SOUND)
def test_the_proof_freezes_nothing_sound(name: str) -> None:
    """`trace_groups` keeps every group of the networks that can be cut."""
    torch.manual_seed(0)
    shape = (3, 8, 8) if name == "flattened" else (3, 12, 12)
    assert len(trace_groups(randomise(SOUND[name][0]()), shape).groups) == SOUND[name][1]


def test_a_network_without_any_group_is_one_line() -> None:
    """Where nothing can be removed, the error names a layer and the reason."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    with pytest.raises(ModelError, match=r"must have channels that can be removed.*output") as caught:
        build_table(model, trace(model, torch.randn(1, 3, 2, 2)))
    assert "\n" not in str(caught.value)


def test_ignored_modules_keep_their_channels() -> None:
    """A name in `ignore` keeps that module's outputs, all modules inside it, and what is coupled to them."""
    net = known("resnet18")
    ignored = build_table(net.model, trace(net.model, net.inputs, ["layer1.0.conv1", "layer4"]))
    left = {group.name for group in ignored.groups}
    assert left == {name for name in names(net) if name != "layer1.0.conv1" and "layer4" not in name}
    reasons = {frozen.name: frozen.reason for frozen in ignored.frozen}
    assert "`ignore`" in reasons["layer1.0.conv1"] and "`ignore`" in reasons["layer4.1.conv2"]
    stream = build_table(net.model, trace(net.model, net.inputs, ["layer1.1.conv2"]))
    assert "conv1" not in {group.name for group in stream.groups}


def test_an_unknown_name_in_ignore_is_one_line() -> None:
    """A module that does not exist cannot be ignored silently."""
    net = known("resnet20")
    with pytest.raises(ModelError, match=r"'layer9\.conv1' is none"):
        trace(net.model, net.inputs, ["layer1", "layer9.conv1"])


def test_pictures_that_do_not_fit_are_one_line() -> None:
    """A wrong number of channels is told with the shape and the layer, not as torch's own failure."""
    with pytest.raises(ModelError, match=r"input\[1, 1, 16, 16\].*in conv1") as caught:
        trace(known("resnet20").model, torch.randn(1, 1, 16, 16))
    assert "\n" not in str(caught.value)


def test_a_table_without_some_groups_cuts_the_others() -> None:
    """Freezing groups leaves a table that is consistent: cut equals mask, costs equal counts, frozen ones are told."""
    net = known("resnet18")
    table = net.table.without({"conv1": "for a test", "layer3.0.conv1": "for a test"})
    assert len(table.groups) == len(net.table.groups) - 2
    assert {"conv1", "layer3.0.conv1"} <= {frozen.name for frozen in table.frozen}
    less = Traced(net.model, table, net.inputs, costs(net.model, table))
    small = assert_cut_is_mask(less, less.kept(table.space.low))
    assert small.conv1.out_channels == 64
    params = float(less.costs["params"](torch.from_numpy(table.space.low)[None]))
    assert params == sum(parameter.numel() for parameter in small.parameters())


def test_every_index_of_a_layer_has_an_owner_of_its_size() -> None:
    """Owners are as long as the dimension they slice, and name units that exist."""
    for name in ("densenet121", "resnext50_32x4d"):
        net = known(name)
        tensors = {**dict(net.model.named_parameters()), **dict(net.model.named_buffers())}
        for tensor, axes in net.table.index_maps.items():
            for dim, index_maps in axes.items():
                assert index_maps and all(len(index_map) == tensors[tensor].shape[dim] for index_map in index_maps)
                assert all(
                    index_map.min() >= KEPT and index_map.max() < len(net.table.channel_group)
                    for index_map in index_maps
                )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_ranks_order_each_group_by_score(seed: int) -> None:
    """Inside a group the ranks are 0, 1, 2, ... by falling score."""
    table = known("resnet20").table
    scores = torch.rand(len(table.channel_group), generator=torch.Generator().manual_seed(seed))
    place = ranks(table, scores)
    for group in range(len(table.groups)):
        units = np.flatnonzero(table.channel_group == group)
        assert sorted(place[units].tolist()) == list(range(len(units)))
        assert (np.diff(scores.numpy()[units[np.argsort(place[units])]]) <= 0).all()


def test_a_group_lists_every_layer_it_touches() -> None:
    """In the network's order, once each, readers included."""
    net = traced(randomise(Stream()), (3, 12, 12))
    assert net.table.groups[0].layers == ("stem", "inner", "outer", "project", "fc", "norm")


def test_a_trace_leaves_the_gradient_mode_as_it_was() -> None:
    """Tracing needs gradients; it works inside `no_grad`, which still holds afterwards."""
    with torch.no_grad():
        trace(SOUND["stream"][0](), torch.randn(1, 3, 12, 12))
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
