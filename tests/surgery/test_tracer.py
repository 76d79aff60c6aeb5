"""Tracing: one run of the network as it is, in which every parameter's channels are followed."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from amc.surgery.channel_table import ChannelTable, build_table
from amc.surgery.trace_record import TraceRecord
from amc.surgery.tracer import trace
from amc.system.errors import ModelError
from amc.zoo.call import Call
from tests.surgery.compositions import CASES, Net
from tests.surgery.networks import SOUND
from tests.surgery.traps import Does

PICTURE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def table_of(model: nn.Module) -> ChannelTable:
    return build_table(model, trace(model, PICTURE))


def test_every_dimension_of_every_number_has_slots_of_its_own() -> None:
    """Parameters and floating-point buffers, one slot an index, none for dimensions of size one."""
    model = CASES["buffers"].make()
    record = trace(model, PICTURE)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    expected = {(name, dim): size for name, t in tensors.items() for dim, size in enumerate(t.shape) if size > 1}
    assert {axis: length for axis, (_, length) in record.axes.items()} == expected
    starts = sorted(record.axes.values())
    assert all(start + length <= after for (start, length), (after, _) in pairwise(starts))


def test_buffers_follow_the_channels_they_meet() -> None:
    """Those of the state dict and those that are not in it."""
    index_maps = table_of(CASES["buffers"].make()).index_maps
    stem = index_maps["stem.weight"][0]
    assert index_maps["middle.mean"][0] == index_maps["middle.spread"][1] == stem


def test_a_network_without_modules_of_its_own_is_traced_too() -> None:
    """Parameters that the forward function itself uses are named by their own names."""

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Parameter(torch.randn(3, 12)), nn.Parameter(torch.randn(12, 5))

        def forward(self, x: Tensor) -> Tensor:
            return (x.mean((2, 3)) @ self.first).relu() @ self.second

    table = table_of(Bare())
    assert [(group.name, group.size) for group in table.groups] == [("first", 12)]
    assert set(table.index_maps) == {"first", "second"}


def test_views_written_in_place_are_followed() -> None:
    """`y[:, :6] *= 2` changes numbers and no channel; channels written into zeros are not lost sight of."""

    def doubled(me: nn.Module, x: Tensor) -> Tensor:
        x[:, :6] *= 2
        return x

    table = table_of(Net(Does(doubled), 16))
    kept = {frozen.name for frozen in table.frozen}
    assert ("middle.a" in kept) or any(group.name == "middle.a" for group in table.groups)
    written = table_of(CASES["written by parts"].make())
    assert {"middle.a", "middle.b"} <= {frozen.name for frozen in written.frozen}


@pytest.mark.parametrize(("mode", "grad"), [(True, True), (True, False), (False, True), (False, False)])
def test_a_trace_is_the_same_in_any_mode(mode: bool, grad: bool) -> None:
    """Training or not, with gradients or without: the network is traced as it runs in `eval` mode."""
    model = SOUND["stream"][0]().train(mode)
    with torch.set_grad_enabled(grad):
        record = trace(model, PICTURE)
    assert summary(record) == summary(trace(model.eval(), PICTURE))


def summary(record: TraceRecord) -> tuple[object, ...]:
    pairs = [(a.tolist(), b.tolist()) for a, b in record.pairs]
    return record.axes, pairs, [(slots.tolist(), text) for slots, text in record.kept], len(record.products)


def test_a_network_that_fails_is_told_with_the_place() -> None:
    """One line: what failed, in which module, and what to check."""

    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("three\nlines\nof it")

    with pytest.raises(ModelError, match=r"ValueError: three \(in middle\); check the input") as caught:
        trace(Net(Fails(), 16), PICTURE)
    assert "\n" not in str(caught.value)


def test_a_network_without_tensors_in_its_answer_has_nothing_to_keep() -> None:
    """Outputs are looked for at any depth; numbers and names among them are passed over."""

    class Talks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = SOUND["stream"][0]()

        def forward(self, x: Tensor) -> dict[str, object]:
            return {"answers": [(self.net(x), "a name")], "count": 3, "nothing": None}

    model = Talks()
    assert {frozen.name for frozen in build_table(model, trace(model, Call((PICTURE,)))).frozen} == {"net.fc"}


def test_multiply_adds_are_counted_where_they_run() -> None:
    """Each product by the module whose code multiplies, in the order in which they run."""
    record = trace(CASES["convnext"].make(), PICTURE)
    assert [product.module for product in record.products] == [
        "stem", "middle.depth", "middle.fc1", "middle.fc2", "last", "fc",
    ]  # fmt: skip
