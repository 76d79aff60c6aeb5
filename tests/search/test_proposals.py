import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amc_search import SHARES, Space, propose, propose_by_function, repair, utilisation
from amc_search.acquisition import FOLDS_A_UNIT, FUNCTIONS, Knowledge, improvement, predict, quotas, seernet
from amc_search.evolution import evolve
from amc_search.proposals import unseen
from tests.search.world import Macs, assert_lawful, cap_at, chain, every_other_removable, fitted_ridge, worlds


def measured(space, caps, count, seed=0):
    rng = np.random.default_rng(seed)
    policies = repair(rng.uniform(0.1, 1, (count, len(space))) * space.high, space, caps)
    return policies, rng.uniform(0.5, 0.9, count)


@settings(max_examples=15, deadline=None)
@given(world=worlds(), seed=st.integers(0, 1000), proposer=st.sampled_from([*FUNCTIONS, "random"]))
def test_proposals_are_lawful_and_new_whatever_the_acquisition(world, seed, proposer):
    """Legal, under every cap, distinct, neither measured nor pending."""
    space, caps = world
    known, accuracy = measured(space, caps, 8, seed)
    found = propose(
        space,
        caps,
        known[:5],
        accuracy[:5],
        known[5:],
        predictor=fitted_ridge(space),
        count=4,
        shares={proposer: 1},
        seed=seed,
    )
    assert_lawful(found, space, caps)
    keys = {policy.tobytes() for policy in found}
    assert len(keys) == len(found) <= 4
    assert not keys & {policy.tobytes() for policy in known}


def test_fewer_are_proposed_only_where_the_feasible_policies_are_exhausted():
    """In a space of nine policies under a cap that allows six, all six are found and no more."""
    space = Space(("a", "b"), (3, 3), (1, 1))
    cost = Macs(*(torch.eye(2, dtype=torch.float64) for _ in range(2)))
    every = np.array([(a, b) for a in (1, 2, 3) for b in (1, 2, 3)])
    caps = (cap_at(space, cost, 0.55),)
    feasible = int((utilisation(every, caps) <= 1).sum())
    none = every[:0]
    found = propose(space, caps, none, np.zeros(0), none, predictor=None, count=20)
    assert len(found) == feasible == len(np.unique(found, axis=0))
    known = found[: feasible - 1]
    assert list(map(tuple, unseen(space, caps, {p.tobytes() for p in known}, 5))) == [tuple(found[-1])]


def test_every_acquisition_gets_its_share_near_the_cap():
    """A batch holds each acquisition function's quota, and nearly all of it costs 0.8 to 1 times the tightest cap."""
    space, cost = chain(12)
    caps = (cap_at(space, cost, 0.3),)
    known, accuracy = measured(space, caps, 20)
    chosen = propose_by_function(space, caps, known, accuracy, known[:0], predictor=fitted_ridge(space), count=20)
    assert sum(map(len, chosen.values())) == 20
    assert all(abs(len(policies) - 20 * SHARES[proposer]) < 2 for proposer, policies in chosen.items())
    assert (utilisation(np.concatenate(list(chosen.values())), caps) > 0.8).mean() > 0.9


@pytest.mark.parametrize("groups", [6, pytest.param(30, marks=pytest.mark.slow)])
def test_many_groups_are_evolved_for_as_long_as_they_need(groups, monkeypatch):
    """With few groups or many, an evolution gains at least nine tenths of what a very long one does."""
    space = every_other_removable(chain(groups)[0])
    caps = (cap_at(space, chain(groups)[1], 0.3),)
    known, _ = measured(space, caps, 16)
    ridge = fitted_ridge(space)

    def score(policies):
        return predict(ridge, space, policies)[0]

    def best():
        return evolve(space, caps, score, known, np.random.default_rng(0))[1].max()

    usual, start = best(), score(known).max()
    monkeypatch.setattr("amc_search.evolution.FEWEST", 400)
    monkeypatch.setattr("amc_search.evolution.MOST", 400)
    assert usual - start > 0.9 * (best() - start) > 0


@pytest.mark.parametrize("proposer", ["improvement", "posterior_mean", "posterior_std", "distance", "seernet"])
def test_an_acquisition_proposes_what_scores_higher_than_random(proposer):
    """Evolution raises the score that it evolves for."""
    space, cost = chain(12)
    caps = (cap_at(space, cost, 0.3),)
    known, accuracy = measured(space, caps, 20)
    ridge = fitted_ridge(space)
    spread = np.median(accuracy.max() - accuracy)
    knowledge = Knowledge(space, caps, ridge, known, best=accuracy.max(), incumbent=0.5, spread=spread)
    evolved, drawn = (
        propose(space, caps, known, accuracy, known[:0], predictor=ridge, shares={name: 1}, seed=2)
        for name in (proposer, "random")
    )
    assert FUNCTIONS[proposer](evolved, knowledge).mean() > FUNCTIONS[proposer](drawn, knowledge).mean()


def test_improvement_is_the_expected_gain_over_the_incumbent():
    """Against draws from the predicted normals, on a logarithmic scale, and finite however hopeless a policy is."""

    class Told:
        def predict(self, policies):
            return policies[:, 0].double(), policies[:, 1].double()

    space = Space(("mean", "std"), (1000, 1000), (1, 1))
    policies = np.array([[500, 100], [600, 50], [400, 100], [300, 10], [10, 1]])
    knowledge = Knowledge(space, (), Told(), policies, best=0.0, incumbent=0.5, spread=1.0)
    scores = improvement(policies, knowledge)
    draws = np.random.default_rng(0).normal(size=400_000)
    for (mean, std), score in list(zip(policies / 1000, scores, strict=True))[:3]:
        gain = np.maximum(mean + std * draws - 0.5, 0).mean()
        assert FOLDS_A_UNIT * score == pytest.approx(np.log(gain), abs=0.02)
    assert np.isfinite(scores).all() and (np.diff(scores[[1, 0, 2, 3, 4]]) < 0).all()


def test_proposals_keep_away_from_what_is_being_measured():
    """On a fine grid the next proposal is farther from a pending policy than from a measured one."""
    space = Space(("a", "b", "c"), (300, 300, 300), (1, 1, 1))
    caps = (cap_at(space, Macs(*(torch.eye(3, dtype=torch.float64) for _ in range(2))), 0.5),)
    known, accuracy = measured(space, caps, 20)
    ridge = fitted_ridge(space)

    def propose_one(policies, values, pending):
        return propose(
            space, caps, policies, values, pending, predictor=ridge, shares={"posterior_mean": 1}, count=1, seed=2
        )

    first = propose_one(known, accuracy, known[:0])
    beside = propose_one(np.concatenate([known, first]), np.append(accuracy, 0.5), known[:0])
    away = propose_one(known, accuracy, first)
    apart = [np.linalg.norm(space.log_fractions(policy) - space.log_fractions(first)) for policy in (beside, away)]
    assert apart[1] > apart[0]


def test_evolution_finds_what_is_better_dropped():
    """Where every group that may be dropped is predicted to do harm, most proposals drop more than random ones do."""

    class Burdened:
        def fit(self, policies, accuracy):
            raise AssertionError("proposals must not fit")

        def predict(self, policies):
            burden = (policies[:, 1::2] > 0).float().mean(dim=1)
            return 0.8 + 0.1 * policies.mean(dim=1) - 0.2 * burden, torch.full((len(policies),), 0.01)

    space, cost = chain(12)
    space = every_other_removable(space)
    caps = (cap_at(space, cost, 0.3),)
    known, accuracy = measured(space, caps, 20)
    found, drawn = (
        propose(space, caps, known, accuracy, known[:0], predictor=Burdened(), shares={name: 1}, seed=2)
        for name in ("posterior_mean", "random")
    )
    assert_lawful(found, space, caps)
    assert (found == 0).sum(axis=1).mean() >= 4 > (drawn == 0).sum(axis=1).mean()


def test_the_papers_score_is_the_mean_squared_change_one_level_less_pruned():
    """Against the definition, written as a loop."""
    space, cost = chain(4)
    ridge = fitted_ridge(space)
    space = every_other_removable(space)
    policies = np.stack([space.high, space.low, space.step, np.where(np.arange(4) < 2, space.low, space.high)])
    caps = (cap_at(space, cost, 1),)
    knowledge = Knowledge(space, caps, ridge, policies, best=1.0, incumbent=1.0, spread=1.0)

    def predicted(policy):
        return float(ridge.predict(space.fractions(policy[None]))[0][0])

    for policy, score in zip(policies, seernet(policies, knowledge), strict=True):
        changes = []
        for group in np.flatnonzero(policy < space.high):
            above = policy.copy()
            above[group] += space.step[group]
            changes.append((predicted(above) - predicted(policy)) ** 2)
        assert score == pytest.approx(np.mean(changes) if changes else 0.0, rel=1e-3, abs=1e-12)


def test_same_seed_same_proposals_and_no_global_randomness():
    """Proposals are a function of their arguments, and the global generators are where they were."""
    space, cost = chain(8)
    caps = (cap_at(space, cost, 0.3),)
    known, accuracy = measured(space, caps, 12)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    one, other, third = (
        propose(space, caps, known, accuracy, known[:0], predictor=fitted_ridge(space), seed=seed) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, other)
    assert (one != third).any()
    assert random.getstate() == before[0] and np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize(
    "shares", [{"luck": 1.0}, {"posterior_mean": -1.0, "random": 2.0}, {"posterior_mean": 0.0}, {}]
)
def test_shares_must_be_shares(shares):
    """Unknown acquisition functions and impossible shares are refused."""
    with pytest.raises(ValueError, match="acquisition functions"):
        quotas(shares, 8)
