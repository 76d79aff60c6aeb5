import numpy as np
import pytest

from amc.bench.search_methods.methods import ABLATIONS, METHODS
from amc_search.baselines.problem import Problem, run
from tests.search.test_additive import products_of
from tests.search.world import Truth, assert_lawful, cap_at, chain

TRIALS = 16


def searched(name: str) -> Problem:
    """A method's search of a small additive world."""
    space, cost = chain(6, 0, step=8)
    truth = Truth.drawn(6, 0)
    dense = float(truth(space.high, space))
    caps = (cap_at(space, products_of(cost), 0.3),)
    problem = Problem(space, caps, lambda p: float(truth(p, space)), trials=TRIALS, seed=1, dense_value=dense)
    return run(METHODS[name], problem)


@pytest.mark.parametrize("name", ["amc", *ABLATIONS])
def test_ours_spends_its_trials_on_legal_policies_and_beats_uniform_ratios(name: str) -> None:
    """Whatever is taken out, every trial is spent, the closing ones under the caps, and the best is above uniform's."""
    problem = searched(name)
    assert len(problem.policies) == TRIALS and problem.left == 0
    assert problem.space.is_legal(problem.policies).all()
    assert_lawful(problem.policies[-TRIALS // 8 :], problem.space, problem.caps)
    assert problem.best()[1] > searched("uniform").best()[1]


def test_sensitivity_is_paid_for_once_in_trials():
    """Who cuts groups alone has so many trials less; the method that does not has them all."""
    space, cost = chain(6, 0, step=8)
    truth, asked = Truth.drawn(6, 0), []

    def curves():
        asked.append(1)
        return [([0.1, 0.5], [0.3, 0.1])] * 6

    for name, trials in (("amc", TRIALS - 5), ("amc-no-sensitivity", TRIALS)):
        problem = Problem(
            space, (cap_at(space, products_of(cost), 0.3),), lambda p: float(truth(p, space)), trials=TRIALS, seed=1,
            curves=curves, price=5,
        )  # fmt: skip
        assert len(run(METHODS[name], problem).policies) == trials and problem.left == 0
    assert len(asked) == 1


def test_sensitivity_that_would_cost_every_trial_is_done_without():
    """A budget not above the price buys trials alone."""
    space, cost = chain(6, 0, step=8)
    caps = (cap_at(space, products_of(cost), 0.3),)
    problem = Problem(space, caps, lambda p: 0.5, trials=5, seed=1, curves=lambda: [], price=5)
    assert problem.sensitivity_curves() is None and problem.left == 5


def test_a_search_is_determined_by_seed_and_objective() -> None:
    """The same problem is searched the same way twice, so that a stored comparison can be replayed."""
    one, other = searched("amc"), searched("amc")
    np.testing.assert_array_equal(one.policies, other.policies)


def test_every_method_says_where_it_comes_from() -> None:
    """A method's docstring, or that of what it is made of, names its source."""
    for method in METHODS.values():
        doc = getattr(method, "func", method).__doc__
        assert doc and "Source:" in doc
