"""All that a report and a model card are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from amc.study.measure import Measure
from amc.study.optimize import Fit
from amc.study.trials import Study
from amc.zoo.data.splits import Splits


@dataclass(frozen=True, eq=False)
class ReportInputs:
    """What a run found, as the pages of its release need it.

    Attributes:
        measure: what measured the policies; it holds the traced dense network.
        data: train, validation and test split.
        study: all trials.
        fit: the predictor, and the trials it learned from.
        metrics: what `metrics.json` holds.
        policy: group name -> channels kept.
        recipe: the resolved recipe, as TOML.
    """

    measure: Measure
    data: Splits
    study: Study
    fit: Fit
    metrics: dict[str, Any]
    policy: Mapping[str, int]
    recipe: str
