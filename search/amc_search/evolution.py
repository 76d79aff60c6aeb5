"""An evolutionary search over feasible policies, on DEAP.

The operators are ours and draw from a numpy Generator: DEAP's own draw from the global `random`. A whole generation
is repaired and scored in one batch, so a generation costs one forward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from deap import base, tools

from amc_search.acquisition import Scores
from amc_search.depth import typical_fraction
from amc_search.design import at_costs, random_policies
from amc_search.repair import Reals
from amc_search.space import Cap, Policies, Space

POPULATION = 64
# Generations a group, and their least and greatest number: a child changes a few groups, so many groups take longer. On
# 30 groups a dozen generations found a fifth to two fifths less expected improvement.
PACE, FEWEST, MOST = 1.6, 12, 48
# The chance that a child drops one removable group, or takes one back.
SWITCHED = 0.3


class Maximum(base.Fitness):  # type: ignore[misc]  # deap has no types
    """One number, higher is better."""

    weights = (1.0,)


class Individual:
    """One policy, (d,) keep-counts, real until its generation is repaired, and its fitness."""

    def __init__(self, policy: Reals | Policies) -> None:
        self.policy = policy
        self.fitness = Maximum()


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
    toolbox = _toolbox(space, rng)
    seeds = seeds[: POPULATION // 2]
    near = at_costs(seeds.astype(np.float64), space, caps, rng.uniform(0.93, 1.0, len(seeds)))
    first = np.concatenate([near, random_policies(space, caps, POPULATION - len(seeds), rng)])
    population = _scored([Individual(policy) for policy in first], score)
    for _ in range(int(np.clip(PACE * len(space), FEWEST, MOST))):
        parents = toolbox.pair(population)
        children = [toolbox.mutate(toolbox.mate(one, other)) for one, other in parents]
        targets = rng.uniform(0.9, 1.0, len(children))
        landed = at_costs(np.stack([child.policy for child in children]), space, caps, targets)
        population += _scored([Individual(policy) for policy in landed], score)
        population = toolbox.select(_unlike(population), POPULATION)
    population = toolbox.select(population, POPULATION)
    fitness = np.array([individual.fitness.values[0] for individual in population])
    return np.stack([individual.policy for individual in population]).astype(np.int64), fitness


def _toolbox(space: Space, rng: np.random.Generator) -> base.Toolbox:
    toolbox = base.Toolbox()
    toolbox.register("pair", _tournament_pairs, rng=rng)
    toolbox.register("mate", _cross, rng=rng)
    toolbox.register("mutate", _mutate, space=space, rng=rng)
    toolbox.register("select", tools.selBest)
    return toolbox


def _scored(population: list[Individual], score: Callable[[Policies], Scores]) -> list[Individual]:
    scores = score(np.stack([individual.policy for individual in population]).astype(np.int64))
    for individual, value in zip(population, np.nan_to_num(scores, nan=-np.inf), strict=True):
        individual.fitness.values = (float(value),)
    return population


def _unlike(population: list[Individual]) -> list[Individual]:
    """One individual a policy: without this the best fills the population with itself."""
    return list({individual.policy.tobytes(): individual for individual in population}.values())


def _tournament_pairs(population: list[Individual], rng: np.random.Generator) -> list[tuple[Individual, Individual]]:
    """POPULATION pairs, each parent the better of two drawn."""
    drawn = rng.integers(len(population), size=(POPULATION, 2, 2))
    fitness = np.array([individual.fitness.values[0] for individual in population])
    winners = np.where(fitness[drawn[..., 0]] >= fitness[drawn[..., 1]], drawn[..., 0], drawn[..., 1])
    return [(population[one], population[other]) for one, other in winners]


def _cross(one: Individual, other: Individual, rng: np.random.Generator) -> Individual:
    """Uniform crossover: every group from either parent."""
    return Individual(np.where(rng.random(one.policy.shape) < 0.5, one.policy, other.policy).astype(np.float64))


def _mutate(individual: Individual, space: Space, rng: np.random.Generator) -> Individual:
    """Scale about one to a quarter of the groups by a log-normal factor, and at times drop one or take one back.

    The landing that follows rescales all that is kept.
    """
    groups = len(individual.policy)
    chosen = rng.random(groups) < rng.uniform(1 / groups, max(0.25, 1 / groups))
    individual.policy = individual.policy * np.where(chosen, np.exp(rng.normal(0.0, 0.3, groups)), 1.0)
    if space.may_drop.any() and rng.random() < SWITCHED:
        group = rng.choice(np.flatnonzero(space.may_drop))
        back = typical_fraction(individual.policy[None], space)[0] * rng.uniform(0.3, 1.0)
        individual.policy[group] = 0.0 if individual.policy[group] > 0 else back * space.high[group]
    return individual
