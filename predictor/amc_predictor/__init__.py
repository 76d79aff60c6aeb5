"""Policy -> accuracy, with spread: tensors in, tensors out; knows no model, file or command line."""

from __future__ import annotations

from collections.abc import Callable

from amc_predictor.ensemble import EnsemblePredictor
from amc_predictor.networks import Training
from amc_predictor.ranks import Ranks
from amc_predictor.seernet import SeerNetPredictor
from amc_predictor.sensitivity import Sensitivity
from amc_predictor.validation import Predictor, cross_validate

PREDICTORS: dict[str, Callable[..., Predictor]] = {
    "ensemble": EnsemblePredictor,
    "seernet": SeerNetPredictor,
}

__all__ = [
    "PREDICTORS",
    "EnsemblePredictor",
    "Predictor",
    "Ranks",
    "SeerNetPredictor",
    "Sensitivity",
    "Training",
    "cross_validate",
]
