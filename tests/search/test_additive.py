from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from amc_search import Cap, Space, random_policies, repair, utilisation
from amc_search.additive import certify, fit_additive
from amc_search.ascent import _every_policy
from amc_search.program import THOROUGHLY, NoProgram, maximise
from tests.search.world import Macs, Truth, assert_lawful, cap_at, chain


@dataclass(frozen=True)
class Polynomial:
    """Sum of products of up to three linear forms, as the exact costs of networks are."""

    channels: Tensor
    constant: Tensor
    terms: Tensor
    coefficients: Tensor
    unit: str = "MACs"

    def __call__(self, policies: Tensor) -> Tensor:
        kept = policies.to(torch.float64) @ self.channels.T + self.constant
        return (self.coefficients * kept[:, self.terms].prod(-1)).sum(-1)


@dataclass(frozen=True)
class Peak:
    """The largest of linear forms, as peak memory is."""

    channels: Tensor
    constant: Tensor
    unit: str = "bytes"

    def __call__(self, policies: Tensor) -> Tensor:
        return (policies.to(torch.float64) @ self.channels.T + self.constant).amax(-1)


def products_of(cost: Macs) -> Polynomial:
    layers = len(cost.inputs)
    terms = torch.arange(2 * layers).reshape(2, layers).T
    ones = torch.ones(2 * layers, dtype=torch.float64)
    return Polynomial(torch.cat([cost.inputs, cost.outputs]), ones, terms, ones[:layers])


@st.composite
def small_worlds(draw):
    """Up to 300 policies with removable groups under one to three caps of two kinds, all reachable, and a generator."""
    groups = draw(st.integers(1, 4))
    levels = [draw(st.integers(1, 4)) for _ in range(groups)]
    steps = [draw(st.sampled_from((1, 2, 8))) for _ in range(groups)]
    sizes = tuple(step * count for step, count in zip(steps, levels, strict=True))
    removable = tuple(draw(st.booleans()) for _ in range(groups))
    space = Space(tuple(f"g{i}" for i in range(groups)), sizes, tuple(steps), removable)
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    caps = []
    for kind in draw(st.lists(st.sampled_from(["products", "peak"]), min_size=1, max_size=3)):
        rows = int(rng.integers(1, 5))
        drawn = rng.integers(0, 5, (rows, groups)) * (rng.random((rows, groups)) < 0.7)
        forms, constant = (torch.as_tensor(x).double() for x in (drawn, rng.integers(0, 3, rows)))
        terms = torch.as_tensor(rng.integers(rows, size=(int(rng.integers(1, 5)), 3)))
        coefficients = torch.as_tensor(rng.integers(1, 4, len(terms))).double()
        cost = Peak(forms, constant) if kind == "peak" else Polynomial(forms, constant, terms, coefficients)
        caps.append(replace(cap_at(space, cost, rng.uniform()), limit=cap_at(space, cost, rng.uniform()).limit + 1e-3))
    return space, tuple(caps), rng


def score_of(policies, space, scores):
    levels = (policies - space.low) // space.step
    return sum(own[levels[:, group]] for group, own in enumerate(scores))


@settings(max_examples=30, deadline=None)
@given(world=small_worlds())
def test_the_program_finds_the_best_of_all_policies(world):
    """Under any caps of products and peaks the policy found has the highest score of all that are feasible."""
    space, caps, rng = world
    scores = tuple(rng.normal(size=count) for count in space.levels)
    every = _every_policy(space)
    best = score_of(every[utilisation(every, caps) <= 1], space, scores).max()
    found = maximise(space, caps, scores)
    assert_lawful(found.policy[None], space, caps)
    assert found.is_proven
    assert score_of(found.policy[None], space, scores)[0] == pytest.approx(best, abs=1e-5)
    assert found.bound == pytest.approx(best, abs=1e-3 * max(float(np.ptp(np.concatenate(scores))), 1e-9))


@settings(max_examples=20, deadline=None)
@given(world=small_worlds())
def test_binned_levels_still_bound_every_policy(world):
    """Seen in two bins a group, what is found is feasible and no policy's score exceeds the bound."""
    space, caps, rng = world
    scores = tuple(np.sort(rng.normal(size=count)) for count in space.levels)
    every = _every_policy(space)
    best = score_of(every[utilisation(every, caps) <= 1], space, scores).max()
    found = maximise(space, caps, scores, replace(THOROUGHLY, bins=2))
    assert_lawful(found.policy[None], space, caps)
    assert score_of(found.policy[None], space, scores)[0] <= best + 1e-9
    assert found.bound >= best - 1e-5


def test_a_cost_that_is_no_sum_of_products_is_refused():
    """A measured latency, say, cannot be written as a program."""
    space, cost = chain(3)
    with pytest.raises(NoProgram, match="but MACs is not"):
        maximise(space, (cap_at(space, cost, 0.5),), tuple(np.zeros(count) for count in space.levels))


def learned(seed, groups=8, count=64):
    """An additive truth of so many groups, policies under a cap, and the cap."""
    space, cost = chain(groups, seed, step=8)
    caps = (cap_at(space, products_of(cost), 0.35),)
    truth = Truth.drawn(groups, seed)
    policies = np.concatenate([random_policies(space, caps, count, np.random.default_rng(seed)), space.high[None]])
    return space, caps, truth, policies


@pytest.mark.parametrize("seed", range(3))
def test_the_certified_policy_is_all_but_the_best_of_an_additive_truth(seed):
    """From 64 values of an additive truth the optimum is proven, nearly as good as the true one, and the bound true."""
    space, caps, truth, policies = learned(seed)
    certificate = certify(space, caps, policies, truth(policies, space))
    assert certificate.is_proven and certificate.model.is_near and certificate.model.explained > 0.8
    assert_lawful(certificate.policy[None], space, caps)
    scores = tuple(
        truth(np.where(np.arange(len(space)) == g, c[:, None], space.high), space)
        for g, c in ((g, np.arange(1, n + 1) * space.step[g]) for g, n in enumerate(space.levels))
    )
    best = maximise(space, caps, scores).policy
    assert truth(certificate.policy, space) >= truth(best, space) - 0.01
    assert truth(certificate.policy, space) > truth(policies[:-1], space).max()
    assert certificate.gap(certificate.policy) == pytest.approx(0, abs=1e-4)
    assert min(map(certificate.gap, policies[:-1])) > 0


def test_no_policy_under_the_caps_beats_the_bound():
    """Every feasible policy's value by the model is at most the bound."""
    space, caps, truth, policies = learned(0)
    certificate = certify(space, caps, policies, truth(policies, space))
    drawn = random_policies(space, caps, 500, np.random.default_rng(1))
    near = repair(certificate.policy + np.random.default_rng(2).normal(0, 6, (500, len(space))), space, caps)
    assert max(map(certificate.model, np.concatenate([drawn, near]))) <= certificate.bound + 1e-6


def test_noise_is_told_from_an_additive_truth():
    """Values that have nothing to do with the policies are not near-additive; true ones are, dropped groups too."""
    space, caps, truth, policies = learned(1)
    noise = np.random.default_rng(0).uniform(0.4, 0.9, len(policies))
    assert not fit_additive(space, policies, noise).is_near
    space = replace(space, removable=(False, True) * 4)
    policies = np.concatenate([random_policies(space, caps, 80, np.random.default_rng(3)), space.high[None]])
    assert fit_additive(space, policies, truth(policies, space) - 0.05 * (policies == 0).sum(axis=1)).is_near


def test_the_curves_of_an_additive_model_rise():
    """A wider group is never worth less, and the step from its thinnest width on is worth less and less."""
    space, _, truth, policies = learned(2)
    for curve in fit_additive(space, policies, truth(policies, space)).curves:
        assert (np.diff(curve) >= -1e-9).all() and (np.diff(curve, 2) <= 1e-9).all()


def test_too_few_values_or_no_program_give_no_certificate():
    """A few values are no model, and a cost without products no program; neither is an error."""
    space, caps, truth, policies = learned(0)
    assert certify(space, caps, policies[:5], truth(policies[:5], space)) is None
    _, cost = chain(8, 0, step=8)
    assert certify(space, (Cap(cost, caps[0].limit),), policies, truth(policies, space)) is None
