"""How well a predictor orders policies it has not seen, and how honest its intervals are."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """Judgement of a predictor on policies held out of its fit.

    Attributes:
        kendall: tau-b of predicted against true accuracy, in [-1, 1]; 0 where either is constant.
        spearman: rank correlation, likewise.
        rmse: root mean squared error, in accuracy (0.01 is one point).
        coverage_90: share of the values inside their 90 % interval.
        accuracy: (n,) measured values, in the order they were given.
        mean: (n,) out-of-fold predictions.
        std: (n,) their standard deviations.
        low: (n,) lower ends of the 90 % intervals.
        high: (n,) upper ends.
        fold: (n,) int64, the fold each policy was held out in.
    """

    kendall: float
    spearman: float
    rmse: float
    coverage_90: float
    accuracy: Tensor
    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    fold: Tensor

    @classmethod
    def of(cls, accuracy: Tensor, mean: Tensor, std: Tensor, low: Tensor, high: Tensor, fold: Tensor) -> Ranks:
        """The judgement that follows from out-of-fold predictions, all (n,)."""
        return cls(
            kendall=kendall(mean, accuracy),
            spearman=spearman(mean, accuracy),
            rmse=float((mean - accuracy).square().mean().sqrt()),
            coverage_90=float(((low <= accuracy) & (accuracy <= high)).double().mean()),
            accuracy=accuracy,
            mean=mean,
            std=std,
            low=low,
            high=high,
            fold=fold,
        )


def kendall(first: Tensor, second: Tensor) -> float:
    """Kendall's tau-b of two (n,) arrays; 0 where either is constant."""
    return _correlation("kendalltau", first, second)


def spearman(first: Tensor, second: Tensor) -> float:
    """Spearman's rho of two (n,) arrays, ties at their mean rank; 0 where either is constant."""
    return _correlation("spearmanr", first, second)


def _correlation(name: str, first: Tensor, second: Tensor) -> float:
    if len(first) < 2 or bool((first == first[0]).all()) or bool((second == second[0]).all()):
        return 0.0
    from scipy import stats  # a third of a second, which a command that ranks nothing need not wait

    return float(getattr(stats, name)(first.numpy(), second.numpy()).statistic)
