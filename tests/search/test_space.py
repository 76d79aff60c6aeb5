import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amc_search import Space
from amc_search.depth import switched
from tests.search.world import assert_lawful, worlds

SPACE = Space(("a", "b"), (8, 6), (4, 2), (True, False))


def test_a_removable_group_has_one_legal_count_more():
    """0 is legal where the group is removable, and the smallest policy has it there."""
    np.testing.assert_array_equal(SPACE.levels, [3, 3])
    np.testing.assert_array_equal(SPACE.low, [0, 2])
    np.testing.assert_array_equal(SPACE.step, [4, 2])
    np.testing.assert_array_equal(
        SPACE.is_legal(np.array([[0, 2], [4, 6], [0, 0], [2, 2]])), [True, True, False, False]
    )


def test_a_space_that_names_nothing_removable_has_nothing_removable():
    """An empty `removable` means the smallest policy is one step of every group."""
    space = Space(("a", "b"), (8, 6), (4, 2))
    np.testing.assert_array_equal(space.low, space.step)
    assert not space.may_drop.any()


def test_counts_near_nothing_are_nearest_to_nothing_where_that_is_legal():
    """Below half a step a removable group is dropped, unless the least counts say otherwise."""
    np.testing.assert_array_equal(SPACE.nearest(np.array([1.9, 0.1])), [0, 2])
    np.testing.assert_array_equal(SPACE.nearest(np.array([2.1, 9.0])), [4, 6])
    np.testing.assert_array_equal(SPACE.nearest(np.array([1.9, 0.1]), SPACE.step), [4, 2])


def test_removable_needs_an_entry_for_every_group():
    """A `removable` of another length is refused with its length."""
    with pytest.raises(ValueError, match="but has 1"):
        Space(("a", "b"), (8, 6), (4, 2), (True,))


@settings(max_examples=50, deadline=None)
@given(world=worlds(), seed=st.integers(0, 1000))
def test_switches_change_one_group_and_stay_lawful(world, seed):
    """Every removable group of every policy is dropped once or taken back, under every cap; others keep their state."""
    space, caps = world
    rng = np.random.default_rng(seed)
    policies = space.nearest(rng.uniform(0, 1, (3, len(space))) * space.high * (rng.random((3, len(space))) < 0.7))
    origin, found = switched(policies, space, caps, used=1.0)
    assert (np.diff(origin) >= 0).all()
    assert_lawful(found, space, caps)
    before, after = policies[origin] > 0, found > 0
    taken_back = (~before & after).sum(axis=1)
    assert (taken_back <= 1).all()
    for row in range(3):
        for group in np.flatnonzero(space.may_drop):
            dropped = policies[row, group] == 0
            tried = found[origin == row]
            assert len(tried) and (dropped or (tried[:, group] == 0).any())
