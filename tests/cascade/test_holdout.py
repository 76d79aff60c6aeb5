"""Held-out examples are divided: disjoint, all of them, by seed; what belongs together stays together."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from amc.cascade.stages.holdout import DRAWS, SLACK, folds_of, split_in_two
from amc.cascade.stages.records import Records
from amc.system.errors import DataError
from amc.zoo.data.kept import KeptSplit
from amc.zoo.data.part import PartSplit
from amc.zoo.data.splits import TensorSplit, groups_of

SEEDS = st.integers(0, 10**6)
SIZES = st.lists(st.integers(1, 60), min_size=2, max_size=9)


def shuffled(sizes: list[int], seed: int) -> Tensor:
    """Groups of these sizes, under numbers with gaps between them, in any order."""
    groups = torch.cat([torch.full((size,), 7 * number + 3) for number, size in enumerate(sizes)])
    return groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))]


@given(SIZES, SEEDS)
@settings(deadline=None)
def test_no_group_stands_in_two_parts_and_no_example_in_none(sizes: list[int], seed: int) -> None:
    """Parts of a split are disjoint, sorted, whole groups, and fixed by the seed."""
    groups = shuffled(sizes, seed)
    first, second = split_in_two(len(groups), seed, groups=groups)
    assert torch.equal(torch.cat([first, second]).sort().values, torch.arange(len(groups)))
    assert len(first) and len(second) and not {*groups[first].tolist()} & {*groups[second].tolist()}
    assert all(torch.equal(part, part.sort().values) for part in (first, second))
    again = split_in_two(len(groups), seed, groups=groups)
    assert torch.equal(first, again[0]) and torch.equal(second, again[1])


@given(SIZES, SEEDS)
@settings(deadline=None)
def test_parts_of_groups_are_within_the_slack_of_a_half_or_as_near_as_few_groups_allow(
    sizes: list[int], seed: int
) -> None:
    """For four groups or fewer no other division is nearer to a half."""
    groups = shuffled(sizes, seed)
    off = abs(len(split_in_two(len(groups), seed, groups=groups)[0]) - sum(sizes) / 2)
    if len(sizes) <= 4:  # at most 24 orders: all of them are drawn
        assert DRAWS > 200
        chosen = [sum(some) for count in range(1, len(sizes)) for some in combinations(sizes, count)]
        assert off <= max(SLACK * sum(sizes), min(abs(size - sum(sizes) / 2) for size in chosen))
    assert off <= max(sizes) / 2 + SLACK * sum(sizes)


def test_groups_of_one_size_are_halved_exactly_and_otherwise_by_another_seed() -> None:
    """Six groups give three and three, and seeds differ."""
    groups = shuffled([50] * 6, 0)
    firsts = {tuple(sorted({*groups[split_in_two(300, seed, groups=groups)[0]].tolist()})) for seed in range(20)}
    assert all(len(first) == 3 for first in firsts) and len(firsts) > 5


def test_examples_without_groups_are_divided_one_by_one() -> None:
    """The part is the first half of a permutation by the seed, or another share of it."""
    first, second = split_in_two(11, 3)
    assert (len(first), len(second)) == (6, 5) or (len(first), len(second)) == (5, 6)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(3))
    assert torch.equal(first, order[: len(first)].sort().values)
    assert [len(part) for part in split_in_two(10, 0, 0.2)] == [2, 8]


@pytest.mark.parametrize("groups", [torch.zeros(5).long(), torch.zeros(4).long()])
def test_one_group_alone_and_groups_of_other_examples_are_told_in_one_line(groups: Tensor) -> None:
    """Groups that cannot be divided, or are too many or too few, are a `DataError`."""
    with pytest.raises(DataError, match="groups") as reported:
        split_in_two(5, 0, groups=groups)
    assert "\n" not in str(reported.value)


@given(SIZES, SEEDS, st.integers(2, 6))
@settings(deadline=None)
def test_folds_hold_every_example_once_and_whole_groups(sizes: list[int], seed: int, count: int) -> None:
    """There are at most as many folds as groups, and none is larger than its share by more than a group."""
    groups = shuffled(sizes, seed)
    folds = folds_of(len(groups), count, seed, groups)
    assert len(folds) == min(count, len(sizes))
    assert torch.equal(torch.cat(folds).sort().values, torch.arange(len(groups)))
    assert sum(len({*groups[fold].tolist()}) for fold in folds) == len(sizes)
    assert max(map(len, folds)) <= len(groups) / len(folds) + max(sizes)


@given(st.integers(2, 50), SEEDS)
@settings(deadline=None)
def test_folds_of_single_examples_differ_by_one_at_most(number: int, seed: int) -> None:
    """No fold is empty."""
    for groups in (None, torch.zeros(number).long()):  # a lone group is divided: folds promise nothing
        folds = folds_of(number, 5, seed, groups)
        assert torch.equal(torch.cat(folds).sort().values, torch.arange(number))
        assert max(map(len, folds)) - min(map(len, folds)) <= 1 and min(map(len, folds)) > 0


def test_groups_come_along_with_their_examples() -> None:
    """A part of a split, and a part of records, has the groups of its examples."""
    groups = torch.tensor([1, 1, 2, 2, 3, 3])
    split = TensorSplit(torch.arange(6.0), torch.arange(6), groups=groups)
    place = torch.tensor([0, 3, 5])
    part = groups_of(PartSplit(KeptSplit(split), place))
    assert part is not None and part.tolist() == [1, 2, 3]
    assert groups_of(PartSplit(TensorSplit(torch.arange(6.0), torch.arange(6)), place)) is None
    records = Records(("a", "b"), torch.rand(2, 6, 3), torch.zeros(6).long(), groups)
    taken = records.choose([1]).take(place).groups
    assert taken is not None and taken.tolist() == [1, 2, 3]
    first, second = records.parted(0)
    assert first.groups is not None and second.groups is not None
    assert not {*first.groups.tolist()} & {*second.groups.tolist()}


def test_records_of_some_examples_show_the_features_that_they_had() -> None:
    """Features computed before or after taking a part are the same."""
    logits = torch.randn(3, 20, 4, generator=torch.Generator().manual_seed(0))
    known, fresh = (Records(("a", "b", "c"), logits, torch.zeros(20).long()) for _ in range(2))
    assert known.features.shape == (3, 20, 5)
    some = torch.arange(20) % 3 == 0
    assert torch.allclose(known.take(some).features, fresh.take(some).features)
