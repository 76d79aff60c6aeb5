"""What a predictor of policies' accuracy is compared with: usual regressions, each as its own users would set it.

A regression learns from pruned fractions p and bits b, one row a policy, and says nothing of its own doubt.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from amc_predictor import SeerNetPredictor
from amc_predictor.published import train_network, untrained_network

Array = NDArray[np.float64]
STRENGTHS = np.logspace(-2, 5, 29)  # of ridges, chosen by leave-one-out
LEFT = 0.01  # kept of a group at least, where a logarithm is taken
HIDDEN = 15  # units of the published network's layers
STEPS, RATE, DECAY = 2000, 0.01, 1.0  # of the same network, standardised


class Regression(Protocol):
    """Learns rows (n, d) -> accuracies (n,)."""

    def fit(self, rows: Array, accuracies: Array) -> Any: ...

    def predict(self, rows: Array) -> Array: ...


class Mean:
    """The mean accuracy, whatever is asked."""

    def fit(self, rows: Array, accuracies: Array) -> None:
        self.mean = float(accuracies.mean())

    def predict(self, rows: Array) -> Array:
        return np.full(len(rows), self.mean)


class Published:
    """SeerNet's own network, on pruned fractions and bits over the most bits, as published: 5,000 epochs."""

    def __init__(self, bits: NDArray[np.bool_], most: float, seed: int) -> None:
        self.unit = np.where(bits, max(most, 1.0), 1.0)
        self.network = SeerNetPredictor(seed=seed)

    def fit(self, rows: Array, accuracies: Array) -> None:
        self.network.fit(torch.from_numpy(rows / self.unit), torch.from_numpy(accuracies))

    def predict(self, rows: Array) -> Array:
        found: Array = self.network.predict(torch.from_numpy(rows / self.unit))[0].numpy()
        return found


class Standardised:
    """The published network of as many units, given its chance: standardised inputs and outputs, a mild rate, decay."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def fit(self, rows: Array, accuracies: Array) -> None:
        self.mean, self.unit = rows.mean(0), rows.std(0)
        self.unit[self.unit == 0] = 1.0
        self.centre, self.spread = float(accuracies.mean()), float(accuracies.std()) or 1.0
        self.network = untrained_network(rows.shape[1], HIDDEN, self.seed)
        train_network(self.network, self._inputs(rows), self._tensor((accuracies - self.centre) / self.spread),
                      STEPS, RATE, DECAY)  # fmt: skip

    @torch.no_grad()
    def predict(self, rows: Array) -> Array:
        found: Array = self.network(self._inputs(rows)).squeeze(1).double().numpy()
        return self.centre + self.spread * found

    def _inputs(self, rows: Array) -> torch.Tensor:
        return self._tensor((rows - self.mean) / self.unit)

    @staticmethod
    def _tensor(values: Array) -> torch.Tensor:
        return torch.from_numpy(values).float()


def regressions(bits: NDArray[np.bool_], most: float, seed: int) -> dict[str, Callable[[], Regression]]:
    """The regressions by name, each built anew by a call.

    Args:
        bits: (d,) which columns are bits.
        most: bits there are at most.
        seed: of those that draw.
    """
    from sklearn.ensemble import GradientBoostingRegressor
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    def physics(rows: Array) -> Array:
        pruned, numbers = rows[:, ~bits], rows[:, bits]
        return np.concatenate([np.log(np.maximum(1 - pruned, LEFT)), pruned, 4.0**-numbers, numbers], axis=1)

    kernel = ConstantKernel() * DotProduct() + ConstantKernel() * RBF(length_scale=float(len(bits)) ** 0.5)
    process = {"kernel": kernel + WhiteKernel(), "normalize_y": True, "random_state": seed}
    trees = {"max_depth": 2, "n_estimators": 300, "learning_rate": 0.05, "subsample": 0.7, "random_state": seed}
    return {
        "mean": Mean,
        "ridge": lambda: make_pipeline(StandardScaler(), RidgeCV(STRENGTHS)),
        "physics ridge": lambda: make_pipeline(FunctionTransformer(physics), StandardScaler(), RidgeCV(STRENGTHS)),
        "gaussian process": lambda: make_pipeline(StandardScaler(), GaussianProcessRegressor(**process)),
        "boosted trees": lambda: GradientBoostingRegressor(**trees),
        "published MLP": lambda: Published(bits, most, seed),
        "MLP, standardised": lambda: Standardised(seed),
    }


def predicted(regression: Regression, rows: Array, accuracies: Array, asked: Array) -> Array:
    """Accuracies (b,) of the rows asked (b, d), by a regression fitted on rows (n, d) and accuracies (n,)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a process at a bound of its search says so; it is judged as it is
        regression.fit(rows, accuracies)
        return np.asarray(regression.predict(asked), dtype=np.float64)
