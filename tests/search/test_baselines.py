import random

import numpy as np
import pytest
import torch

from amc_search import Cap, Space, is_feasible
from amc_search.baselines import METHODS
from amc_search.baselines.extra import MissingExtra, required
from amc_search.baselines.problem import Problem, run
from amc_search.baselines.projection import projected, random_projected, unmeasured
from amc_search.baselines.seernet import _most_uncertain, _uncertainty, seernet
from amc_search.repair import uniform, utilisation
from tests.search.world import Macs, Ridge, Truth, cap_at, chain, every_other_removable

LIBRARIES = {"gp-cei": "botorch", "cmaes": "cmaes"}


def method_of(name):
    if name in LIBRARIES:
        pytest.importorskip(LIBRARIES[name])
    return METHODS[name] if name in METHODS else lambda problem: seernet(problem, lambda: Ridge(members=2))


def problem_of(groups=6, trials=24, seed=0, share=0.35, removable=False, step=4):
    space, cost = chain(groups, step=step)
    space = every_other_removable(space) if removable else space
    truth = Truth.drawn(groups, 0)
    value = lambda policy: float(truth(policy[None], space)[0])  # noqa: E731
    return Problem(space, (cap_at(space, cost, share),), value, trials=trials, seed=seed)


every_method = pytest.mark.parametrize("name", [*METHODS, "seernet"])
on_the_caps = pytest.mark.parametrize("name", METHODS)
searching = pytest.mark.parametrize("name", [name for name in (*METHODS, "seernet") if name != "uniform"])
# Fitting a Gaussian process takes a good part of a second a trial.
TRIALS = {"gp-cei": 10}


@searching
@pytest.mark.parametrize("trials", [6, 15])
def test_a_method_spends_its_values_and_no_more(name, trials):
    """The budget is used up, and never passed."""
    problem = run(method_of(name), problem_of(trials=trials))
    assert len(problem.values) == trials and problem.left == 0


@on_the_caps
@pytest.mark.parametrize("removable", [False, True])
def test_no_value_is_spent_over_a_cap(name, removable):
    """Costs are known before a policy is measured: whatever a baseline measures is legal and under every cap."""
    problem = problem_of(removable=removable, trials=TRIALS.get(name, 24))
    problem.caps = (*problem.caps, Cap(Macs(torch.zeros(1, 6).double(), torch.ones(1, 6).double(), "channels"), 150))
    run(method_of(name), problem)
    assert problem.space.is_legal(problem.policies).all()
    assert is_feasible(problem.policies, problem.caps).all()
    if removable and name in ("random", "evolution", "greedy"):
        assert (problem.policies == 0).any()


@searching
def test_the_same_seed_gives_the_same_search(name):
    """A search is a function of seed and trials, whatever the global generators are at; another seed is another one."""
    method = method_of(name)
    trials = TRIALS.get(name, 20)
    first = run(method, problem_of(trials=trials))
    np.random.seed(7)
    torch.manual_seed(7)
    random.seed(7)
    state = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    again = run(method, problem_of(trials=trials))
    assert np.array_equal(first.policies, again.policies)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(state[0], after[0]) and state[1:] == after[1:]
    if name != "greedy":  # chance plays no part in it
        assert not np.array_equal(first.policies, run(method, problem_of(trials=trials, seed=1)).policies)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "gp-cei" else name for name in METHODS]
)
def test_forty_values_are_no_worse_than_equal_ratios(name):
    """Every baseline knows the uniform policy, and all but it improve on it where groups differ."""
    problem = run(method_of(name), problem_of(groups=8, trials=40))
    same = problem.measure(uniform(problem.space, problem.caps))
    assert problem.best()[1] > same if name != "uniform" else problem.best()[1] == same


@every_method
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_small_space_is_exhausted_and_the_search_ends(name, share):
    """Where fewer policies are left than trials, a method comes to its end instead of asking for ever."""
    space = Space(("a", "b", "c"), (4, 2, 8), (4, 1, 4), (False, False, True))
    cost = Macs(torch.zeros(1, 3).double(), torch.ones(1, 3).double())
    problem = Problem(space, (cap_at(space, cost, share),), lambda policy: policy.sum() / 14, trials=16, seed=0)
    run(method_of(name), problem)
    assert 1 <= len(problem.values) <= 12
    assert problem.space.is_legal(problem.policies).all()


@every_method
def test_equal_values_stop_no_method(name):
    """Where every policy is as good as any other there is nothing to learn, and nothing breaks."""
    problem = problem_of(trials=TRIALS.get(name, 20))
    problem._value = lambda policy: 0.1
    assert run(method_of(name), problem).best()[1] == 0.1


@pytest.mark.parametrize("groups", [12, 60])
def test_greedy_keeps_values_for_exchanges(groups):
    """With more groups than half of the trials, groups share a score, and the rest spends the cap."""
    problem = run(METHODS["greedy"], problem_of(groups=groups, trials=64))
    assert (utilisation(problem.policies, problem.caps) > 0.95).sum() >= 20
    assert problem.best()[1] > problem.values[0]


def test_landing_reaches_the_cap_from_either_side():
    """Scaled up or down, a policy ends under the cap with no room for a whole scale; drops stay drops."""
    problem = problem_of(removable=True)
    counts = np.concatenate([0.1 * problem.space.high[None], 3.0 * problem.space.high[None], problem.space.low[None]])
    policies = projected(counts, problem)
    assert is_feasible(policies, problem.caps).all()
    assert np.array_equal(policies[2] == 0, problem.space.low == 0)
    cost = problem.caps[0].cost(torch.as_tensor(policies[:2]).double()) / problem.caps[0].limit
    assert (cost > 0.93).all()


def test_a_known_policy_is_replaced_by_a_new_one_nearby():
    """It is feasible and was not measured before; an unknown one stays."""
    problem = problem_of(trials=400, groups=3)
    rng = np.random.default_rng(0)
    policy = random_projected(problem, 1, rng)[0]
    assert np.array_equal(unmeasured(problem, policy, rng), policy)
    for _ in range(20):
        new = unmeasured(problem, policy, rng)
        assert not problem.is_known(new) and is_feasible(new[None], problem.caps)[0]
        problem.measure(new)


def test_seernets_uncertainty_is_the_change_over_neighbours_that_prune_less():
    """By hand on two groups: levels 1 and 0 have one neighbour, level (2, 1) has two."""

    class Sum:
        def predict(self, pruned):
            return pruned[:, 0] + 2 * pruned[:, 1], torch.zeros(len(pruned))

    levels = np.array([[1, 0], [2, 1], [0, 0]])
    assert _uncertainty(Sum(), levels) == pytest.approx([0.0625, (0.0625 + 0.25) / 2, 0.0])
    found = _most_uncertain(Sum(), 2, np.random.default_rng(0))
    assert set(map(tuple, found[:2])) == {(0, 1), (0, 2)}


def test_seernets_random_policies_are_on_its_grid():
    """Three quarters of its trials are drawn without a look at the caps."""
    problem = run(method_of("seernet"), problem_of(trials=64, share=0.1))
    drawn = problem.policies[:47]
    nearest = problem.space.nearest(np.array([0.25, 0.5, 0.75])[:, None] * problem.space.high)
    assert (drawn[:, None, :] == nearest).any(axis=1).all()
    assert not is_feasible(drawn, problem.caps).all()


def test_a_missing_library_is_one_line_with_the_mend():
    """Without the extra, a baseline says what to install."""
    with pytest.raises(MissingExtra, match=r"gp-cei needs the library nowhere.*pip install 'amc-compress\[bench\]'"):
        required("nowhere.models", "gp-cei")
