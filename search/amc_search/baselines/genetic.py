"""Plain evolution on measured values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from amc_search.baselines.problem import Problem
from amc_search.baselines.projection import first_policies, projected, unmeasured
from amc_search.evolution import Individual, counts_of, seeded, variation

# An eighth of the trials and at most this many: small, as trials are few.
POPULATION = 32


def evolution(problem: Problem) -> None:
    """A steady-state (mu + 1) evolution on DEAP, every child projected onto the cap and then measured.

    Two parents, each the better of two drawn; uniform crossover; a log-normal factor on some groups; the worst of
    population and child leaves. One child at a time learns more from 64 trials than generations do. The operators are
    those of `amc_search.evolution`.

    Source: Fortin et al., DEAP, JMLR 13, 2012; the constraint by repair as in MetaPruning (arXiv 1903.10258) and
    Once-for-All (arXiv 1908.09791), which draw again instead.
    """
    rng = np.random.default_rng([problem.seed, 2])
    toolbox = variation(problem.space)
    size = max(4, min(POPULATION, problem.trials // 8))
    first = (unmeasured(problem, policy, rng) for policy in first_policies(problem, size, rng))
    with seeded(rng):
        population = [_measured(policy, problem) for policy in first if policy is not None]
        while problem.left:
            child, _ = toolbox.mate(*map(toolbox.clone, toolbox.choose(population, 2)))
            toolbox.mutate(child)
            policy = unmeasured(problem, projected(counts_of([child]), problem)[0], rng)
            if policy is None:
                return
            population = toolbox.select([*population, _measured(policy, problem)], size)


def _measured(policy: NDArray[np.int64], problem: Problem) -> Individual:
    individual = Individual.of(policy)
    individual.fitness.values = (problem.measure(policy),)
    return individual
