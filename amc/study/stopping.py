"""When a trial may stop before its last image: as soon as it is sure enough that it can no longer matter.

A trial cannot matter when its accuracy on all N examples will be below that of a measured policy that costs no more
(`CheaperTrials`): under no cap would it be chosen. A sequential test decides that on the examples seen so far, which
come in random order, drawn without replacement: however often one looks, the chance to stop a policy that would
have reached the threshold is at most `ALPHA`.

- Right or wrong: with s of t examples right and K of all N, the martingale P(s | K) (t + 1) of a uniform prior against
  K passes 1 / ALPHA downwards with a chance of at most ALPHA (Waudby-Smith & Ramdas 2020, arXiv 2006.04347, "Confidence
  sequences for sampling without replacement", section 2.1).
- Scores between 0 and 1: Serfling's inequality (1974, Annals of Statistics 2(1)) at each of the looks, ALPHA divided
  evenly among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from amc.study.trial import Trial

ALPHA = 0.05  # chance, a trial, to stop one that would have reached the threshold

Floor = Callable[[Mapping[str, float]], float]  # costs of a policy -> the accuracy below which it cannot matter


@dataclass(frozen=True)
class SequentialTest:
    """Says whether the mean score of `total` examples, in random order, will be below `threshold`.

    Attributes:
        looks: how often it will be asked at most.
        counted: every score is 0 or 1.
    """

    threshold: float
    total: int
    looks: int
    counted: bool = True

    def __call__(self, scores: Tensor) -> bool:
        """Whether the first scores, (t,) float64 in [0, 1], decide it."""
        seen, right = len(scores), float(scores.sum())
        if self.threshold <= 0 or seen == 0 or right / seen >= self.threshold:
            return False
        if self.counted:
            return self._decided_by_counts(seen, round(right))
        left = 1 - (seen - 1) / self.total
        half = math.sqrt(left * math.log(self.looks / ALPHA) / (2 * seen))
        return right / seen + half < self.threshold

    def _decided_by_counts(self, seen: int, right: int) -> bool:
        needed = math.ceil(self.threshold * self.total - 1e-9)  # the likeliest of all counts that would be enough
        if needed > self.total or needed - right > self.total - seen:
            return True  # not even if all that is left were right
        if needed - right < 0:
            return False
        chance = _log_choose(needed, right) + _log_choose(self.total - needed, seen - right)
        return chance - _log_choose(self.total, seen) + math.log(seen + 1) < math.log(ALPHA)


def _log_choose(n: int, k: int) -> float:
    if k > n:
        return -math.inf
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


@dataclass(frozen=True)
class CheaperTrials:
    """The floor of a study: what the policies that cost no more have reached.

    Attributes:
        trials: gives all trials of the study, those of other workers too.
        units: the costs that count: those that have a cap.
    """

    trials: Callable[[], Sequence[Trial]]
    units: tuple[str, ...]

    def __call__(self, costs: Mapping[str, float]) -> float:
        """The best accuracy of a whole trial that costs no more in any unit; 0 where there is none."""
        if not all(unit in costs for unit in self.units):  # peak activations are not counted for every trial
            return 0.0
        reached = (
            trial.accuracy
            for trial in self.trials()
            if not trial.stopped and all(trial.costs[unit] <= costs[unit] for unit in self.units)
        )
        return max(reached, default=0.0)
