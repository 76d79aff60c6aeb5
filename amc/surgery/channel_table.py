"""The channel table: for every sliceable dimension of every tensor, which coupled channel each index belongs to.

A coupled channel is the least that can be removed: one channel of every coupled layer, a whole block where a grouped
convolution asks for it, a head of an attention. A group is all coupled channels that touch the same tensors in the same
way; a policy keeps some of them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from amc.surgery.coupled_channels import KEPT, CoupledChannels, find_coupled_channels
from amc.surgery.layers import LAYERS, out_dim
from amc.surgery.narrow_norm import NormRule
from amc.surgery.trace_record import Axis, Slots, TraceRecord
from amc.system.errors import ModelError
from amc_search import Space

IndexMap = NDArray[np.int32]  # (length,) the coupled channel of each index, KEPT where none
IndexMaps = tuple[IndexMap, ...]  # an index stays only while all its coupled channels stay
WIDTHS = re.compile(r"head|dim|channel|width|feature|plane|embed|hidden|inner|chs|kd$|^nh|^d[hkv]?$")
SUFFIXES = ("", ":heads", ":width")  # channels; rows and columns of a joint array, which are heads and their width


@dataclass(frozen=True)
class Group:
    """Channels that can only be removed together.

    Attributes:
        name: the first layer, in the network's order, that produces the channels; ":heads" or ":width" where they
            stand in an array of heads by width.
        size: channels that layer has in the dense network; heads, or the width of one.
        granularity: channels of that layer in one coupled channel.
        step: a legal keep-count is a multiple of it, in channels.
        layers: every module or parameter the group touches.
        removable: whether it may keep nothing: the branch it stands in is then gone.
    """

    name: str
    size: int
    granularity: int
    step: int
    layers: tuple[str, ...]
    removable: bool = False


@dataclass(frozen=True)
class Frozen:
    """A layer that keeps all or some of its output channels whatever the policy, and why."""

    name: str
    channels: int
    reason: str


@dataclass(frozen=True)
class Multiply:
    """Multiply-adds of one operation: `macs` for every combination of kept indices of `axes`."""

    module: str
    macs: int
    axes: tuple[IndexMaps, ...]


@dataclass(frozen=True)
class Integer:
    """A size that a module keeps in an attribute (or in an item of one): the kept indices of `index_maps`."""

    module: str
    attribute: str
    item: int | None
    index_maps: IndexMaps


@dataclass(frozen=True)
class ShapeRequest:
    """A call that asks for sizes or scales, as `TracedRequest`; index maps of each size, () where none are known."""

    module: str
    site: str
    turn: int
    sizes: tuple[IndexMaps, ...]
    factor: float | None


@dataclass(frozen=True)
class ChannelTable:
    """Everything a cut needs to know of a network.

    Attributes:
        groups: the d groups, in the network's order.
        channel_group: (C,) the group of each coupled channel.
        index_maps: tensor name -> dimension -> its index maps.
        inputs: layer name -> the index maps of its input channels.
        frozen: what no policy touches.
        products: every multiplication of two tensors, in the order they ran.
        integers: attributes that must follow.
        norms: how to normalise over fewer channels, by module name.
        shape_requests: calls whose sizes must be patched: attributes alone do not make them right.
    """

    groups: tuple[Group, ...]
    channel_group: NDArray[np.int32]
    index_maps: Mapping[str, Mapping[int, IndexMaps]]
    inputs: Mapping[str, IndexMaps]
    frozen: tuple[Frozen, ...] = field(default=())
    products: tuple[Multiply, ...] = ()
    integers: tuple[Integer, ...] = ()
    norms: Mapping[str, NormRule] = field(default_factory=dict)
    shape_requests: tuple[ShapeRequest, ...] = ()

    @cached_property
    def space(self) -> Space:
        """The legal policies."""
        return Space(
            tuple(group.name for group in self.groups),
            tuple(group.size for group in self.groups),
            tuple(group.step for group in self.groups),
            tuple(group.removable for group in self.groups),
        )

    def without(self, removed: Mapping[str, str]) -> ChannelTable:
        """The same table with the groups named in `removed` frozen for the reason given."""
        staying = [index for index, group in enumerate(self.groups) if group.name not in removed]
        renumber = np.full(len(self.groups) + 1, KEPT, dtype=np.int32)
        renumber[staying] = np.arange(len(staying), dtype=np.int32)
        channel_group = renumber[self.channel_group]
        staying_channels = np.flatnonzero(channel_group != KEPT)
        new_number = np.full(len(self.channel_group) + 1, KEPT, dtype=np.int32)
        new_number[staying_channels] = np.arange(len(staying_channels), dtype=np.int32)
        known: dict[int, IndexMap] = {}  # coupled layers go on sharing one array

        def renamed(index_maps: IndexMaps) -> IndexMaps:
            new = (known.setdefault(id(index_map), new_number[index_map]) for index_map in index_maps)
            return tuple(index_map for index_map in new if (index_map != KEPT).any())

        index_maps = {
            name: {dim: new for dim, old in axes.items() if (new := renamed(old))}
            for name, axes in self.index_maps.items()
        }
        frozen = tuple(Frozen(g.name, g.size, removed[g.name]) for g in self.groups if g.name in removed)
        return replace(
            self,
            groups=tuple(self.groups[index] for index in staying),
            channel_group=channel_group[staying_channels],
            index_maps={name: axes for name, axes in index_maps.items() if axes},
            inputs={name: new for name, old in self.inputs.items() if (new := renamed(old))},
            frozen=(*self.frozen, *frozen),
            products=tuple(
                replace(product, axes=tuple(_keep_length(len(old[0]), renamed(old)) for old in product.axes))
                for product in self.products
            ),
            integers=tuple(replace(i, index_maps=new) for i in self.integers if (new := renamed(i.index_maps))),
            shape_requests=tuple(
                replace(call, sizes=tuple(_keep_length(len(old[0]), renamed(old)) if old else () for old in call.sizes))
                for call in self.shape_requests
            ),
        )

    def with_step(self, group: int, step: int) -> ChannelTable:
        """The same table with another step for one group."""
        groups = [replace(g, step=step) if index == group else g for index, g in enumerate(self.groups)]
        return replace(self, groups=tuple(groups))

    def with_removable(self, removable: Sequence[bool]) -> ChannelTable:
        """The same table, each group marked with whether it may keep nothing."""
        return replace(self, groups=tuple(replace(g, removable=r) for g, r in zip(self.groups, removable, strict=True)))


def _keep_length(length: int, found: IndexMaps) -> IndexMaps:
    """The index maps found for a dimension; where there are none, one that keeps its length."""
    return found or (np.full(length, KEPT, dtype=np.int32),)


def legal_step(size: int, granularity: int, round_to: int) -> int:
    """The step of a group: the largest divisor of `round_to` that is no coarser than an eighth of the group.

    The step is a whole number of coupled channels and divides the size, so that the dense width is legal too.
    """
    count = size // granularity
    wanted = max(1, round_to // granularity)
    fitting = [step for step in range(1, wanted + 1) if wanted % step == 0 and count % step == 0 and step * 8 <= count]
    return max(fitting, default=1) * granularity


def build_table(model: nn.Module, record: TraceRecord, round_to: int = 8) -> ChannelTable:
    """Join coupled slots into channels and channels into groups.

    Args:
        model: the network that was traced.
        record: what `tracing.trace` found.
        round_to: the step wanted for keep-counts, in channels.

    Raises:
        ModelError: nothing can be removed.
    """
    coupled = find_coupled_channels(record)
    produced = np.zeros(record.total, dtype=np.bool_)
    for slots in record.produced:
        produced[slots[slots >= 0]] = True
    groups, channel_group, renumber = _group_channels(record, coupled, produced, round_to)
    final = np.where(coupled.index_maps >= 0, renumber[coupled.index_maps], KEPT).astype(np.int32)
    final = np.concatenate([final, np.full((2, 1), KEPT, np.int32)], axis=1)  # for the slot NONE
    frozen = _frozen_layers(model, record, coupled, final)
    if not groups:
        why = f"; {frozen[0].name}: {frozen[0].reason}" if frozen else ""
        raise ModelError(f"a network must have channels that can be removed, but this one has none{why}")
    known: dict[bytes, IndexMap] = {}  # coupled layers share one array

    def owners_of(slots: Slots) -> IndexMaps:
        found = (final[way][slots.reshape(-1)] for way in range(2))
        return tuple(
            known.setdefault(index_map.tobytes(), index_map) for index_map in found if (index_map != KEPT).any()
        )

    aliases = _aliases(model)
    index_maps: dict[str, dict[int, IndexMaps]] = {}
    for (name, dim), (start, length) in record.axes.items():
        if found := owners_of(np.arange(start, start + length)):
            for alias in aliases[name]:
                index_maps.setdefault(alias, {})[dim] = found
    return ChannelTable(
        groups,
        channel_group,
        index_maps,
        {name: found for name, slots in record.inputs.items() if (found := owners_of(slots))},
        frozen,
        tuple(
            Multiply(p.module, p.macs, tuple(_keep_length(axis.size, owners_of(axis)) for axis in p.axes))
            for p in record.products
        ),
        _integers(
            model, record, final, known, {new for new, way in zip(renumber[:-1], coupled.ways, strict=True) if way == 1}
        ),
        {name: rule for name, rule in record.rules.items() if name in record.normed and owners_of(record.normed[name])},
        _shape_requests(record, final, known),
    )


def _aliases(model: nn.Module) -> dict[str, list[str]]:
    """Every name of each tensor, by its first."""
    first: dict[int, str] = {}
    found: dict[str, list[str]] = {}
    named = (
        *model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)
    )  # fmt: skip
    for name, tensor in named:
        found.setdefault(first.setdefault(id(tensor), name), []).append(name)
    return found


def _group_channels(
    record: TraceRecord, coupled: CoupledChannels, produced: NDArray[np.bool_], round_to: int
) -> tuple[tuple[Group, ...], NDArray[np.int32], NDArray[np.int32]]:
    """Channels that touch the same tensors form a group: (groups, group of each channel, old number -> new one)."""
    axes = sorted(record.axes, key=lambda axis: _place_of(record, axis))
    touches: list[list[tuple[int, int]]] = [[] for _ in coupled.ways]
    writes: list[list[int]] = [[] for _ in coupled.ways]
    for number, axis in enumerate(axes):
        start, length = record.axes[axis]
        for index_map in coupled.index_maps[:, start : start + length]:
            present, counts = np.unique(index_map[index_map >= 0], return_counts=True)
            for channel, count in zip(present.tolist(), counts.tolist(), strict=True):
                touches[channel].append((number, count))
                if produced[start]:
                    writes[channel].append(number)
    members: dict[tuple[int, tuple[tuple[int, int], ...]], list[int]] = {}
    for channel, touched in enumerate(touches):
        members.setdefault((int(coupled.ways[channel]), tuple(touched)), []).append(channel)
    groups: list[Group] = []
    channel_group: list[int] = []
    renumber = np.full(len(coupled.ways) + 1, KEPT, dtype=np.int32)
    taken: dict[str, int] = {}
    for (way, signature), inside in sorted(members.items(), key=lambda item: (item[0][1], item[0][0])):
        if len(inside) < 2 or not writes[inside[0]]:
            continue
        leader = writes[inside[0]][0]
        granularity = 1 if way else dict(signature)[leader]
        name = _module_of(axes[leader][0]) + SUFFIXES[way]
        taken[name] = taken.get(name, 0) + 1
        renumber[inside] = np.arange(len(channel_group), len(channel_group) + len(inside), dtype=np.int32)
        channel_group += [len(groups)] * len(inside)
        size = granularity * len(inside)
        groups.append(
            Group(
                name if taken[name] == 1 else f"{name}#{taken[name]}",
                size,
                granularity,
                legal_step(size, granularity, 1 if way == 1 else round_to),
                tuple(dict.fromkeys(_module_of(axes[n][0]) for n, _ in signature)),
            )
        )
    return tuple(groups), np.array(channel_group, dtype=np.int32), renumber


def _place_of(record: TraceRecord, axis: Axis) -> int:
    return record.axes[axis][0]


def _module_of(tensor: str) -> str:
    return tensor.rpartition(".")[0] or tensor


def _frozen_layers(
    model: nn.Module, record: TraceRecord, coupled: CoupledChannels, final: NDArray[np.int32]
) -> tuple[Frozen, ...]:
    frozen = []
    for name, module in model.named_modules():
        axis = (f"{name}.weight" if name else "weight", out_dim(module))
        if not isinstance(module, LAYERS) or axis not in record.axes:
            continue
        start, length = record.axes[axis]
        slots = np.arange(start, start + length)
        stays = slots[(final[:, slots] == KEPT).all(0)]
        if len(stays):
            reasons = coupled.reasons[stays]
            known = reasons[reasons >= 0]
            alone = "no layer reads its channels, or they cannot leave a few at a time"
            frozen.append(Frozen(name, len(stays), coupled.texts[known[0]] if len(known) else alone))
    return tuple(frozen)


def _integers(
    model: nn.Module, record: TraceRecord, final: NDArray[np.int32], known: dict[bytes, IndexMap], rows: Collection[int]
) -> tuple[Integer, ...]:
    """Attributes that hold a size their module's code asked for."""
    sizes: dict[str, dict[int, dict[bytes, IndexMaps]]] = {}
    for sized in record.sized:
        index_maps = _row_owners(sized.slots, final, known)
        if index_maps:
            by_length = sizes.setdefault(sized.module, {}).setdefault(len(sized.slots), {})
            by_length.setdefault(b"".join(index_map.tobytes() for index_map in index_maps), index_maps)
    found = []
    for name, module in model.named_modules():
        if name not in sizes or isinstance(module, LAYERS):
            continue
        for attribute, item, value in _own_integers(module):
            if (candidates := sizes[name].get(value)) is not None:
                found.append(Integer(name, attribute, item, _likeliest(attribute, list(candidates.values()), rows)))
    return tuple(found)


def _row_owners(slots: Slots, final: NDArray[np.int32], known: dict[bytes, IndexMap]) -> IndexMaps:
    """The index_maps of each index of a dimension, given its slots (size, rest): what owns a whole row."""
    rows = final[:, slots]
    common = np.where((rows == rows[:, :, :1]).all(2), rows[:, :, 0], KEPT)
    return tuple(known.setdefault(o.tobytes(), o) for o in map(np.ascontiguousarray, common) if (o != KEPT).any())


def _shape_requests(
    record: TraceRecord, final: NDArray[np.int32], known: dict[bytes, IndexMap]
) -> tuple[ShapeRequest, ...]:
    found: dict[tuple[str, str, int], ShapeRequest] = {}
    for request in record.requests:
        sizes = tuple(
            () if slots is None else _row_owners(slots, final, known) or (np.full(len(slots), KEPT, np.int32),)
            for slots in request.sizes
        )
        where = (request.module, request.site, request.turn)
        found[where] = ShapeRequest(*where, sizes, request.factor)
    return tuple(found.values())


def _own_integers(module: nn.Module) -> list[tuple[str, int | None, int]]:
    """(attribute, item, value) of the integers above one that a module holds itself."""
    found: list[tuple[str, int | None, int]] = []
    for attribute, value in vars(module).items():
        if not WIDTHS.search(attribute):  # a window or a kernel may be of the same size by chance
            continue
        if type(value) is int and value > 1:
            found.append((attribute, None, value))
        elif isinstance(value, (tuple, list)) and all(type(item) is int for item in value):
            found += [(attribute, number, item) for number, item in enumerate(value) if item > 1]
    return found


def _likeliest(attribute: str, candidates: list[IndexMaps], rows: Collection[int]) -> IndexMaps:
    """Of several axes of one length the one an attribute of this name means: heads, or their width."""
    means_heads = "head" in attribute and not any(word in attribute for word in ("dim", "size", "width"))
    for index_maps in candidates:
        is_rows = len(index_maps) == 1 and int(index_maps[0][0]) in rows
        if is_rows == means_heads:
            return index_maps
    return candidates[0]


def ranks(table: ChannelTable, scores: Tensor) -> NDArray[np.int32]:
    """(C,) the rank of each coupled channel inside its group, 0 for the one that is removed last."""
    rank = np.empty(len(table.channel_group), dtype=np.int32)
    values = scores.numpy()
    for group in range(len(table.groups)):
        members = np.flatnonzero(table.channel_group == group)
        rank[members[np.argsort(-values[members], kind="stable")]] = np.arange(len(members), dtype=np.int32)
    return rank


def kept_channels(table: ChannelTable, rank: NDArray[np.int32], policy: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(C,) which coupled channels a (d,) policy of keep-counts leaves, given the rank of each."""
    granularity = np.array([group.granularity for group in table.groups])
    kept: NDArray[np.bool_] = rank < (policy // granularity)[table.channel_group]
    return kept
