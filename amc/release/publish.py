"""The pages of a release: the report for its makers, the model card for its users."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from amc.job.dense import Dense
from amc.job.folder import CARD, REPORT, read_policy
from amc.release.card import model_card
from amc.release.report import report
from amc.study.trials import Study
from amc.system.files import write_text
from amc_predictor import EnsemblePredictor


def publish(folder: Path, dense: Dense, study: Study, predictor: EnsemblePredictor, metrics: dict[str, Any]) -> None:
    """Write `report.html` and `README.md` into a run folder that holds the release already.

    Raises:
        StorageError: the folder cannot be written.
    """
    policy, _ = read_policy(folder)
    write_text(folder / REPORT, report(dense, study, predictor, metrics, policy))
    write_text(folder / CARD, model_card(folder, dense, metrics))
