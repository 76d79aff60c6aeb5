import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amc_search import Bound, Cap, Space, climb, exchange, fill, repair, uniform, use_of
from amc_search.ascent import _every_policy
from tests.search.world import Truth, assert_lawful, cap_at, chain, dense_cost, fitted_ridge, worlds


class Known:
    """A predictor that is right."""

    def __init__(self, truth):
        self.weight, self.pace = (torch.as_tensor(x).float() for x in (truth.weight, truth.pace))

    def fit(self, policies, accuracy):
        raise AssertionError("the climb must not fit")

    def predict(self, policies):
        kept = (1 - torch.exp(-self.pace * policies)) / (1 - torch.exp(-self.pace))
        return 0.45 + (self.weight * kept).sum(dim=-1), torch.zeros(len(policies))


@settings(max_examples=25, deadline=None)
@given(world=worlds(), seed=st.integers(0, 1000))
def test_climbed_policies_are_legal_and_under_every_cap(world, seed):
    """One to top distinct lawful candidates, the best using no less than 97 % of a cap if any does."""
    space, caps = world
    found = climb(fitted_ridge(space, seed), space, caps, starts=32, steps=15, seed=seed, top=5)
    assert 1 <= len(found) <= 5
    assert_lawful(found.policies, space, caps)
    assert len(np.unique(found.policies, axis=0)) == len(found)
    np.testing.assert_allclose(found.use, use_of(found.policies, caps))
    assert found.use[0] >= 0.97 or found.use.max() < 0.97


@settings(max_examples=40, deadline=None)
@given(world=worlds(), seed=st.integers(0, 1000))
def test_fill_leaves_no_single_step_that_fits(world, seed):
    """After fill, one more step of any group breaks a cap; no group shrank."""
    space, caps = world
    before = repair(np.random.default_rng(seed).uniform(0, 1, (4, len(space))) * space.high, space, caps)
    after = fill(before, Bound(fitted_ridge(space), space, 1.0), caps)
    assert_lawful(after, space, caps)
    assert (after >= before).all()
    for policy in after:
        more = policy + np.diag(space.low)
        more = more[space.is_legal(more)]
        assert (use_of(more, caps) > 1).all()


@settings(max_examples=40, deadline=None)
@given(world=worlds(), seed=st.integers(0, 1000))
def test_exchange_never_lowers_the_predicted_bound(world, seed):
    """Every exchange is lawful and at least as good as what came in."""
    space, caps = world
    bound = Bound(fitted_ridge(space, seed), space, 1.0)
    before = repair(np.random.default_rng(seed).uniform(0, 1, (4, len(space))) * space.high, space, caps)
    after = exchange(before, bound, caps, rng=np.random.default_rng(seed), keep_use=0.9)
    assert_lawful(after, space, caps)
    assert (bound(after) >= bound(before) - 1e-6).all()
    assert (use_of(after, caps) >= np.minimum(use_of(before, caps), 0.9)).all()


@pytest.mark.parametrize("groups", [8, 30])
def test_the_best_candidate_uses_the_cap(groups):
    """With a fine grid at least 97 % of the tightest of two caps is used, and candidates come best first."""
    space, cost = chain(groups)
    _, other = chain(groups, seed=5)
    caps = (cap_at(space, cost, 0.3), cap_at(space, other, 0.35))
    found = climb(fitted_ridge(space), space, caps, seed=1)
    assert found.use[0] >= 0.97
    bound = (found.mean - found.std)[found.use >= 0.97]
    assert (np.diff(bound) <= 1e-6).all()


def test_a_predictor_that_likes_it_small_still_fills_the_cap():
    """Even where the predicted accuracy falls with every channel, the cap is used."""

    class Contrary(Known):
        def predict(self, policies):
            return -policies.sum(dim=-1), torch.zeros(len(policies))

    space, cost = chain(12)
    caps = (cap_at(space, cost, 0.3),)
    assert climb(Contrary(Truth.drawn(12, 0)), space, caps, starts=64, steps=20).use[0] >= 0.97


@pytest.mark.parametrize("seed", range(3))
def test_the_climb_finds_the_best_of_all_policies(seed):
    """On a space small enough to enumerate, though climbed, the best is found or all but."""
    space, cost = chain(5, seed, step=16, size=128)
    assert np.prod(space.levels) > 4096
    caps = (Cap(cost, 0.4 * dense_cost(space, cost)),)
    known = Known(Truth.drawn(5, seed))
    every = _every_policy(space)
    every = every[use_of(every, caps) <= 1]
    enough = every[use_of(every, caps) >= 0.97]
    best = float(Bound(known, space, 0.0)(enough).max())
    assert climb(known, space, caps, kappa=0.0).mean[0] >= best - 2e-3


def test_same_seed_same_candidates_and_no_global_randomness():
    """The climb is a function of its arguments, and the global generators are where they were."""
    space, cost = chain(10)
    caps = (cap_at(space, cost, 0.4),)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    one, other = (climb(fitted_ridge(space), space, caps, seed=4, starts=64) for _ in range(2))
    np.testing.assert_array_equal(one.policies, other.policies)
    assert random.getstate() == before[0] and np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_the_climb_is_no_worse_than_its_warm_starts():
    """What was measured best and uniform are polished too, so the answer is never predicted worse than they are."""
    space, cost = chain(10)
    caps = (cap_at(space, cost, 0.4),)
    known = Known(Truth.drawn(10, 3))
    warm = np.stack([space.high, uniform(space, caps)])
    found = climb(known, space, caps, starts=8, steps=5, warm=warm)
    assert found.mean[0] >= Bound(known, space, 0.0)(repair(warm, space, caps)).max()


def test_no_cap_is_an_error():
    """Without a cap there is nothing to climb under."""
    with pytest.raises(ValueError, match="0 caps"):
        climb(Known(Truth.drawn(1, 0)), Space(("a",), (8,), (1,)), ())
