"""Units: the least that can leave so that what stays is still a full array."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amc.surgery.coupled_channels import KEPT, find_coupled_channels
from amc.surgery.trace_record import NONE, Factor, Slots, TraceRecord


def useful(record: TraceRecord, slots: Slots) -> Slots:
    """Slots that a layer produces and another reads."""
    record.produced.append(slots.reshape(-1))
    record.read.append(slots.reshape(-1))
    return slots


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=12), st.sets(st.integers(0, 11)))
def test_what_is_joined_leaves_together_and_what_is_kept_stays(pairs: list[tuple[int, int]], kept: set[int]) -> None:
    """The units are the connected parts in which nothing is kept."""
    record = TraceRecord()
    slots = useful(record, record.axis("w", 0, 12))
    for a, b in pairs:
        record.join(slots[[a]], slots[[b]])
    record.keep(slots[sorted(kept)], "for a test")
    part = list(range(12))
    for a, b in pairs:
        part = [part[a] if p == part[b] else p for p in part]
    index_maps = find_coupled_channels(record).index_maps
    assert (index_maps[1] == KEPT).all()
    for slot in range(12):
        stays = any(part[slot] == part[other] for other in kept)
        assert (index_maps[0, slot] == KEPT) == stays
        for other in range(12):
            if part[slot] == part[other]:
                assert index_maps[0, slot] == index_maps[0, other]
            elif not stays:
                assert index_maps[0, slot] != index_maps[0, other]


@given(st.integers(2, 6), st.integers(2, 6), st.integers(0, 2**31))
def test_a_joint_array_stays_a_full_array(rows: int, columns: int, seed: int) -> None:
    """Heads leave as rows and widths as columns: whatever units are kept, what is left is rows times columns."""
    record = TraceRecord()
    slots = useful(record, record.axis("w", 0, rows * columns)).reshape(rows, columns)
    record.grids.append(slots)
    units = find_coupled_channels(record)
    assert sorted(np.bincount(units.ways, minlength=3).tolist()) == sorted([0, rows, columns])
    keep = np.append(np.random.default_rng(seed).random(len(units.ways)) < 0.5, True)
    left = keep[units.index_maps[:, slots]].all(0)
    assert np.array_equal(left, left.any(1)[:, None] & left.any(0)[None])
    assert left.sum() == np.prod([keep[:-1][units.ways == way].sum() for way in np.unique(units.ways)])


def test_a_fixed_dimension_of_a_joint_array_loses_nothing() -> None:
    """Where the width of a head cannot change, heads alone may leave, and the reason is kept for nobody else."""
    record = TraceRecord()
    slots = useful(record, record.axis("w", 0, 12)).reshape(3, 4)
    record.grids.append(slots)
    record.fix(Factor((1, 2), slots), 2, "softmax runs over it")
    units = find_coupled_channels(record)
    assert len(units.ways) == 3
    assert len(set(units.index_maps[0].tolist())) == 3


def test_a_channel_that_stays_holds_its_row_and_its_column() -> None:
    """One kept slot of an array keeps one row and one column, and no other."""
    record = TraceRecord()
    slots = useful(record, record.axis("w", 0, 12)).reshape(3, 4)
    record.grids.append(slots)
    record.keep(slots[1, 2:3], "for a test")
    units = find_coupled_channels(record)
    assert sorted(np.bincount(units.ways).tolist()) == [0, 2, 3]
    assert (units.index_maps[0, slots[1]] == KEPT).all() and (units.index_maps[1, slots[:, 2]] == KEPT).all()
    assert units.texts[units.reasons[slots[1, 2]]] == "for a test"


@pytest.mark.parametrize("missing", ["produced", "read"])
def test_what_nothing_writes_or_reads_is_no_unit(missing: str) -> None:
    """Channels that no layer produces, or none reads, are not removed."""
    record = TraceRecord()
    useful(record, record.axis("w", 0, 6))
    getattr(record, missing).clear()
    assert (find_coupled_channels(record).index_maps == KEPT).all()


def test_a_row_that_is_one_class_leaves_with_what_stands_for_it() -> None:
    """A bias of every head leaves with the head: its slot is the projection of the head's row."""
    record = TraceRecord()
    heads = useful(record, record.axis("bias", 0, 3))
    slots = useful(record, record.axis("w", 0, 12)).reshape(3, 4)
    record.join(slots[:, :1], slots)
    small = record.project(Factor((0, 1), slots), [0])
    record.join(small.slots, heads)
    index_maps = find_coupled_channels(record).index_maps[0]
    assert len(set(index_maps[heads].tolist())) == 3
    assert (index_maps[slots] == index_maps[heads][:, None]).all()


def test_what_stands_for_no_channel_keeps_those_it_meets() -> None:
    """Zeros that were padded on have no slot; channels added to them stay."""
    record = TraceRecord()
    slots = useful(record, record.axis("w", 0, 4))
    record.join(slots, np.array([NONE, NONE, slots[2], slots[3]]))
    assert (find_coupled_channels(record).index_maps[0] == KEPT).tolist() == [True, True, False, False]
