import numpy as np
import pytest
import torch

from amc_search import Cap, Learned, Parts, close, is_feasible, random_policies, use_of
from amc_search.ascent import _ascend_to_caps, _rounded_down
from amc_search.moves import Bound
from tests.search.test_additive import products_of
from tests.search.world import (
    Ridge,
    Truth,
    assert_lawful,
    cap_at,
    chain,
    dense_cost,
    every_other_removable,
    fitted_ridge,
)


class Bench:
    """A known truth that counts what is measured of it, and fails at will."""

    def __init__(self, seed=0, groups=8, fails=lambda policy: False):
        self.space, cost = chain(groups, seed, step=8)
        self.caps = (cap_at(self.space, products_of(cost), 0.3),)
        self.truth, self.fails = Truth.drawn(groups, seed), fails
        self.policies = random_policies(self.space, self.caps, 20, np.random.default_rng(seed))
        self.asked: list[bytes] = []
        self.learned = 0

    def learn(self):
        self.learned += 1
        labels = self.truth(self.policies, self.space)
        ridge = Ridge()
        ridge.fit(self.space.fractions(self.policies), torch.as_tensor(labels).float())
        return Learned(self.policies, labels, ridge)

    def measure(self, policies):
        for policy in policies:
            self.asked.append(policy.tobytes())
            if not self.fails(policy):
                self.policies = np.concatenate([self.policies, policy[None]])


@pytest.mark.parametrize("parts", [Parts(), Parts(barrier=False), Parts(polish=False)])
def test_the_last_labels_go_to_new_policies_under_the_caps(parts):
    """Whatever is switched off, as many as asked for are measured, none twice, and better than what was known."""
    bench = Bench()
    before = {policy.tobytes() for policy in bench.policies}
    best = bench.truth(bench.policies, bench.space).max()
    found = close(bench.space, bench.caps, 10, bench.learn, bench.measure, seed=0, parts=parts)
    assert len(bench.asked) == len(set(bench.asked)) == 10 and not before & set(bench.asked)
    assert bench.learned == 4
    assert_lawful(bench.policies, bench.space, bench.caps)
    assert_lawful(found.policies, bench.space, bench.caps)
    assert bench.truth(bench.policies, bench.space).max() > best


def test_what_cannot_be_measured_is_not_tried_again():
    """Policies that fail are asked for once."""
    bench = Bench(fails=lambda policy: True)
    close(bench.space, bench.caps, 6, bench.learn, bench.measure, seed=0)
    assert len(bench.asked) == len(set(bench.asked)) == 6


def test_one_label_is_one_round():
    """Less than a label a round makes fewer rounds."""
    bench = Bench()
    close(bench.space, bench.caps, 1, bench.learn, bench.measure, seed=0)
    assert bench.learned == len(bench.asked) == 1


def test_without_a_barrier_every_row_stops_under_the_caps():
    """The last point of a plain ascent, and what it is rounded down to, are under every cap."""
    space, cost = chain(10)
    space = every_other_removable(space)
    caps = (Cap(cost, 0.3 * dense_cost(space, cost)),)
    starts = random_policies(space, caps, 16, np.random.default_rng(0)) / space.high
    reached = _ascend_to_caps(starts, Bound(fitted_ridge(space), space, 1.0), caps, steps=60) * space.high
    assert (use_of(reached, caps) <= 1).all() and (reached != starts * space.high).any(axis=1).mean() > 0.5
    rounded = _rounded_down(reached, space, caps)
    assert is_feasible(rounded, caps).all() and space.is_legal(rounded).all() and len(rounded)
