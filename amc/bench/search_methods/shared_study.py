"""One study of ours that serves several caps.

The acquisition functions, the predictor and the closing rounds are those of `amc compress`; the caps take turns. Each
batch of proposals is for one of them, all trials are learned from, and usual is what costs about as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from amc.bench.search_methods.methods import CLOSING, Make
from amc.bench.search_methods.methods import OURS as PARTS
from amc_search import Cap, Learned, exploit, propose, starting_policies
from amc_search.baselines.problem import Method, Problem
from amc_search.design import distinct, usual_start
from amc_search.repair import utilisation
from amc_search.space import Policies

BATCH = 8  # proposals between two fits
FEWEST = 8  # trials of a starting design
NEAR = 1.5  # policies of this use of a cap and less are compared with those under it


def front_method(several: Sequence[tuple[Cap, ...]]) -> Method:
    """What makes one study for several caps, whatever the caps of its problem."""

    def serve(problem: Problem) -> None:
        make = PARTS.maker(problem)
        _start(problem, several)
        closing = max(len(several), round(CLOSING * problem.trials))
        for turn, caps in enumerate(cycle(several)):
            if problem.left <= closing or not _propose(problem, make, caps, min(BATCH, problem.left - closing), turn):
                break
        for left, caps in zip(range(len(several), 0, -1), several, strict=True):
            _close(problem, make, caps, problem.left // left)

    return serve


def _start(problem: Problem, several: Sequence[tuple[Cap, ...]]) -> None:
    """The starting designs of all caps in turns, together as many policies as that of one search has."""
    count = min(usual_start(problem.space), max(FEWEST, problem.trials // 2))
    designs = [starting_policies(problem.space, caps, count, problem.seed) for caps in several]
    turns = [design[place] for place in range(count) for design in designs if place < len(design)]
    problem.measure_all(distinct(np.array(turns, dtype=np.int64))[:count])


def _propose(problem: Problem, make: Make, caps: tuple[Cap, ...], count: int, turn: int) -> int:
    """Measure a batch of informative policies under a cap; returns how many there were."""
    policies, values, far = _apart(problem, caps)
    batch = propose(
        problem.space, caps, policies, values, far,
        predictor=PARTS.fitted(make, problem), count=count, shares=PARTS.acquisition, seed=(problem.seed, turn),
    )  # fmt: skip
    problem.measure_all(batch)
    return len(batch)


def _close(problem: Problem, make: Make, caps: tuple[Cap, ...], count: int) -> None:
    """Measure at most `count` of the best policies by prediction under a cap, in rounds."""

    def learn() -> Learned:
        policies, values, _ = _apart(problem, caps)
        return Learned(policies, values, PARTS.fitted(make, problem))

    if count:
        exploit(problem.space, caps, count, learn, problem.measure_all, seed=problem.seed, parts=PARTS.closing)


def _apart(problem: Problem, caps: tuple[Cap, ...]) -> tuple[Policies, NDArray[np.float64], Policies]:
    """Known policies that cost about as much as a cap or less, their objective values, and the other policies."""
    policies, values = problem.known
    near = utilisation(policies, caps) <= NEAR
    return policies[near], values[near], policies[~near]
