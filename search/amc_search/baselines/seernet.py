"""SeerNet as it was published: what ours must beat first."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amc_search.baselines.problem import Problem
from amc_search.design import at_costs
from amc_search.repair import Reals, repair, utilisation
from amc_search.space import Policies, Predictor

# Pruned fractions that policies are sampled from; they never hold 0.
GRID = np.array([0.25, 0.5, 0.75])
# Of 240 trials 190 are random and 50 chosen by the predictor's uncertainty.
RANDOM_SHARE = 190 / 240
# Trials kept for policies found by the ascent, of 64.
ASCENTS = 1 / 16
# The evolutionary search for uncertain policies.
POPULATION, SELECTED, MUTANTS, CROSSOVERS = 800, 400, 125, 475
PARENTS, SWAPPED = 0.1, 0.3
GENERATIONS = 40
# The ascent.
STEPS, STEP_SIZE = 400, 0.005
# Random grid policies drawn at most to find one under the caps to start from.
DRAWS = 1000


def seernet(problem: Problem, make_predictor: Callable[[], Predictor]) -> None:
    """SeerNet: random policies, uncertain ones, then gradient steps on the predictor up to the cap.

    1. A policy is its pruned fractions, on the grid 0.25, 0.5, 0.75, drawn at random; costs play no part in it.
    2. The predictor is fitted. An evolutionary search finds the policies with the highest uncertainty: the mean
       squared change of the prediction over the neighbours that prune one group one grid level less. They are
       measured and the predictor is fitted again.
    3. From a random grid policy under the caps: 400 steps of 0.005 along the normalised gradient of log f, clamped to
       [0, 1], ended by the first that is over a cap; the last one before, rounded to the grid of the hardware, is
       measured.

    What the published code leaves open, or where it does not run, was decided as follows. Trials are shared as there,
    190 random to 50 uncertain, one round, apart from a sixteenth for results: each is one ascent from one more start,
    so that the luck of the start is averaged out in its favour (published is a single one). Mutants and crossovers
    come in the numbers that the code names, not in those to which its loops cut them; parents survive, which its
    loop forgets, so that 40 generations do for its 2000. The gradient is that of f: normalised it is that of log f,
    and defined where f is below 0. Where no grid policy is under the caps, one is drawn and repaired to half of them.
    Measured policies are rounded to the nearest legal ones. Bits are not searched.

    Source: Wang et al., arXiv 2304.06393; ZiweiWangTHU/SeerNet 01e4cd4, search.py, regression.py, pgd_search.py.

    Args:
        problem: what to search.
        make_predictor: a new predictor of pruned fractions, not yet fitted.
    """
    rng = np.random.default_rng([problem.seed, 7])
    ascents = max(1, round(ASCENTS * problem.trials))
    random = max(1, round(RANDOM_SHARE * (problem.trials - ascents)))
    for _ in range(DRAWS):  # small grids hold fewer policies than are wanted
        if problem.left <= problem.trials - random:
            break
        problem.measure(_legal(rng.choice(GRID, (1, len(problem.space))), problem)[0])
    predictor = _fitted(make_predictor, problem)
    for policy in _legal(GRID[_most_uncertain(predictor, len(problem.space), rng)], problem):
        if problem.left <= ascents:
            break
        problem.measure(policy)
    predictor = _fitted(make_predictor, problem)
    for _ in range(4 * ascents):  # some end where others did
        if not problem.left:
            break
        problem.measure(_ascent(predictor, _start(problem, rng), problem))


def _legal(pruned: Reals, problem: Problem) -> Policies:
    """Pruned fractions (b, d) -> the nearest legal policies (b, d)."""
    return problem.space.nearest((1 - pruned) * problem.space.high)


def _fitted(make_predictor: Callable[[], Predictor], problem: Problem) -> Predictor:
    predictor = make_predictor()
    predictor.fit(1 - problem.space.fractions(problem.policies), torch.as_tensor(problem.values).float())
    return predictor


def _uncertainty(predictor: Predictor, levels: NDArray[np.int64]) -> Reals:
    """Places on the grid (b, d) -> mean squared change of the prediction over the neighbours one level down, (b,)."""
    groups = levels.shape[1]
    rows, moved = np.nonzero(levels)
    neighbours = levels[rows]
    neighbours[np.arange(len(rows)), moved] -= 1
    with torch.no_grad():
        here, there = (
            predictor.predict(torch.as_tensor(GRID[places]).float().reshape(-1, groups))[0].double().numpy()
            for places in (levels, neighbours)
        )
    change = np.bincount(rows, (there - here[rows]) ** 2, minlength=len(levels))
    uncertainty: Reals = change / np.maximum((levels > 0).sum(axis=-1), 1)
    return uncertainty


def _most_uncertain(predictor: Predictor, groups: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Places on the grid (k, d), k <= SELECTED, the most uncertain first."""
    candidates = rng.integers(len(GRID), size=(POPULATION, groups))
    selected = candidates[:0]
    fitness = np.zeros(0)
    for _ in range(GENERATIONS):
        fitness = np.concatenate([fitness, _uncertainty(predictor, candidates)])
        selected, first = np.unique(np.concatenate([selected, candidates]), axis=0, return_index=True)
        fitness = fitness[first]
        best = np.argsort(-fitness, kind="stable")[:SELECTED]
        selected, fitness = selected[best], fitness[best]
        crossed = _crossed(selected, rng)
        mutated = _mutated(selected, rng)
        fresh = rng.integers(len(GRID), size=(POPULATION - len(crossed) - len(mutated), groups))
        candidates = np.concatenate([mutated, crossed, fresh])
    return selected


def _mutated(selected: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Some parents with one to all of their groups on another level, (MUTANTS, d)."""
    groups = selected.shape[1]
    parents = rng.choice(len(selected), max(1, int(PARENTS * len(selected))))
    mutants: NDArray[np.int64] = selected[rng.choice(parents, MUTANTS)]
    for mutant in mutants:
        moved = rng.choice(groups, rng.integers(1, groups + 1), replace=False)
        mutant[moved] = (mutant[moved] + rng.integers(1, len(GRID), len(moved))) % len(GRID)
    return mutants


def _crossed(selected: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """One parent with a third of another's groups, (CROSSOVERS, d)."""
    groups = selected.shape[1]
    one, other = selected[rng.integers(len(selected), size=(2, CROSSOVERS))]
    swapped: NDArray[np.bool_] = rng.random((CROSSOVERS, groups)).argsort(axis=-1) < int(SWAPPED * groups)
    children: NDArray[np.int64] = np.where(swapped, other, one)
    return children


def _start(problem: Problem, rng: np.random.Generator) -> Reals:
    """Pruned fractions (d,) of a random grid policy under the caps."""
    drawn = rng.choice(GRID, (DRAWS, len(problem.space)))
    under = drawn[utilisation(_legal(drawn, problem), problem.caps) <= 1]
    if len(under):
        start: Reals = under[0]
        return start
    counts: Reals = (1 - drawn[:1]) * problem.space.high.astype(np.float64)
    projected = at_costs(counts, problem.space, problem.caps, np.full(1, 0.5))
    fractions: Reals = 1 - repair(projected, problem.space, problem.caps)[0] / problem.space.high
    return fractions


def _ascent(predictor: Predictor, start: Reals, problem: Problem) -> NDArray[np.int64]:
    """From pruned fractions (d,) under the caps up the predictor, to the last legal policy (d,) before they are met."""
    point: Tensor = torch.as_tensor(start).float()[None]
    reached = _legal(start[None], problem)
    for _ in range(STEPS):
        point.requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(predictor.predict(point)[0].sum(), point)
        norm = gradient.norm()
        if not norm > 0:  # a predictor that collapsed to a constant
            break
        point = (point.detach() + STEP_SIZE * gradient / norm).clamp(0, 1)
        policy = _legal(point.double().numpy(), problem)
        if utilisation(policy, problem.caps)[0] > 1:
            break
        reached = policy
    last: NDArray[np.int64] = reached[0]
    return last
