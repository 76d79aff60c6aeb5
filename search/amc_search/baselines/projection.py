"""From what a method proposes to what it measures: on the cap, and not measured before.

Accuracy rarely falls when a policy grows, so the best policies lie on the caps. A baseline that spends trials over
a cap, or far below it, loses to its own user's common sense. So whatever it proposes is scaled uniformly, up
or down, until its exact cost is as near below the tightest cap as the grid allows, and only then measured: no trial is
spent on the infeasible, and the dimension that the caps decide is not searched.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from amc_search.baselines.problem import Problem
from amc_search.design import at_costs, random_policies
from amc_search.proposals import unseen
from amc_search.repair import Reals, repair, uniform
from amc_search.space import Policies

# How often a known policy is shaken, with growing strength, before the neighbourhood is searched through instead.
SHAKES = 12


def projected(counts: Reals | Policies, problem: Problem) -> Policies:
    """Keep-counts (b, d), any reals -> legal policies just under the tightest cap; under half a step is a drop."""
    space = problem.space
    inside = np.clip(np.asarray(counts, dtype=np.float64), 0, space.high)
    # Scaled up, nothing may fade: what cannot be dropped keeps a proportion, however small.
    kept: Reals = np.where(inside < space.step / 2, np.where(space.may_drop, 0.0, space.step / 2), inside)
    return repair(at_costs(kept, space, problem.caps, np.ones(len(kept))), space, problem.caps)


def random_projected(problem: Problem, count: int, rng: np.random.Generator) -> Policies:
    """(count, d) random policies on the cap, groups spread moderately; not necessarily distinct."""
    return projected(random_policies(problem.space, problem.caps, count, rng), problem)


def first_policies(problem: Problem, count: int, rng: np.random.Generator) -> Policies:
    """Uniform ratios, which every user tries first, then random policies on the cap, (count, d)."""
    same = uniform(problem.space, problem.caps)[None]
    return np.concatenate([same, random_projected(problem, count - 1, rng)])


def unmeasured(problem: Problem, policy: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64] | None:
    """The policy (d,) itself if it is new, else one near it on the caps that is; None where none is left under them."""
    if not problem.is_known(policy):
        return policy
    for shake in range(SHAKES):
        noise = np.exp(0.05 * (1 + shake) * rng.normal(size=(8, len(policy))))
        tried = projected(policy * noise, problem)
        new = [candidate for candidate in tried if not problem.is_known(candidate)]
        if new:
            return np.array(new[0], dtype=np.int64)
    taken = (known.tobytes() for known in problem.policies)
    return next(unseen(problem.space, problem.caps, taken, 1, start=policy), None)


def random_stream(problem: Problem, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """New random policies on the cap, (d,) each, for as long as there are any that are not measured."""
    while True:
        for policy in random_projected(problem, 16, rng):
            new = unmeasured(problem, policy, rng)
            if new is None:
                return
            yield new
