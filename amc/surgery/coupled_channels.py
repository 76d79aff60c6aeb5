"""From slots to coupled channels: the least that can be removed so that every tensor stays a full array.

Slots that must leave together form a class. Where channels stand in several dimensions at once (heads and the width
of a head), what is left must again be a full array: whole rows leave, or whole columns. A class then belongs to one
channel of rows and to one of columns, and stays only while both stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from amc.surgery.trace_record import NONE, TraceRecord

FEWEST_IN_A_HEAD = 8  # classes in a row that is a head; rows of fewer are channels (of a split, of a shuffle)
KEPT = -1  # the index_map of an index that no policy removes
Array = NDArray[np.int64]


@dataclass(frozen=True)
class CoupledChannels:
    """Who owns each slot.

    Attributes:
        index_maps: (2, slots) the coupled channels of each slot, KEPT where none; a slot stays only while both stay.
        ways: (C,) 0 for channels, 1 for rows and 2 for columns of a joint array.
        reasons: (slots,) index into `texts` of why a slot stays, -1 where it does not.
    """

    index_maps: Array
    ways: Array
    reasons: Array
    texts: list[str]


@dataclass
class _Partition:
    """Classes of one block, joined along one dimension: (classes,) part numbers, NONE for what it leaves alone."""

    parts: Array
    count: int


def find_coupled_channels(record: TraceRecord) -> CoupledChannels:
    """The coupled channels of a trace. Classes that nothing produces, or nothing reads, are none."""
    classes = _classes(record)
    state = _Classes(record, classes)
    singles, partitions = _partitions(state)
    index_maps = np.full((2, state.count + 1), KEPT, dtype=np.int64)
    ways: list[int] = []
    free = np.flatnonzero(singles & ~state.kept[:-1] & state.useful)
    index_maps[0, free] = np.arange(len(free))
    ways += [0] * len(free)
    for pair in partitions:
        for way, partition in enumerate(pair):
            for part in range(partition.count):
                members = np.flatnonzero(partition.parts == part)
                if len(members) and state.removable(members):
                    index_maps[way, members] = len(ways)
                    ways.append(0 if len(pair) == 1 and len(members) < FEWEST_IN_A_HEAD else way + 1)
    reasons = np.where(index_maps[:, :-1].max(0) == KEPT, state.reasons[:-1], -1)
    return CoupledChannels(index_maps[:, classes], np.array(ways, dtype=np.int64), reasons[classes], state.texts)


def _classes(record: TraceRecord) -> Array:
    """(slots,) the class of each slot."""
    left = np.concatenate([a for a, _ in record.pairs] or [np.zeros(0, np.int64)])
    right = np.concatenate([b for _, b in record.pairs] or [np.zeros(0, np.int64)])
    for _ in range(8):  # a row that is one class and its projection leave together, which may join more
        classes = _components(left, right, record.total)
        more = [(rows[same, 0], small[same]) for rows, small in record.projections
                if (same := ((rows != NONE) & (classes[rows] == classes[rows[:, :1]])).all(1)).any()]  # fmt: skip
        new = [(a, b) for a, b in more if (classes[a] != classes[b]).any()]
        if not new:
            break
        left = np.concatenate([left, *(a for a, _ in new)])
        right = np.concatenate([right, *(b for _, b in new)])
    return classes


def _components(left: Array, right: Array, count: int) -> Array:
    edges = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(count, count))
    found: Array = connected_components(edges, directed=False)[1].astype(np.int64)
    return found


class _Classes:
    """The record in terms of classes; the last class stands for NONE and always stays."""

    def __init__(self, record: TraceRecord, classes: Array) -> None:
        self.count = int(classes.max(initial=-1)) + 1
        of = np.append(classes, self.count)
        self.texts = list(dict.fromkeys(text for _, text in record.kept))
        number_of = {text: number for number, text in enumerate(self.texts)}
        self.reasons = np.full(self.count + 1, -1, dtype=np.int64)
        for slots, text in reversed(record.kept):
            self.reasons[of[slots]] = number_of[text]
        self.kept = self.reasons >= 0
        self.kept[-1] = True
        self.produced, self.read = (np.zeros(self.count + 1, dtype=np.bool_) for _ in range(2))
        for flags, found in ((self.produced, record.produced), (self.read, record.read)):
            for slots in found:
                flags[of[slots]] = True
        self.inside = np.zeros(self.count + 1, dtype=np.bool_)
        self.grids = [grid for raw in record.grids if (grid := _reduced(of[raw])).ndim > 1]
        self.fixed = [(of[rows], text) for rows, text in record.fixed]
        self.projections = [(of[rows], of[small]) for rows, small in record.projections]

    @property
    def useful(self) -> NDArray[np.bool_]:
        """Classes that something produces and something reads."""
        useful: NDArray[np.bool_] = (self.produced & self.read)[:-1]
        return useful

    def removable(self, members: Array) -> bool:
        """Whether a set of classes may leave; else the reason is noted."""
        if self.kept[members].any():
            reason = self.reasons[members].max()
            self.reasons[members] = np.where(self.reasons[members] < 0, reason, self.reasons[members])
            return False
        self.inside[members] = True
        try:
            for rows, text in self.fixed:
                first = self.inside[rows[:, 0]]  # a row that is all inside begins there
                if first.any() and self.inside[rows[first]].all(1).any():
                    self._note(members, text)
                    return False
        finally:
            self.inside[members] = False
        return bool(self.produced[members].any() and self.read[members].any())

    def _note(self, members: Array, text: str) -> None:
        if text not in self.texts:
            self.texts.append(text)
        self.reasons[members] = np.where(self.reasons[members] < 0, self.texts.index(text), self.reasons[members])


def _reduced(grid: Array) -> Array:
    """A grid without repeated rows, columns, ..., and without dimensions of size one."""
    for axis in range(grid.ndim):
        rows = np.moveaxis(grid, axis, 0).reshape(grid.shape[axis], -1)
        firsts = np.sort(np.unique(rows, axis=0, return_index=True)[1])
        grid = grid.take(firsts, axis)
    return grid.squeeze()


def _partitions(state: _Classes) -> tuple[NDArray[np.bool_], list[list[_Partition]]]:
    """(classes that stand alone, for every block of joint arrays one or two ways to divide it)."""
    alone = np.ones(state.count, dtype=np.bool_)
    unique = {(grid.shape, grid.tobytes()): grid for grid in state.grids}
    blocks = _grid_blocks(list(unique.values()), state)
    found = []
    for grids, projections in blocks:
        for grid in grids:
            alone[grid[grid < state.count]] = False
        candidates: list[_Partition] = []
        for grid in sorted(grids, key=lambda g: -g.size)[:6]:
            for axis in range(grid.ndim):
                partition = _close(grid, axis, grids, projections, state)
                if partition is not None and not any(np.array_equal(partition.parts, c.parts) for c in candidates):
                    candidates.append(partition)
        chosen = _choose(candidates, state)
        if chosen:
            for partition in chosen:
                alone[partition.parts[:-1] >= 0] = False
            found.append(chosen)
        else:
            for grid in grids:
                state._note(np.unique(grid[grid < state.count]), "it is reshaped so that no part can leave alone")
    return alone, found


def _grid_blocks(grids: Sequence[Array], state: _Classes) -> list[tuple[list[Array], list[tuple[Array, Array]]]]:
    """Grids that share classes, directly or over projections."""
    edges = [(np.full(grid.size, grid.flat[0]), grid.reshape(-1)) for grid in grids]
    edges += [(np.repeat(rows[:, 0], rows.shape[1]), rows.reshape(-1)) for rows, _ in state.projections]
    edges += [(rows[:, 0], small) for rows, small in state.projections]
    last = state.count  # the class that stands for NONE joins nothing
    pairs = [(a[(a != last) & (b != last)], b[(a != last) & (b != last)]) for a, b in edges]
    if not grids:
        return []
    block = _components(np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs]), last + 1)
    found: dict[int, tuple[list[Array], list[tuple[Array, Array]]]] = {}
    for grid in grids:
        inside = grid[grid != last]
        if inside.size:
            found.setdefault(int(block[inside[0]]), ([], []))[0].append(grid)
    for rows, small in state.projections:
        inside = rows[rows != last]
        if inside.size and int(block[inside[0]]) in found:
            found[int(block[inside[0]])][1].append((rows, small))
    return list(found.values())


def _close(
    seed: Array, axis: int, grids: Sequence[Array], projections: Sequence[tuple[Array, Array]], state: _Classes
) -> _Partition | None:
    """Join the slabs of one grid along one axis, and whatever must then follow; None if nothing is left to choose."""
    members = np.unique(np.concatenate([g.reshape(-1) for g in grids] + [s for _, s in projections]
                                       + [r.reshape(-1) for r, _ in projections]))  # fmt: skip
    local = np.full(state.count + 1, -1, dtype=np.int64)
    local[members] = np.arange(len(members))
    edges = [_slab_edges(local[seed], axis)]
    for _ in range(4 * len(grids) + 8):
        parts = _components(*_stacked(edges), len(members))
        sizes = np.bincount(parts)
        more = _unaligned(parts, sizes, [local[g] for g in grids], edges)
        for rows, small in projections:
            labels = parts[local[rows]]
            same = (labels == labels[:, :1]).all(1) & (parts[local[small]] != labels[:, 0])
            if same.any():
                more.append((local[rows][same, 0], local[small][same]))
            led = (sizes[parts[local[small]]] > 1) & (labels != parts[local[small]][:, None]).any(1)
            if led.any():  # and back: what stands for a whole row leaves only with it
                more.append((np.repeat(local[small][led], rows.shape[1]), local[rows][led].reshape(-1)))
        if not more:
            break
        edges += more
    touched = sizes[parts] > 1
    parts = np.where(touched, parts, -1)
    numbers = np.unique(parts[parts >= 0])
    if len(numbers) < 2:
        return None
    whole = np.full(state.count + 1, -1, dtype=np.int64)
    whole[members] = np.where(parts >= 0, np.searchsorted(numbers, parts), -1)
    return _Partition(whole, len(numbers))


def _unaligned(
    parts: Array, sizes: Array, grids: Iterable[Array], edges: Sequence[tuple[Array, Array]]
) -> list[tuple[Array, Array]]:
    """For the first grid whose touched parts are not whole slabs along one axis: join along the cheapest axis."""
    for grid in grids:
        labels = parts[grid]
        if not (sizes[labels] > 1).any() or any(_constant_along(labels, axis) for axis in range(grid.ndim)):
            continue
        tried = [_slab_edges(grid, axis) for axis in range(grid.ndim)]
        left = [len(np.unique(_components(*_stacked([*edges, t]), len(parts)))) for t in tried]
        return [tried[int(np.argmax(left))]]
    return []


def _constant_along(labels: Array, axis: int) -> bool:
    """Every slab along `axis` is of one part."""
    rows = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
    return bool((rows == rows[:, :1]).all())


def _slab_edges(grid: Array, axis: int) -> tuple[Array, Array]:
    rows = np.moveaxis(grid, axis, 0).reshape(grid.shape[axis], -1)
    return np.repeat(rows[:, 0], rows.shape[1]), rows.reshape(-1)


def _stacked(edges: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    return np.concatenate([a for a, _ in edges]), np.concatenate([b for _, b in edges])


def _choose(candidates: list[_Partition], state: _Classes) -> list[_Partition]:
    """The partitions of which at least two parts may leave; two of them only if they cross evenly."""
    good = []
    for partition in candidates:
        members = [np.flatnonzero(partition.parts == part) for part in range(partition.count)]
        if sum(state.removable(inside) for inside in members) >= 2:
            good.append(partition)
    good.sort(key=lambda partition: partition.count)
    for first in range(len(good)):
        for second in range(first + 1, len(good)):
            if _cross_evenly(good[first], good[second]):
                return [good[first], good[second]]
    return good[-1:]


def _cross_evenly(first: _Partition, second: _Partition) -> bool:
    """Every part of one meets every part of the other in equally many classes."""
    both = (first.parts[:-1] >= 0) & (second.parts[:-1] >= 0)
    counts = np.zeros((first.count, second.count), dtype=np.int64)
    np.add.at(counts, (first.parts[:-1][both], second.parts[:-1][both]), 1)
    return bool(counts.min() > 0 and (counts == counts[0, 0]).all())
