"""Segments, one after the other, are the network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amc.cascade.methods.exits.segments import Cuttable
from amc.surgery.cutting import cut_channels
from amc.surgery.flop_counter import count_cut_macs
from amc.surgery.grouping import trace_groups
from amc.surgery.shape_patches import ShapePatched
from amc.system.errors import ModelError
from amc.zoo.networks.source import build_model
from tests.tiny import network, residual

SMALL_VIT = {"img_size": 32, "patch_size": 8, "depth": 4, "embed_dim": 32, "num_heads": 2}
NETWORKS = {
    "resnet20": ((3, 16, 16), {}),
    "resnet56": ((1, 12, 12), {}),
    "mobilenet_v2_small": ((3, 16, 16), {}),
    "vgg_small": ((3, 32, 32), {}),
    "sensor_net": ((6, 64), {}),
    "densenet121": ((3, 64, 64), {}),
    "mobilenet_v3_small": ((3, 64, 64), {}),
    "shufflenet_v2_x0_5": ((3, 64, 64), {}),
    "swin_t": ((3, 64, 64), {}),
    "convnext_tiny": ((3, 64, 64), {}),
    "timm:vit_tiny_patch16_224": ((3, 32, 32), SMALL_VIT),
    "timm:tf_efficientnet_b0": ((3, 64, 64), {}),
}


def halved(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """The network with half of each group's channels, at least 8 of them."""
    table = trace_groups(model, shape)
    kept = np.ones(len(table.channel_group), bool)
    for group in range(len(table.groups)):
        units = np.flatnonzero(table.channel_group == group)
        kept[units[max(8, len(units) // 2) :]] = False
    return cut_channels(model, table, kept).eval()


def assert_same(model: nn.Module, cuttable: Cuttable, shape: tuple[int, ...]) -> None:
    """Bit for bit, on a batch of another size than those traced on; costs add up; shapes are as promised."""
    points = cuttable.nearest((0.25, 0.5, 0.75))
    segments = cuttable.segments([point.name for point in points])
    inputs = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    features, macs = inputs.clone(), 0
    with torch.no_grad():
        for index, segment in enumerate(segments):
            macs += count_cut_macs(segment, features[:1])
            features = segment(features)
            if index < len(points):
                assert (macs, tuple(features.shape)) == (points[index].macs, (3, *points[index].shape))
        assert torch.equal(features, model(inputs))
    assert macs == cuttable.macs == count_cut_macs(model, inputs[:1])


@pytest.mark.parametrize("name", NETWORKS)
def test_segments_in_a_row_are_the_network(name: str) -> None:
    """For convolutional networks and transformers of the three zoos: bit for bit, and their costs are its cost."""
    shape, options = NETWORKS[name]
    model = build_model(name, num_classes=7, in_channels=None if name == "sensor_net" else shape[0], options=options)
    cuttable = Cuttable(model, torch.randn(1, *shape))
    assert len(cuttable.nearest((0.25, 0.5, 0.75))) >= 2
    assert_same(model, cuttable, shape)


@pytest.mark.parametrize(
    "name", ["resnet20", "timm:vit_tiny_patch16_224", pytest.param("timm:convnext_atto", marks=pytest.mark.slow)]
)
def test_so_it_is_for_pruned_networks(name: str) -> None:
    """Stand-ins stay whole, and sizes that a network's own code asks for are those that are left."""
    options = SMALL_VIT | {"embed_dim": 64} if "vit" in name else {}
    model = halved(build_model(name, num_classes=7, options=options).eval(), (3, 32, 32))
    if "vit" in name:
        assert isinstance(model, ShapePatched)
    cuttable = Cuttable(model, torch.randn(1, 3, 32, 32))
    assert len(cuttable.points) > 5
    assert_same(model, cuttable, (3, 32, 32))


@pytest.mark.parametrize(
    ("name", "channels", "wanted"),
    [("resnet20", {16, 32, 64}, 1), ("sensor_net", {32, 64, 128}, 1), ("swin_t", {96, 192, 384, 768, 1536}, -1)],
)
def test_channels_are_told_from_places(name: str, channels: set[int], wanted: int) -> None:
    """First in maps and sequences of convolutions, last where a transformer has them."""
    model = build_model(name)
    shape = NETWORKS[name][0]
    spread = [point for point in Cuttable(model, torch.randn(1, *shape)).points if len(point.shape) > 1]
    assert {point.channel_dim for point in spread} == {wanted}
    assert {point.shape[0 if wanted == 1 else -1] for point in spread} == channels


def test_points_ascend_and_the_nearest_are_taken() -> None:
    """Cut points are in the order of their multiply-adds, and the one nearest to a share is chosen."""
    cuttable = Cuttable(residual(), torch.randn(1, 1, 28, 28))
    macs = [point.macs for point in cuttable.points]
    assert macs == sorted(set(macs)) and 0 < macs[0] and macs[-1] < cuttable.macs
    for share in (0.1, 0.3, 0.5, 0.9):
        chosen = cuttable.nearest((share,))[0]
        assert abs(chosen.macs - share * cuttable.macs) == min(abs(m - share * cuttable.macs) for m in macs)


class InPlace(nn.Module):
    """What the convolution gives is written over by what follows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.later, self.fc = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        kept = x.relu_()
        x = self.later(kept)
        x += 1
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def test_no_cut_is_made_at_a_tensor_that_is_written_over() -> None:
    """A head that reads it later would read something else."""
    names = [point.name for point in Cuttable(InPlace(), torch.randn(1, 1, 8, 8)).points]
    assert names == ["relu_", "mean"]


class Undecided(nn.Module):
    """Goes another way for another input."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x if x.sum() > 0 else -x)
        return logits


def test_a_part_that_cannot_be_traced_stays_whole_and_a_network_that_cannot_be_is_refused() -> None:
    """A child without a graph is one piece."""
    parts = nn.Sequential(nn.Linear(4, 4), Undecided(), nn.Linear(4, 3))
    assert len(Cuttable(parts, torch.randn(1, 4)).points) == 2
    with pytest.raises(ModelError, match=r"torch\.fx can trace") as caught:
        Cuttable(Undecided(), torch.randn(1, 4))
    assert "\n" not in str(caught.value)


def test_a_network_without_logits_is_refused() -> None:
    """Cascades classify."""
    with pytest.raises(ModelError, match="cascades classify"):
        Cuttable(nn.Conv2d(1, 2, 3), torch.randn(1, 1, 8, 8))


def test_unknown_places_are_refused() -> None:
    """The message says what there is to choose from."""
    with pytest.raises(ModelError, match="cut points"):
        Cuttable(network(), torch.randn(1, 1, 28, 28)).segments(["nowhere"])


def test_tracing_leaves_a_network_as_it_was() -> None:
    """Its class, settings and tensors; requests of a resized module are patched_arguments as before."""
    model = halved(build_model("timm:vit_tiny_patch16_224", options=SMALL_VIT | {"embed_dim": 64}).eval(), (3, 32, 32))
    inputs = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = model(inputs)
        Cuttable(model, inputs[:1])
        assert torch.equal(before, model(inputs))
