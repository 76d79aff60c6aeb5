"""Which policies to measure next, as a function of arrays: no study, no file, no state.

Symbols: d groups, n measured policies, m pending ones (being measured elsewhere), k proposals.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from amc_search.acquisition import FUNCTIONS, SHARES, Knowledge, Scores, predict, quotas, underuse
from amc_search.design import random_policies
from amc_search.evolution import POPULATION, evolve
from amc_search.repair import check_reachable, repair, uniform, utilisation
from amc_search.space import Cap, Policies, Predictor, Space, is_feasible

# A pick repels its neighbourhood, so that a batch is not eight times the same idea: its reach, as a root mean square
# over groups of log fractions, and its strength in units of an acquisition function's score.
REACH = 0.06
STRENGTH = 1.0


def propose(
    space: Space,
    caps: tuple[Cap, ...],
    policies: Policies,
    accuracy: NDArray[np.float64],
    pending: Policies,
    *,
    predictor: Predictor | None,
    count: int = 8,
    shares: Mapping[str, float] = SHARES,
    seed: int | tuple[int, ...] = 0,
) -> Policies:
    """The next `count` policies to measure: those of `propose_by_function`, the largest share first.

    Returns:
        (k, d) legal, under every cap, distinct, none measured or pending; k < count only where no other is left.
    """
    chosen = propose_by_function(
        space, caps, policies, accuracy, pending, predictor=predictor, count=count, shares=shares, seed=seed
    )
    return np.concatenate(list(chosen.values()))


def propose_by_function(
    space: Space,
    caps: tuple[Cap, ...],
    policies: Policies,
    accuracy: NDArray[np.float64],
    pending: Policies,
    *,
    predictor: Predictor | None,
    count: int = 8,
    shares: Mapping[str, float] = SHARES,
    seed: int | tuple[int, ...] = 0,
) -> dict[str, Policies]:
    """The next policies to measure, by the acquisition function that chose them.

    Args:
        space: what is legal.
        caps: all hold.
        policies: (n, d) measured.
        accuracy: (n,) their accuracies in [0, 1], higher is better, no NaN.
        pending: (m, d) being measured; never proposed, and kept away from.
        predictor: fitted on the measured policies; None while there is too little to fit: all are random then.
        count: how many.
        shares: names of `FUNCTIONS`, or "random" -> share of the batch.
        seed: the same seed and arrays give the same policies.

    Returns:
        function -> (k, d) policies: legal, under every cap, distinct, none measured or pending. The sum of k is count,
        less only where the feasible policies are exhausted.

    Raises:
        CapUnreachable: the smallest policy is over a cap.
        ValueError: there is no cap, an acquisition function is unknown, or shares are not shares.
    """
    if not caps:
        raise ValueError("at least one cap must be given, but got none: without a cap the dense network is best")
    check_reachable(space, caps)
    rng = np.random.default_rng(seed)
    wanted = quotas(shares, count, rng.random())
    known = np.concatenate([policies, pending]).astype(np.int64)
    taken = {policy.tobytes() for policy in known}
    picked: list[NDArray[np.int64]] = list(pending)
    chosen: dict[str, Policies] = {}
    knowledge, best = None, policies[np.argsort(-accuracy, kind="stable")]
    if predictor is not None and len(policies):
        best_accuracy = float(np.max(accuracy))
        spread = max(float(np.median(best_accuracy - accuracy)), 1e-6)
        incumbent = _incumbent(space, caps, predictor, policies)
        knowledge = Knowledge(space, caps, predictor, known, best_accuracy, incumbent, spread)
    for proposer in sorted(wanted, key=lambda proposer: -wanted[proposer]):
        if not wanted[proposer]:  # these come last, so that nothing is evolved, or drawn, for them in vain
            chosen[proposer] = policies[:0]
            continue
        pool, scores = _random_pool(space, caps, rng), np.zeros(POPULATION)
        if proposer != "random" and knowledge is not None:
            pool, scores = _evolved(proposer, knowledge, best, rng)
        chosen[proposer] = _pick(pool, scores, wanted[proposer], space, taken, picked)
        missing = wanted[proposer] - len(chosen[proposer])
        if missing:
            spare = list(unseen(space, caps, taken, missing))
            taken.update(policy.tobytes() for policy in spare)
            chosen[proposer] = np.concatenate(
                [chosen[proposer], np.array(spare, dtype=np.int64).reshape(-1, len(space))]
            )
    return chosen


def unseen(
    space: Space,
    caps: tuple[Cap, ...],
    taken: Iterable[bytes],
    count: int,
    start: NDArray[np.int64] | None = None,
) -> Iterator[NDArray[np.int64]]:
    """Feasible policies not in `taken`, (d,) each, at most `count`, found even where few are left.

    Breadth first by single steps from `start`, a feasible policy, by default the uniform one. What is under monotone
    caps is connected by single steps (every feasible policy can step down to the smallest), so walking through taken
    policies alone finds a free one if there is any, after at most as many expansions as there are taken ones.
    """
    used = set(taken)
    frontier = (uniform(space, caps) if start is None else start)[None]
    visited = {frontier[0].tobytes()}
    steps = np.concatenate([np.diag(space.step), -np.diag(space.step)])
    while len(frontier):
        onward: list[NDArray[np.int64]] = []
        for policy in frontier:
            if policy.tobytes() not in used:
                yield policy
                used.add(policy.tobytes())
                count -= 1
                if count <= 0:
                    return
            near = policy + steps
            near = near[space.is_legal(near)]
            for neighbour in near[utilisation(near, caps) <= 1]:
                if neighbour.tobytes() not in visited:
                    visited.add(neighbour.tobytes())
                    onward.append(neighbour)
        frontier = np.array(onward, dtype=np.int64).reshape(-1, len(space))


def _incumbent(space: Space, caps: tuple[Cap, ...], predictor: Predictor, policies: Policies) -> float:
    """The best predicted accuracy of measured policies (n, d) under the caps; 0 where none is."""
    fitting = policies[is_feasible(policies, caps)]
    return float(predict(predictor, space, fitting)[0].max()) if len(fitting) else 0.0


def _evolved(proposer: str, knowledge: Knowledge, best: Policies, rng: np.random.Generator) -> tuple[Policies, Scores]:
    """The acquisition function's last population; half of it starts from the best measured."""

    def fitness(batch: Policies) -> Scores:
        return FUNCTIONS[proposer](batch, knowledge) - underuse(batch, knowledge)

    return evolve(knowledge.space, knowledge.caps, fitness, best[: POPULATION // 4], rng)


def _random_pool(space: Space, caps: tuple[Cap, ...], rng: np.random.Generator) -> Policies:
    return repair(random_policies(space, caps, POPULATION, rng), space, caps)


def _pick(
    pool: Policies,
    scores: Scores,
    count: int,
    space: Space,
    taken: set[bytes],
    picked: list[NDArray[np.int64]],
) -> Policies:
    """The best of the pool not taken, one after the other, each repelled by those picked; adds to both last lists."""
    free = np.array([policy.tobytes() not in taken for policy in pool], dtype=np.bool_)
    pool, value = pool[free], scores[free].copy()
    for other in picked:
        value -= _repulsion(pool, other, space)
    chosen: list[NDArray[np.int64]] = []
    while len(chosen) < count and len(pool):
        best = pool[int(np.argmax(value))]
        chosen.append(best)
        picked.append(best)
        taken.add(best.tobytes())
        value -= _repulsion(pool, best, space)
        others = (pool != best).any(axis=-1)
        pool, value = pool[others], value[others]
    return np.array(chosen, dtype=np.int64).reshape(-1, len(space))


def _repulsion(pool: Policies, centre: NDArray[np.int64], space: Space) -> Scores:
    apart = np.sqrt(((space.log_fractions(pool) - space.log_fractions(centre)) ** 2).mean(axis=-1))
    push: Scores = STRENGTH * np.exp(-((apart / REACH) ** 2))
    return push
