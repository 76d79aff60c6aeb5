"""The covariance matrix adaptation evolution strategy."""

from __future__ import annotations

import numpy as np

from amc_search.baselines.extra import required
from amc_search.baselines.problem import Problem
from amc_search.baselines.projection import projected, random_projected, unmeasured
from amc_search.repair import Reals, uniform

# In kept fractions: best of 0.12, 0.2 and 0.3 on made-up worlds with 64 trials.
SIGMA = 0.12
# Generations in a row that cost no trial: the strategy has converged and starts again, elsewhere.
STALLED = 3


def cmaes(problem: Problem) -> None:
    """CMA-ES over kept fractions in [0, 1], from uniform ratios; samples are projected onto the caps and measured.

    The strategy is given the value of what its sample was projected onto (repair without a penalty), and restarts from
    a random policy once it proposes only what is known. Populations have the usual size, 4 + 3 log d.

    Source: Hansen, The CMA Evolution Strategy: A Tutorial, arXiv 1604.00772; Nomura and Shibata, cmaes, arXiv
    2402.01373.

    Raises:
        MissingExtra: `cmaes` is not installed.
    """
    library = required("cmaes", "cmaes")
    rng = np.random.default_rng([problem.seed, 5])
    mean = uniform(problem.space, problem.caps)
    problem.measure(mean)
    while problem.left:
        strategy = library.CMA(
            mean=_inside(mean / problem.space.high),
            sigma=SIGMA,
            bounds=np.tile([0.0, 1.0], (len(problem.space), 1)),
            seed=int(rng.integers(2**31)),
        )
        stalled = 0
        while stalled < STALLED and not strategy.should_stop():
            left = problem.left
            asked = [strategy.ask() for _ in range(strategy.population_size)]
            policies = projected(np.array(asked) * problem.space.high, problem)
            strategy.tell([(x, -problem.measure(policy)) for x, policy in zip(asked, policies, strict=True)])
            stalled = stalled + 1 if problem.left == left else 0
        fresh = unmeasured(problem, random_projected(problem, 1, rng)[0], rng)
        if fresh is None:
            return
        problem.measure(fresh)
        mean = fresh


def _inside(fractions: Reals) -> Reals:
    """Off the bounds, where every second sample would be drawn again."""
    inside: Reals = np.clip(fractions, 0.05, 0.95)
    return inside
