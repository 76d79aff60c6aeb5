"""Policy -> accuracy, with spread: tensors in, tensors out; knows no network, file or command line."""

from __future__ import annotations

from amc_predictor.calibrated import CalibratedPredictor
from amc_predictor.curves import SensitivityCurves
from amc_predictor.ensemble import EnsemblePredictor
from amc_predictor.mlp import MLPPredictor
from amc_predictor.networks import Training
from amc_predictor.published import SeerNetPredictor
from amc_predictor.ranks import Ranks
from amc_predictor.validation import Predictor, cross_validate

PREDICTORS: dict[str, type[CalibratedPredictor]] = {
    "ensemble": EnsemblePredictor,
    "mlp": MLPPredictor,
}

__all__ = [
    "PREDICTORS",
    "CalibratedPredictor",
    "EnsemblePredictor",
    "MLPPredictor",
    "Predictor",
    "Ranks",
    "SeerNetPredictor",
    "SensitivityCurves",
    "Training",
    "cross_validate",
]
