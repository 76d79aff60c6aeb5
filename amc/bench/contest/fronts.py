"""One study of ours that serves several caps.

The arms, the predictor and the closing rounds are those of `amc compress`; the caps take turns. Each batch of proposals
is for one of them, what is learned from is every label, and what counts as usual is what costs about as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import numpy as np
import torch
from numpy.typing import NDArray

from amc.bench.methods import CLOSING
from amc.bench.methods import OURS as PARTS
from amc.selection import KAPPA
from amc_search import Cap, Learned, close, propose, starting_policies
from amc_search.design import distinct
from amc_search.repair import use_of
from amc_search.rivals.problem import Method, Problem
from amc_search.space import Policies, Predictor

BATCH = 8  # proposals between two fits
FEWEST = 8  # labels of a starting design
NEAR = 1.5  # policies of this use of a cap and less are compared with those under it


def front_method(several: Sequence[tuple[Cap, ...]]) -> Method:
    """What makes one study for several caps, whatever the caps of its problem."""

    def serve(problem: Problem) -> None:
        _start(problem, several)
        closing = max(len(several), round(CLOSING * problem.trials))
        for turn, caps in enumerate(cycle(several)):
            if problem.left <= closing or not _propose(problem, caps, min(BATCH, problem.left - closing), turn):
                break
        for left, caps in zip(range(len(several), 0, -1), several, strict=True):
            _close(problem, caps, problem.left // left)

    return serve


def _start(problem: Problem, several: Sequence[tuple[Cap, ...]]) -> None:
    """The starting designs of all caps in turns, together as many policies as that of one search has."""
    usual = int(np.clip(2 * len(problem.space), 10, 32))
    count = min(usual, max(FEWEST, problem.trials // 2))
    designs = [starting_policies(problem.space, caps, count, problem.seed) for caps in several]
    turns = [design[place] for place in range(count) for design in designs if place < len(design)]
    for policy in distinct(np.array(turns, dtype=np.int64))[:count]:
        problem.measure(policy)


def _propose(problem: Problem, caps: tuple[Cap, ...], count: int, turn: int) -> int:
    """Measure a batch of informative policies under a cap; returns how many there were."""
    policies, labels, near = _known(problem, caps)
    batch = propose(
        problem.space, caps, policies[near], labels[near], policies[~near],
        predictor=_fitted(problem, policies, labels), count=count, arms=PARTS.arms, seed=(problem.seed, turn),
    )  # fmt: skip
    for policy in batch:
        problem.measure(policy)
    return len(batch)


def _close(problem: Problem, caps: tuple[Cap, ...], count: int) -> None:
    """Measure at most `count` of the best policies by prediction under a cap, in rounds."""

    def learn() -> Learned:
        policies, labels, near = _known(problem, caps)
        return Learned(policies[near], labels[near], _fitted(problem, policies, labels))

    def measure(policies: list[NDArray[np.int64]]) -> None:
        for policy in policies:
            problem.measure(policy)

    if count:
        close(problem.space, caps, count, learn, measure, seed=problem.seed, kappa=KAPPA, parts=PARTS.closing)


def _known(problem: Problem, caps: tuple[Cap, ...]) -> tuple[Policies, NDArray[np.float64], NDArray[np.bool_]]:
    """Measured policies and the dense one, their labels, and which of them cost about as much as a cap or less."""
    policies, labels = problem.policies, problem.labels
    if problem.dense_label is not None:
        policies, labels = np.concatenate([policies, problem.space.high[None]]), np.append(labels, problem.dense_label)
    return policies, labels, use_of(policies, caps) <= NEAR


def _fitted(problem: Problem, policies: Policies, labels: NDArray[np.float64]) -> Predictor:
    predictor = PARTS.predictor(problem.seed)
    predictor.fit(problem.space.fractions(policies), torch.from_numpy(labels).float())
    return predictor
