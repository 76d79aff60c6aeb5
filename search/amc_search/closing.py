"""The end of a search: the last labels go to the best policies by prediction, a few at a time.

Each round learns from all that was measured, the round before included: where a climb exploits an error of the
predictor, its own label shows it, and the next climb starts from what was good.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amc_search.ascent import Candidates, climb
from amc_search.proposals import propose
from amc_search.space import Cap, Policies, Predictor, Space

ROUNDS = 4
WARM = 32  # of the best measured policies that a climb starts from


@dataclass(frozen=True)
class Learned:
    """What is known before a round.

    Attributes:
        policies: (n, d) measured.
        labels: (n,) theirs, higher is better.
        predictor: fitted on them.
    """

    policies: Policies
    labels: NDArray[np.float64]
    predictor: Predictor


@dataclass(frozen=True)
class Parts:
    """Which parts of the end of a search are at work; all are, but where it is asked what one is worth.

    Attributes:
        barrier, polish: of the climb, see `climb`.
    """

    barrier: bool = True
    polish: bool = True


ALL_PARTS = Parts()


def close(
    space: Space,
    caps: tuple[Cap, ...],
    count: int,
    learn: Callable[[], Learned],
    measure: Callable[[list[NDArray[np.int64]]], None],
    *,
    seed: int,
    kappa: float = 1.0,
    parts: Parts = ALL_PARTS,
) -> Candidates:
    """Measure `count` policies at most, in `ROUNDS` rounds of learning and climbing.

    Args:
        space: what is legal.
        caps: all hold.
        count: at least 1; fewer are measured only where no more are found.
        learn: all that is known now.
        measure: legal policies under the caps, (d,) each, of which some may fail.
        seed: the same seed and labels give the same policies.
        kappa: caution of the climb.
        parts: what is at work.

    Returns:
        What the last climb found.

    Raises:
        CapUnreachable: the smallest policy is over a cap.
    """
    tried: set[bytes] = set()
    rounds = min(ROUNDS, count)
    for number in range(rounds):
        size = (count * (number + 1)) // rounds - (count * number) // rounds
        known = learn()
        taken = tried | {policy.tobytes() for policy in known.policies}
        best = known.policies[np.argsort(-known.labels, kind="stable")]
        found = climb(
            known.predictor, space, caps, kappa=kappa, seed=seed + number, warm=best[:WARM], top=size + 8,
            barrier=parts.barrier, polish=parts.polish,
        )  # fmt: skip
        new = list({key: policy for policy in found.policies if (key := policy.tobytes()) not in taken}.values())[:size]
        tried |= {policy.tobytes() for policy in new}
        if len(new) < size:  # all starts climb to the same few policies
            refused = np.array([np.frombuffer(key, dtype=np.int64) for key in sorted(tried)], dtype=np.int64)
            others = propose(
                space, caps, known.policies, known.labels, refused.reshape(-1, len(space)),
                predictor=known.predictor, count=size - len(new), arms={"merit": 1.0}, seed=(seed, number),
            )  # fmt: skip
            new = [*new, *others]
            tried |= {policy.tobytes() for policy in new}
        measure(new)
    return found
