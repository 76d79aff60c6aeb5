import numpy as np
import pytest

from amc_search import Cap
from amc_search.baselines.problem import Problem, Spent, run
from amc_search.repair import CapUnreachable, uniform
from tests.search.world import Truth, cap_at, chain, every_other_removable


def problem_of(groups=6, trials=40, seed=0, share=0.35, removable=False, **options):
    space, cost = chain(groups)
    space = every_other_removable(space) if removable else space
    truth = Truth.drawn(groups, 0)
    value = options.pop("value", lambda policy: float(truth(policy[None], space)[0]))
    return Problem(space, (cap_at(space, cost, share),), value, trials=trials, seed=seed, **options)


def test_a_policy_is_measured_once_and_then_free():
    """Asking again for a known policy costs no value, and no call of the value function."""
    calls = []
    problem = problem_of(trials=1, value=lambda policy: calls.append(policy) or 0.5)
    assert problem.measure(problem.space.low) == problem.measure(problem.space.low.copy()) == 0.5
    assert len(calls) == 1 and problem.left == 0
    assert problem.is_known(problem.space.low) and not problem.is_known(problem.space.high)


def test_no_value_beyond_the_budget_is_given():
    """The value after the last raises Spent, and what was measured stays as it was."""
    problem = problem_of(trials=2)
    first, second = problem.space.low, problem.space.low + problem.space.step
    problem.measure(first)
    problem.measure(second)
    with pytest.raises(Spent):
        problem.measure(problem.space.high)
    assert problem.left == 0
    assert np.array_equal(problem.policies, [first, second]) and problem.values.shape == (2,)


def test_the_dense_value_is_known_for_nothing():
    """The dense network's value costs none and is not among the measured ones."""
    problem = problem_of(trials=1, dense_value=0.9)
    assert problem.measure(problem.space.high) == 0.9
    assert problem.left == 1 and len(problem.policies) == 0
    assert problem_of(trials=1).measure(problem.space.high) != 0.9


@pytest.mark.parametrize("change", [1, -1, 10**6])
def test_an_illegal_policy_is_refused(change):
    """A policy off its grid or outside its range is not measured, and costs nothing."""
    problem = problem_of()
    with pytest.raises(ValueError, match="legal"):
        problem.measure(problem.space.low + change)
    with pytest.raises(ValueError, match="legal"):
        problem.measure(problem.space.low[:-1])
    assert problem.left == problem.trials


def test_the_best_is_the_highest_value_under_all_caps():
    """Policies over a cap may be measured, but are never the best."""
    problem = problem_of(trials=3)
    problem.measure(problem.space.high)
    with pytest.raises(ValueError, match="under all caps"):
        problem.best()
    under = uniform(problem.space, problem.caps)
    problem.measure(problem.space.low)
    problem.measure(under)
    policy, value = problem.best()
    assert np.array_equal(policy, under) and value == problem.measure(under) < problem.values[0]


def test_what_is_handed_out_cannot_change_what_was_measured():
    """Policies given to the value function, or read off the problem, are copies."""
    problem = problem_of(value=lambda policy: float(policy.fill(0) or 0.5))
    problem.measure(problem.space.low)
    problem.policies[:] = 0
    problem.best()[0][:] = 0
    assert np.array_equal(problem.policies, problem.space.low[None])


def test_values_must_be_numbers():
    """NaN is refused, and the trial is not spent."""
    problem = problem_of(value=lambda policy: float("nan"))
    with pytest.raises(ValueError, match="finite"):
        problem.measure(problem.space.low)
    assert problem.left == problem.trials


def test_a_problem_needs_a_reachable_cap_and_a_trial():
    """No cap, no trial or a cap below the smallest policy is refused."""
    space, cost = chain(3)
    for caps, trials in (((), 1), ((cap_at(space, cost, 0.5),), 0)):
        with pytest.raises(ValueError, match="at least one"):
            Problem(space, caps, lambda policy: 0.5, trials=trials, seed=0)
    with pytest.raises(CapUnreachable):
        Problem(space, (Cap(cost, 1.0),), lambda policy: 0.5, trials=1, seed=0)


def test_run_ends_where_the_values_do():
    """A method that never stops is stopped by the budget; its problem comes back."""

    def endless(problem):
        rng = np.random.default_rng(problem.seed)
        while True:
            problem.measure(problem.space.nearest(rng.random(len(problem.space)) * problem.space.high))

    problem = problem_of(trials=5)
    assert run(endless, problem) is problem and problem.left == 0
