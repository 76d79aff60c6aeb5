"""An evolutionary search over feasible policies: DEAP's selection, crossover, mutation and loop.

A whole generation is repaired and scored in one batch, so a generation costs one forward pass. DEAP draws from Python's
global `random`: it is seeded here from the caller's generator, and put back as it was.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
from deap import algorithms, base, tools

from amc_search.acquisition import Scores
from amc_search.depth import typical_fraction
from amc_search.design import at_costs, random_policies
from amc_search.repair import Reals
from amc_search.space import Cap, Policies, Space

POPULATION = 64
# Generations a group, and their least and greatest number: a child changes a few groups, so many groups take longer. On
# 30 groups a dozen generations found a fifth to two fifths less expected improvement.
PACE, FEWEST, MOST = 1.6, 12, 48
# The standard deviation of the factor's logarithm by which a mutation scales a group.
SIGMA = 0.3
# The chance that a child drops one removable group, or takes one back.
SWITCHED = 0.3


class Maximum(base.Fitness):  # type: ignore[misc]  # deap has no types
    """One number, higher is better."""

    weights = (1.0,)


class Individual(list[float]):
    """The logarithms of one policy's keep-counts, -inf of a dropped group's, and its fitness."""

    def __init__(self, logs: Iterable[float]) -> None:
        super().__init__(logs)
        self.fitness = Maximum()

    @classmethod
    def of(cls, policy: Reals | Policies) -> Individual:
        """Of keep-counts (d,)."""
        with np.errstate(divide="ignore"):
            return cls(np.log(policy).tolist())


def counts_of(population: list[Individual]) -> Reals:
    """Individuals -> keep-counts (b, d), real."""
    counts: Reals = np.exp(np.array(population))
    return counts


def evolve(
    space: Space,
    caps: tuple[Cap, ...],
    score: Callable[[Policies], Scores],
    seeds: Policies,
    rng: np.random.Generator,
) -> tuple[Policies, Scores]:
    """Evolve a (mu + lambda) population towards high scores, near the tightest cap and never over any.

    Args:
        space: what is legal.
        caps: the tightest attracts, none is passed.
        score: legal policies (b, d) -> (b,), higher is better.
        seeds: (s, d) policies to start from, shifted on a uniform scale to near the cap; random ones fill up.
        rng: all that is random comes from it.

    Returns:
        The last population, distinct, best first: policies (k, d) and scores (k,), k <= POPULATION.
    """
    seeds = seeds[: POPULATION // 2]
    near = at_costs(seeds.astype(np.float64), space, caps, rng.uniform(0.93, 1.0, len(seeds)))
    first = np.concatenate([near, random_policies(space, caps, POPULATION - len(seeds), rng)])

    def evaluated(population: list[Individual]) -> list[Individual]:
        policies = np.rint(counts_of(population)).astype(np.int64)
        for individual, value in zip(population, np.nan_to_num(score(policies), nan=-np.inf), strict=True):
            individual.fitness.values = (float(value),)
        return population

    toolbox = variation(space)
    with seeded(rng):
        population = evaluated([Individual.of(policy) for policy in first])
        for _ in range(int(np.clip(PACE * len(space), FEWEST, MOST))):
            parents = toolbox.choose(population, POPULATION)
            children = algorithms.varAnd(parents, toolbox, cxpb=1.0, mutpb=1.0)
            policies = at_costs(counts_of(children), space, caps, rng.uniform(0.9, 1.0, len(children)))
            population = toolbox.select(population + evaluated([Individual.of(policy) for policy in policies]))
    fitness = np.array([individual.fitness.values[0] for individual in population])
    return np.rint(counts_of(population)).astype(np.int64), fitness


def variation(space: Space) -> base.Toolbox:
    """DEAP's operators on `Individual`s: choose, clone, mate, mutate, select."""
    toolbox = base.Toolbox()
    toolbox.register("clone", Individual)
    toolbox.register("choose", tools.selTournament, tournsize=2)
    toolbox.register("mate", tools.cxUniform, indpb=0.5)
    toolbox.register("mutate", _mutate, space=space)
    toolbox.register("select", _best_distinct)
    return toolbox


@contextmanager
def seeded(rng: np.random.Generator) -> Iterator[None]:
    """Python's global `random`, from which DEAP draws, seeded from `rng` inside and as it was before outside."""
    before = random.getstate()
    random.seed(int(rng.integers(2**63)))
    try:
        yield
    finally:
        random.setstate(before)


def _best_distinct(population: list[Individual], count: int = POPULATION) -> list[Individual]:
    """The best, one a policy: otherwise the best would fill the population with itself."""
    best: list[Individual] = tools.selBest(list({tuple(one): one for one in population}.values()), count)
    return best


def _mutate(individual: Individual, space: Space) -> tuple[Individual]:
    """Scale about one to a quarter of the groups by a log-normal factor, and at times drop one or take one back.

    The projection on the cap that follows rescales all that is kept.
    """
    share = random.uniform(1 / len(space), max(0.25, 1 / len(space)))
    tools.mutGaussian(individual, mu=0.0, sigma=SIGMA, indpb=share)
    if space.may_drop.any() and random.random() < SWITCHED:
        group = random.choice(np.flatnonzero(space.may_drop).tolist())
        back = typical_fraction(counts_of([individual]), space)[0] * random.uniform(0.3, 1.0) * space.high[group]
        individual[group] = -np.inf if np.isfinite(individual[group]) else float(np.log(back))
    return (individual,)
