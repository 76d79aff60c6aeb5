import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amc_search import Cap, CapUnreachable, Space, ascend, is_feasible, propose, repair, uniform, utilisation
from amc_search.design import anchors, at_costs, random_policies, starting_policies
from tests.search.world import (
    Macs,
    assert_lawful,
    cap_at,
    chain,
    dense_cost,
    every_other_removable,
    fitted_ridge,
    smallest_cost,
    worlds,
)


@settings(max_examples=80, deadline=None)
@given(world=worlds(), seed=st.integers(0, 2**31), scale=st.floats(0.01, 100))
def test_repaired_policies_are_legal_and_under_every_cap(world, seed, scale):
    """Whatever real counts come in, what comes out is lawful."""
    space, caps = world
    counts = np.random.default_rng(seed).normal(0.5, 1, (8, len(space))) * scale * space.high
    assert_lawful(repair(counts, space, caps), space, caps)


@settings(max_examples=60, deadline=None)
@given(world=worlds(), seed=st.integers(0, 2**31))
def test_repair_leaves_legal_feasible_policies_alone(world, seed):
    """Repair is idempotent."""
    space, caps = world
    once = repair(np.random.default_rng(seed).uniform(0, 1, (8, len(space))) * space.high, space, caps)
    np.testing.assert_array_equal(repair(once, space, caps), once)


@settings(max_examples=60, deadline=None)
@given(world=worlds())
def test_uniform_gives_every_group_one_ratio_up_to_its_grid(world):
    """There is one ratio that every group keeps rounded down or up, and the policy is lawful."""
    space, caps = world
    policy = uniform(space, caps)
    assert_lawful(policy[None], space, caps)
    (free,) = np.nonzero(policy > space.step)  # at its lowest step a group may be above the ratio
    (cut,) = np.nonzero(policy < space.high)  # a full group may be below nothing
    above = (policy - space.step) / space.high
    below = (policy + space.step) / space.high
    assert not len(free) or not len(cut) or above[free].max() < below[cut].min() + 1e-9


@settings(max_examples=60, deadline=None)
@given(world=worlds(), seed=st.integers(0, 2**31))
def test_groups_are_dropped_only_where_asked_for_or_needed(world, seed):
    """What is nearest to 0 comes back as 0; beyond that, repair and uniform drop nothing while the caps allow steps."""
    space, caps = world
    rng = np.random.default_rng(seed)
    counts = rng.uniform(0, 1, (8, len(space))) * space.high * (rng.random((8, len(space))) < 0.8)
    wanted = space.nearest(counts)
    repaired = repair(counts, space, caps)
    assert (repaired[wanted == 0] == 0).all()
    possible = utilisation(np.where(wanted > 0, space.step, 0), caps) <= 1
    assert ((repaired > 0) == (wanted > 0))[possible].all()
    if utilisation(space.step[None], caps)[0] <= 1:
        assert (uniform(space, caps) > 0).all()


def test_a_cap_below_all_smallest_steps_is_met_by_dropping_some():
    """Where the smallest step of every group is too much, repair and uniform drop what they must, but not all."""
    space, cost = chain(8)
    space = every_other_removable(space)
    limit = float(cost(torch.as_tensor(space.step[None]).double())[0]) - 1
    caps = (Cap(cost, limit),)
    for policy in (uniform(space, caps), repair(space.high[None], space, caps)[0]):
        assert_lawful(policy[None], space, caps)
        assert 0 < (policy == 0).sum() < space.may_drop.sum()


def test_uniform_meets_a_fine_cap_closely():
    """On a fine grid the uniform baseline uses all but a sliver of the cap."""
    space, cost = chain(8, step=1, size=128)
    assert utilisation(uniform(space, (cap_at(space, cost, 0.4),))[None], (cap_at(space, cost, 0.4),))[0] > 0.99


def test_repair_keeps_proportions():
    """Two groups that were four to one stay so when both must shrink."""
    space = Space(("a", "b"), (1000, 1000), (1, 1))
    form = np.eye(2)
    macs = Macs(torch.as_tensor(form), torch.as_tensor(form))
    (policy,) = repair(np.array([[800.0, 200.0]]), space, (Cap(macs, 100_000.0),))
    assert policy[0] / policy[1] == pytest.approx(4, rel=0.02)


def test_an_unreachable_cap_names_the_smallest_cost():
    """Whoever asks for less than the smallest policy learns what it costs, from every entrance."""
    space, cost = chain(4)
    smallest = smallest_cost(space, cost)
    caps = (cap_at(space, cost, 0.5), Cap(cost, smallest - 1))
    ridge, none = fitted_ridge(space), space.low[None][:0]
    for ask in (
        lambda: repair(space.high[None], space, caps),
        lambda: uniform(space, caps),
        lambda: ascend(ridge, space, caps),
        lambda: starting_policies(space, caps, 8, 0),
        lambda: propose(space, caps, none, np.zeros(0), none, predictor=None),
    ):
        with pytest.raises(CapUnreachable) as caught:
            ask()
        assert (caught.value.smallest, caught.value.limit, caught.value.unit) == (smallest, smallest - 1, "MACs")
        message = str(caught.value)
        assert "\n" not in message and f"{smallest:.10g}" in message and "raise the cap" in message


def test_a_cap_of_exactly_the_smallest_cost_is_met():
    """The smallest policy itself is feasible under a cap of its own cost."""
    space, cost = chain(5)
    caps = (Cap(cost, smallest_cost(space, cost)),)
    np.testing.assert_array_equal(repair(space.high[None], space, caps), space.low[None])
    np.testing.assert_array_equal(uniform(space, caps), space.low)


@pytest.mark.parametrize("counts", [np.full((1, 4), np.nan), np.ones((2, 3)), np.ones(4)])
def test_repair_refuses_what_is_not_a_batch_of_counts(counts):
    """NaN and wrong shapes are errors, not policies."""
    space, cost = chain(4)
    with pytest.raises(ValueError, match="finite and of shape"):
        repair(counts, space, (cap_at(space, cost, 0.5),))


def test_costs_land_where_they_are_wanted():
    """Spread policies can be shifted to any cost, up as well as down."""
    space, cost = chain(10, step=1)
    caps = (cap_at(space, cost, 0.3),)
    targets = np.linspace(0.4, 1.5, 12)
    counts = np.random.default_rng(0).uniform(0.5, 1, (12, 10)) * space.high
    used = utilisation(at_costs(counts, space, caps, targets), caps)
    assert (used <= targets).all() and (used > targets - 0.02).all()


def test_random_policies_drop_some_groups_and_spend_what_that_frees():
    """Of the removable groups a tenth or so are dropped, others never, and the costs are where they are without."""
    space, cost = chain(12)
    space = every_other_removable(space)
    caps = (Cap(cost, 0.4 * dense_cost(space, cost)),)
    policies = random_policies(space, caps, 400, np.random.default_rng(0))
    dropped = (policies == 0).mean(axis=0)
    assert (dropped[~space.may_drop] == 0).all()
    assert (dropped[space.may_drop] > 0.05).all() and (dropped[space.may_drop] < 0.25).all()
    assert 0.2 < (policies > 0).all(axis=1).mean() < 0.8
    assert (utilisation(policies, caps) > 0.8).mean() > 0.95


def test_the_start_shows_every_group_dropped():
    """Among the starting policies, the smallest left out, each removable group is dropped at least once."""
    space, cost = chain(20)
    space = every_other_removable(space)
    start = starting_policies(space, (Cap(cost, 0.4 * dense_cost(space, cost)),), 32, seed=1)
    start = start[(start != space.low).any(axis=1)]
    assert (start == 0).any(axis=0)[space.may_drop].all() and (start > 0).all(axis=0)[~space.may_drop].all()


def test_the_start_holds_the_anchors_and_mostly_policies_near_the_cap():
    """Dense and smallest are there, nothing twice, and most others cost 0.75 to 1 times the cap."""
    space, cost = chain(12)
    caps = (Cap(cost, 0.4 * dense_cost(space, cost)),)
    start = starting_policies(space, caps, 32, seed=3)
    assert len(start) == len(np.unique(start, axis=0)) == 32
    assert space.is_legal(start).all()
    assert (start == space.high).all(axis=1).any() and (start == space.low).all(axis=1).any()
    used = utilisation(start[len(anchors(space, caps)) :], caps)
    assert ((used > 0.75) & (used <= 1)).mean() > 0.5 and used.max() > 1 and used.min() < 0.75


@settings(max_examples=40, deadline=None)
@given(world=worlds(), seed=st.integers(0, 2**31))
def test_random_policies_are_feasible(world, seed):
    """The random acquisition function never proposes what is over a cap."""
    space, caps = world
    policies = random_policies(space, caps, 16, np.random.default_rng(seed))
    assert_lawful(policies, space, caps)
    assert is_feasible(policies, caps).all()
