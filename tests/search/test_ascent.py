import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amc_search import Bound, Cap, Space, ascend, exchange, fill, repair, uniform, utilisation
from amc_search.ascent import _every_policy, _ranked
from tests.search.world import (
    Truth,
    assert_lawful,
    cap_at,
    chain,
    dense_cost,
    every_other_removable,
    fitted_ridge,
    worlds,
)


class Known:
    """A predictor that is right; `jump` (d,) is what dropping each group changes beyond the loss of its channels."""

    def __init__(self, truth, jump=0.0):
        self.jump = torch.as_tensor(jump).float()
        self.weight, self.pace = (torch.as_tensor(x).float() for x in (truth.weight, truth.pace))

    def fit(self, policies, accuracy):
        raise AssertionError("the ascent must not fit")

    def predict(self, policies):
        kept = (1 - torch.exp(-self.pace * policies)) / (1 - torch.exp(-self.pace))
        kept = self.weight * kept + self.jump * (policies <= 0)
        return 0.45 + kept.sum(dim=-1), torch.zeros(len(policies))


@settings(max_examples=25, deadline=None)
@given(world=worlds(), seed=st.integers(0, 1000))
def test_optimised_policies_are_legal_and_under_every_cap(world, seed):
    """One to top distinct lawful candidates, the best using 97 % of a cap if any does, or dropping something."""
    space, caps = world
    found = ascend(fitted_ridge(space, seed), space, caps, starts=32, steps=15, seed=seed, top=5)
    assert 1 <= len(found) <= 5
    assert_lawful(found.policies, space, caps)
    assert len(np.unique(found.policies, axis=0)) == len(found)
    np.testing.assert_allclose(found.utilisation, utilisation(found.policies, caps))
    assert found.utilisation[0] >= 0.97 or found.utilisation.max() < 0.97 or (found.policies[0] == 0).any()


@settings(max_examples=40, deadline=None)
@given(world=worlds(), seed=st.integers(0, 1000))
def test_fill_leaves_no_single_step_that_fits(world, seed):
    """After fill, one more step of any kept group breaks a cap, of a dropped one too or gains nothing; none shrank."""
    space, caps = world
    bound = Bound(fitted_ridge(space), space, 1.0)
    rng = np.random.default_rng(seed)
    drawn = rng.uniform(0, 1, (4, len(space))) * (rng.random((4, len(space))) < 0.8)
    before = repair(drawn * space.high, space, caps)
    after = fill(before, bound, caps)
    assert_lawful(after, space, caps)
    assert (after >= before).all()
    for policy in after:
        more = policy + np.diag(space.step)
        more = more[space.is_legal(more) & (policy > 0)]
        assert (utilisation(more, caps) > 1).all()
        back = policy + np.diag(space.step)[policy == 0]
        back = back[utilisation(back, caps) <= 1]
        assert (bound(back) <= bound(policy[None]) + 2e-6).all()


@settings(max_examples=40, deadline=None)
@given(world=worlds(), seed=st.integers(0, 1000))
def test_exchange_never_lowers_the_predicted_bound(world, seed):
    """Every exchange is lawful and at least as good as what came in."""
    space, caps = world
    bound = Bound(fitted_ridge(space, seed), space, 1.0)
    before = repair(np.random.default_rng(seed).uniform(0, 1, (4, len(space))) * space.high, space, caps)
    after = exchange(before, bound, caps, rng=np.random.default_rng(seed), keep_utilisation=0.9)
    assert_lawful(after, space, caps)
    assert (bound(after) >= bound(before) - 1e-6).all()
    if not space.may_drop.any():  # a drop may leave a cap unused, and what was dropped may have come back
        assert (utilisation(after, caps) >= np.minimum(utilisation(before, caps), 0.9)).all()


@pytest.mark.parametrize("groups", [8, 30])
def test_the_best_candidate_uses_the_cap(groups):
    """With a fine grid at least 97 % of the tightest of two caps is used, and candidates come best first."""
    space, cost = chain(groups)
    _, other = chain(groups, seed=5)
    caps = (cap_at(space, cost, 0.3), cap_at(space, other, 0.35))
    found = ascend(fitted_ridge(space), space, caps, seed=1)
    assert found.utilisation[0] >= 0.97
    bound = (found.mean - found.std)[found.utilisation >= 0.97]
    assert (np.diff(bound) <= 1e-6).all()


def test_a_predictor_that_likes_it_small_still_fills_the_cap():
    """Even where the predicted accuracy falls with every channel, the cap is used."""

    class Contrary(Known):
        def predict(self, policies):
            return -policies.sum(dim=-1), torch.zeros(len(policies))

    space, cost = chain(12)
    caps = (cap_at(space, cost, 0.3),)
    assert ascend(Contrary(Truth.drawn(12, 0)), space, caps, starts=64, steps=20).utilisation[0] >= 0.97


@pytest.mark.parametrize("seed", range(3))
def test_the_ascent_finds_the_best_of_all_policies(seed):
    """On a space small enough to enumerate, though optimised, the best is found or all but."""
    space, cost = chain(5, seed, step=16, size=128)
    assert np.prod(space.levels) > 4096
    caps = (Cap(cost, 0.4 * dense_cost(space, cost)),)
    known = Known(Truth.drawn(5, seed))
    every = _every_policy(space)
    every = every[utilisation(every, caps) <= 1]
    enough = every[utilisation(every, caps) >= 0.97]
    best = float(Bound(known, space, 0.0)(enough).max())
    assert ascend(known, space, caps, kappa=0.0).mean[0] >= best - 2e-3


@pytest.mark.parametrize("seed", range(3))
def test_the_ascent_finds_the_best_of_all_policies_with_some_dropped(seed):
    """Where dropping two of four removable groups helps and the others' hurts, the best of all policies is found."""
    space, cost = chain(5, seed, step=16, size=128)
    space = replace(space, removable=(False, True, True, True, True))
    caps = (Cap(cost, 0.4 * dense_cost(space, cost)),)
    known = Known(Truth.drawn(5, seed), jump=0.1 * np.random.default_rng(seed).permuted([0, 1, 1, -1, -1]))
    every = _every_policy(space)
    assert len(every) == np.prod(space.levels) > 4096 and space.is_legal(every).all()
    best = _ranked(every[utilisation(every, caps) <= 1], Bound(known, space, 0.0), caps, top=1).mean[0]
    assert ascend(known, space, caps, kappa=0.0).mean[0] >= best - 2e-3


@pytest.mark.parametrize("seed", range(3))
def test_the_ascent_drops_just_what_is_better_dropped(seed):
    """Of fifteen removable groups it drops those whose drop helps, whatever their channels do, and no other."""
    space, cost = chain(30, seed)
    space = every_other_removable(space)
    caps = (Cap(cost, 0.3 * dense_cost(space, cost)),)
    truth = Truth.drawn(30, seed)
    better = space.may_drop & (np.random.default_rng(seed).random(30) < 0.4)
    jump = np.where(better, truth.weight + 0.03, -0.03)
    found = ascend(Known(truth, jump), space, caps, kappa=0.0, seed=seed)
    np.testing.assert_array_equal(found.policies[0] == 0, better)
    assert found.utilisation[0] >= 0.97


def test_a_policy_better_for_what_it_drops_need_not_use_the_cap():
    """Under a cap that all but nothing exceeds, where dropping one group is best, it is dropped and the rest full."""
    space, cost = chain(12)
    space = every_other_removable(space)
    caps = (Cap(cost, dense_cost(space, cost)),)
    found = ascend(Known(Truth.drawn(12, 0), jump=np.where(np.arange(12) == 5, 0.6, -0.6)), space, caps, kappa=0.0)
    np.testing.assert_array_equal(found.policies[0], np.where(np.arange(12) == 5, 0, space.high))


def test_an_ascent_that_may_drop_what_it_should_not_is_no_worse():
    """Where dropping any group is a disaster, the answer is as good as where none may be dropped."""
    space, cost = chain(20)
    caps = (Cap(cost, 0.3 * dense_cost(space, cost)),)
    known = Known(Truth.drawn(20, 0), jump=-0.3)
    may, may_not = (ascend(known, s, caps, kappa=0.0) for s in (every_other_removable(space), space))
    assert (may.policies[0] > 0).all()
    assert may.mean[0] >= may_not.mean[0] - 1e-3


def test_same_seed_same_candidates_and_no_global_randomness():
    """The ascent is a function of its arguments, and the global generators are where they were."""
    space, cost = chain(10)
    caps = (cap_at(space, cost, 0.4),)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    one, other = (ascend(fitted_ridge(space), space, caps, seed=4, starts=64) for _ in range(2))
    np.testing.assert_array_equal(one.policies, other.policies)
    assert random.getstate() == before[0] and np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_the_ascent_is_no_worse_than_its_warm_starts():
    """What was measured best and uniform are polished too, so the answer is never predicted worse than they are."""
    space, cost = chain(10)
    caps = (cap_at(space, cost, 0.4),)
    known = Known(Truth.drawn(10, 3))
    warm = np.stack([space.high, uniform(space, caps)])
    found = ascend(known, space, caps, starts=8, steps=5, warm=warm)
    assert found.mean[0] >= Bound(known, space, 0.0)(repair(warm, space, caps)).max()


def test_no_cap_is_an_error():
    """Without a cap there is nothing to ascent under."""
    with pytest.raises(ValueError, match="0 caps"):
        ascend(Known(Truth.drawn(1, 0)), Space(("a",), (8,), (1,)), ())
