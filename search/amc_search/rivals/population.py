"""Plain evolution on true labels."""

from __future__ import annotations

import numpy as np
from deap import base, tools
from numpy.typing import NDArray

from amc_search.depth import typical_fraction
from amc_search.evolution import Individual
from amc_search.repair import Reals
from amc_search.rivals.landing import first_policies, landed, unmeasured
from amc_search.rivals.problem import Problem

# An eighth of the labels and at most this many: small, as labels are few.
POPULATION = 32
# The chance that a child drops one removable group, or takes one back.
SWITCHED = 0.2


def evolution(problem: Problem) -> None:
    """A steady-state (mu + 1) evolution on DEAP, every child landed on the cap and then measured.

    Two parents, each the better of two drawn; uniform crossover; a log-normal factor on some groups; the worst of
    population and child leaves. One child at a time learns more from 64 labels than generations do. Operators draw
    from a generator of their own, as DEAP's draw from the global `random`.

    Source: Fortin et al., DEAP, JMLR 13, 2012; the constraint by repair as in MetaPruning (arXiv 1903.10258) and
    Once-for-All (arXiv 1908.09791), which draw again instead.
    """
    rng = np.random.default_rng([problem.seed, 2])
    toolbox = base.Toolbox()
    toolbox.register("choose", _tournament, rng=rng)
    toolbox.register("mate", _cross, rng=rng)
    toolbox.register("mutate", _mutate, problem=problem, rng=rng)
    toolbox.register("select", tools.selBest)
    size = max(4, min(POPULATION, problem.trials // 8))
    first = (unmeasured(problem, policy, rng) for policy in first_policies(problem, size, rng))
    population = [_measured(policy, problem) for policy in first if policy is not None]
    while problem.left:
        child = toolbox.mutate(toolbox.mate(toolbox.choose(population), toolbox.choose(population)))
        policy = unmeasured(problem, landed(child[None], problem)[0], rng)
        if policy is None:
            return
        population = toolbox.select([*population, _measured(policy, problem)], size)


def _measured(policy: NDArray[np.int64], problem: Problem) -> Individual:
    individual = Individual(policy)
    individual.fitness.values = (problem.measure(policy),)
    return individual


def _tournament(population: list[Individual], rng: np.random.Generator) -> Individual:
    """The better of two drawn."""
    one, other = (population[index] for index in rng.integers(len(population), size=2))
    better: Individual = max(one, other, key=lambda individual: individual.fitness.values)
    return better


def _cross(one: Individual, other: Individual, rng: np.random.Generator) -> Reals:
    """Every group from either parent."""
    return np.where(rng.random(one.policy.shape) < 0.5, one.policy, other.policy).astype(np.float64)


def _mutate(counts: Reals, problem: Problem, rng: np.random.Generator) -> Reals:
    """Scale about one to a quarter of the groups, and at times drop one or take it back at a common fraction."""
    groups, space = len(counts), problem.space
    chosen = rng.random(groups) < rng.uniform(1 / groups, max(0.25, 1 / groups))
    counts = counts * np.where(chosen, np.exp(rng.normal(0.0, 0.4, groups)), 1.0)
    if space.may_drop.any() and rng.random() < SWITCHED:
        group = rng.choice(np.flatnonzero(space.may_drop))
        counts[group] = 0.0 if counts[group] > 0 else typical_fraction(counts[None], space)[0] * space.high[group]
    return counts
