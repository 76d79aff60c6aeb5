"""The judgement of any predictor on measured policies it was not shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from amc_predictor.calibrated import CalibratedPredictor
from amc_predictor.conformal import cross_interval
from amc_predictor.ensemble import EnsemblePredictor
from amc_predictor.examples import checked_examples, fold_of_each
from amc_predictor.ranks import Ranks


class Predictor(Protocol):
    """Learns policy -> accuracy."""

    def fit(self, policies: Tensor, accuracy: Tensor) -> None:
        """Learn from kept fractions (n, d) in [0, 1] and accuracies (n,) in [0, 1]."""
        ...

    def predict(self, policies: Tensor) -> tuple[Tensor, Tensor]:
        """Kept fractions (b, d) -> mean (b,), standard deviation (b,); differentiable in the fractions."""
        ...


def cross_validate(
    policies: Tensor,
    accuracy: Tensor,
    folds: int = 5,
    seed: int = 0,
    make: Callable[[], Predictor] = EnsemblePredictor,
    bits: Sequence[int] = (),
) -> Ranks:
    """Fit a fresh predictor without each fold in turn and judge all of it on what it has not seen.

    Intervals are the predictor's own where it has them; otherwise cross-conformal ones over the folds.

    Args:
        policies: (n, d).
        accuracy: (n,) in [0, 1].
        folds: at most this many; fewer where n is smaller, and each fit must still see 4 policies.
        seed: draws the folds.
        make: builds one untrained predictor.
        bits: numbers of the columns that are bits, which `make` must know too; all others are kept fractions.
    """
    inputs, values = checked_examples(policies, accuracy, bits)
    fold = fold_of_each(len(values), folds, seed)
    mean, std, low, high = (torch.empty_like(values) for _ in range(4))
    calibrated = True
    for number in range(int(fold.max()) + 1):
        held = fold == number
        predictor = make()
        predictor.fit(inputs[~held], values[~held])
        with torch.no_grad():
            mean[held], std[held] = (part.to(mean) for part in predictor.predict(inputs[held]))
            calibrated = isinstance(predictor, CalibratedPredictor)
            if isinstance(predictor, CalibratedPredictor):
                low[held], high[held] = predictor.interval(inputs[held], 0.9)
    if not calibrated:
        even = torch.where(std > 0, std, torch.ones_like(std))
        low, high = cross_interval(mean, even, values, fold, 0.9)
    return Ranks.of(values, mean, std, low, high, fold)
