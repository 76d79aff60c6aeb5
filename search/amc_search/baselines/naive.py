"""The two methods that need no idea: equal ratios, and chance."""

from __future__ import annotations

import numpy as np

from amc_search.baselines.problem import Problem
from amc_search.baselines.projection import random_stream
from amc_search.repair import uniform as uniform_policy


def uniform(problem: Problem) -> None:
    """One policy: the same ratio for every group, the largest under all caps.

    Source: the baseline of every paper of the field, as `amc_search.repair.uniform` rounds it in its favour.
    """
    problem.measure(uniform_policy(problem.space, problem.caps))


def random(problem: Problem) -> None:
    """Uniform ratios, then random policies on the cap, all different.

    Source: Bergstra and Bengio, Random Search for Hyper-Parameter Optimization, JMLR 13, 2012; Li et al., Revisiting
    Random Channel Pruning, arXiv 2205.05676, found it on a par with most criteria.
    """
    rng = np.random.default_rng([problem.seed, 1])
    uniform(problem)
    for policy in random_stream(problem, rng):
        problem.measure(policy)
