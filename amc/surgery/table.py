"""The owner table: for every sliceable dimension of every tensor, which unit each index belongs to.

A unit is the least that can be removed: one channel of every coupled layer, or a whole block where a grouped
convolution asks for it. A group is all units that touch the same tensors in the same way; a policy keeps some of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from amc.errors import ModelError
from amc.surgery.dependencies import ROOTS, Axis, Couplings, tensor_axes
from amc_search import Space

KEPT = -1  # the owner of an index that no policy removes


@dataclass(frozen=True)
class Group:
    """Channels that can only be removed together.

    Attributes:
        name: the first layer, in the network's order, that produces the channels.
        size: channels that layer has in the dense network.
        granularity: channels of that layer in one unit.
        step: a legal keep-count is a multiple of it, in channels.
        layers: every module or parameter the group touches.
    """

    name: str
    size: int
    granularity: int
    step: int
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Frozen:
    """A layer that keeps all or some of its output channels whatever the policy, and why."""

    name: str
    channels: int
    reason: str


@dataclass(frozen=True)
class OwnerTable:
    """Everything a cut needs to know of a network.

    Attributes:
        groups: the d groups, in the network's order.
        unit_group: (U,) the group of each unit.
        owners: tensor name -> dimension -> (length,) the unit of each index, KEPT where none.
        frozen: what no policy touches.
    """

    groups: tuple[Group, ...]
    unit_group: NDArray[np.int32]
    owners: Mapping[str, Mapping[int, NDArray[np.int32]]]
    inputs: Mapping[str, NDArray[np.int32]]  # layer name -> (in channels,) the unit of each input channel
    frozen: tuple[Frozen, ...] = field(default=())

    @cached_property
    def space(self) -> Space:
        """The legal policies."""
        return Space(
            tuple(group.name for group in self.groups),
            tuple(group.size for group in self.groups),
            tuple(group.step for group in self.groups),
        )

    def without(self, removed: Mapping[str, str]) -> OwnerTable:
        """The same table with the groups named in `removed` frozen for the reason given."""
        staying = [index for index, group in enumerate(self.groups) if group.name not in removed]
        renumber = np.full(len(self.groups) + 1, KEPT, dtype=np.int32)
        renumber[staying] = np.arange(len(staying), dtype=np.int32)
        unit_group = renumber[self.unit_group]
        units = np.flatnonzero(unit_group != KEPT)
        new_unit = np.full(len(self.unit_group) + 1, KEPT, dtype=np.int32)
        new_unit[units] = np.arange(len(units), dtype=np.int32)
        owners = {
            name: {dim: new_unit[owner] for dim, owner in axes.items() if (new_unit[owner] != KEPT).any()}
            for name, axes in self.owners.items()
        }
        frozen = tuple(Frozen(g.name, g.size, removed[g.name]) for g in self.groups if g.name in removed)
        return OwnerTable(
            tuple(self.groups[index] for index in staying),
            unit_group[units],
            {name: axes for name, axes in owners.items() if axes},
            {name: new_unit[owner] for name, owner in self.inputs.items() if (new_unit[owner] != KEPT).any()},
            (*self.frozen, *frozen),
        )


def legal_step(size: int, granularity: int, round_to: int) -> int:
    """The step of a group: the largest divisor of `round_to` that is no coarser than an eighth of the group.

    The step is a whole number of units and divides the size, so that the dense width is legal too.
    """
    units = size // granularity
    wanted = max(1, round_to // granularity)
    fitting = [step for step in range(1, wanted + 1) if wanted % step == 0 and units % step == 0 and step * 8 <= units]
    return max(fitting, default=1) * granularity


def build_table(model: nn.Module, couplings: Couplings, round_to: int = 8) -> OwnerTable:
    """Join coupled slots into units and units into groups.

    Args:
        model: the network that was traced.
        couplings: what `dependencies.trace` found.
        round_to: the step wanted for keep-counts, in channels.

    Raises:
        ModelError: nothing can be removed.
    """
    order = {name: index for index, (name, _) in enumerate(model.named_modules())}
    axes = sorted(couplings.lengths, key=lambda axis: (order.get(axis[0], len(order)), axis[1] != "out"))
    unit_of, reasons = _join(axes, couplings)
    signatures = _signatures(axes, unit_of)
    groups, unit_group, renumber = _group_units(model, axes, unit_of, signatures, round_to)
    by_axis = {
        axis: np.where(units >= 0, renumber[np.maximum(units, 0)], KEPT).astype(np.int32)
        for axis, units in unit_of.items()
    }
    frozen = _frozen_layers(model, axes, unit_of, by_axis, reasons)
    if not groups:
        why = f"; {frozen[0].name}: {frozen[0].reason}" if frozen else ""
        raise ModelError(f"a network must have channels that can be removed, but this one has none{why}")
    owners: dict[str, dict[int, NDArray[np.int32]]] = {}
    inputs: dict[str, NDArray[np.int32]] = {}
    for (name, side), owner in by_axis.items():
        if (owner == KEPT).all():
            continue
        for tensor, dim in _tensors(model, name, side):
            owners.setdefault(tensor, {})[dim] = owner
        if side == "in":
            inputs[name] = owner
    return OwnerTable(groups, unit_group, owners, inputs, frozen)


def _join(axes: Sequence[Axis], couplings: Couplings) -> tuple[dict[Axis, NDArray[np.int32]], dict[int, str]]:
    """Number the units over all axes; (axis -> (length,) unit or KEPT) and the reason of each kept component."""
    offsets, total = {}, 0
    for axis in axes:
        offsets[axis] = total
        total += couplings.lengths[axis]
    left = np.concatenate([offsets[a] + i for a, i, _, _ in couplings.pairs] or [np.zeros(0, np.int64)])
    right = np.concatenate([offsets[b] + j for _, _, b, j in couplings.pairs] or [np.zeros(0, np.int64)])
    edges = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(total, total))
    count, component = connected_components(edges, directed=False)
    kept = np.zeros(count, dtype=np.bool_)
    reasons: dict[int, str] = {}
    for axis, indices, reason in couplings.kept:
        touched = np.unique(component[offsets[axis] + indices])
        kept[touched] = True
        for unit in touched.tolist():
            reasons.setdefault(unit, reason)
    unit_of = {a: component[offsets[a] : offsets[a] + couplings.lengths[a]].astype(np.int32) for a in axes}
    reasons_by_label = {-2 - unit: reason for unit, reason in reasons.items()}
    return {axis: np.where(kept[u], -2 - u, u).astype(np.int32) for axis, u in unit_of.items()}, reasons_by_label


def _signatures(
    axes: Sequence[Axis], unit_of: Mapping[Axis, NDArray[np.int32]]
) -> dict[int, tuple[tuple[int, int], ...]]:
    """For each removable unit: which axes it touches and in how many indices."""
    touches: dict[int, list[tuple[int, int]]] = {}
    for number, axis in enumerate(axes):
        units, counts = np.unique(unit_of[axis], return_counts=True)
        for unit, count in zip(units.tolist(), counts.tolist(), strict=True):
            if unit >= 0:
                touches.setdefault(unit, []).append((number, count))
    return {unit: tuple(places) for unit, places in touches.items()}


def _group_units(
    model: nn.Module,
    axes: Sequence[Axis],
    unit_of: Mapping[Axis, NDArray[np.int32]],
    signatures: Mapping[int, tuple[tuple[int, int], ...]],
    round_to: int,
) -> tuple[tuple[Group, ...], NDArray[np.int32], NDArray[np.int32]]:
    """Units with one signature form a group: (groups, group of each unit, old unit number -> new one)."""
    members: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for unit, signature in signatures.items():
        members.setdefault(signature, []).append(unit)
    modules = dict(model.named_modules())
    groups: list[Group] = []
    unit_group: list[int] = []
    renumber = np.full(max(signatures, default=0) + 1, KEPT, dtype=np.int32)
    taken: dict[str, int] = {}
    for signature in sorted(members):
        produced = [(n, c) for n, c in signature if axes[n][1] == "out" and isinstance(modules.get(axes[n][0]), ROOTS)]
        reads = any(axes[n][1] == "in" or axes[n][0] not in modules for n, _ in signature)
        if not produced or not reads or len(members[signature]) < 2:
            continue
        leader, granularity = produced[0]
        units = members[signature]
        name = axes[leader][0]
        taken[name] = taken.get(name, 0) + 1
        renumber[units] = np.arange(len(unit_group), len(unit_group) + len(units), dtype=np.int32)
        unit_group += [len(groups)] * len(units)
        size = granularity * len(units)
        groups.append(
            Group(
                name if taken[name] == 1 else f"{name}#{taken[name]}",
                size,
                granularity,
                legal_step(size, granularity, round_to),
                tuple(dict.fromkeys(axes[n][0] for n, _ in signature)),
            )
        )
    return tuple(groups), np.array(unit_group, dtype=np.int32), renumber


def _frozen_layers(
    model: nn.Module,
    axes: Sequence[Axis],
    unit_of: Mapping[Axis, NDArray[np.int32]],
    by_axis: Mapping[Axis, NDArray[np.int32]],
    reasons: Mapping[int, str],
) -> tuple[Frozen, ...]:
    modules = dict(model.named_modules())
    frozen = []
    for axis in axes:
        if axis[1] != "out" or not isinstance(modules.get(axis[0]), ROOTS):
            continue
        kept = unit_of[axis][by_axis[axis] == KEPT]
        if len(kept):
            alone = "no layer reads its channels: it is an output of the network"
            frozen.append(Frozen(axis[0], len(kept), reasons.get(int(kept[0]), alone)))
    return tuple(frozen)


def _tensors(model: nn.Module, name: str, side: str) -> list[tuple[str, int]]:
    if side.isdigit():
        return [(name, int(side))]
    return [(f"{name}.{tensor}", dim) for tensor, dim in tensor_axes(model.get_submodule(name), side)]


def unit_scores(
    table: OwnerTable, tensors: Mapping[str, Tensor], gradients: Mapping[str, Tensor] | None = None
) -> Tensor:
    """How much each unit matters, (U,) float64; only the order inside a group has meaning.

    Magnitude: for every weight matrix or kernel that a unit touches, the squared norm of its slices over the group's
    mean for that tensor, averaged over tensors (group L2 norm, as in DepGraph, Fang et al. 2023, arXiv 2301.12900,
    section 4.3). With `gradients`: |sum of weight x gradient| in place of the squared norm, the loss change to first
    order (Molchanov et al. 2019, arXiv 1906.10771).
    """
    unit_group = torch.from_numpy(table.unit_group).long()
    scores = torch.zeros(len(unit_group), dtype=torch.float64)
    weights = torch.zeros(len(unit_group), dtype=torch.float64)
    for name, axes in table.owners.items():
        tensor = tensors[name].detach().to("cpu", torch.float64)
        if tensor.ndim < 2:
            continue
        salience = tensor.square() if gradients is None else tensor * gradients[name].to("cpu", torch.float64)
        for dim, owner in axes.items():
            per_index = salience.transpose(0, dim).flatten(1).sum(1)
            here = torch.from_numpy(owner).long()
            per_unit = torch.zeros_like(scores).index_add_(0, here[here >= 0], per_index[here >= 0]).abs()
            touched = torch.zeros_like(scores).index_add_(0, here[here >= 0], torch.ones_like(per_index[here >= 0]))
            present = (touched > 0).double()
            group_sum = torch.zeros(len(table.groups), dtype=torch.float64).index_add_(0, unit_group, per_unit)
            group_count = torch.zeros(len(table.groups), dtype=torch.float64).index_add_(0, unit_group, present)
            mean = group_sum / group_count.clamp(min=1)
            scores += present * per_unit / mean[unit_group].clamp(min=1e-30)
            weights += present
    return scores / weights.clamp(min=1)


def ranks(table: OwnerTable, scores: Tensor) -> NDArray[np.int32]:
    """(U,) the place of each unit inside its group, 0 for the one that is removed last."""
    place = np.empty(len(table.unit_group), dtype=np.int32)
    values = scores.numpy()
    for group in range(len(table.groups)):
        units = np.flatnonzero(table.unit_group == group)
        place[units[np.argsort(-values[units], kind="stable")]] = np.arange(len(units), dtype=np.int32)
    return place


def kept_units(table: OwnerTable, place: NDArray[np.int32], policy: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(U,) which units a (d,) policy of keep-counts leaves, given each unit's rank."""
    granularity = np.array([group.granularity for group in table.groups])
    kept: NDArray[np.bool_] = place < (policy // granularity)[table.unit_group]
    return kept
