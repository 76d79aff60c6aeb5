"""How policies are measured and chosen: a table of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from amc.system.settings import Settings


class SearchSettings(Settings):
    """How policies are measured and chosen."""

    trials: int = Field(default=48, ge=1, description="policies to measure")
    measure_images: int | None = Field(
        default=None, ge=1, description="examples a trial is measured on; default: the whole split"
    )
    batch_size: int = Field(default=250, ge=1, description="examples in a batch of the measurement")
    acquisition: Literal["informative", "exploring", "seernet"] = Field(
        default="informative",
        description="what evolution looks for: ours, ours exploring more, or the paper's (SeerNet, arXiv 2304.06393)",
    )
    predictor: Literal["ensemble", "mlp"] = Field(
        default="ensemble",
        description="what learns accuracy from trials: a Gaussian process with networks on top, or networks alone",
    )
    stop_early: bool = Field(
        default=True, description="end a trial once it is sure not to be among the best of what costs no more"
    )
    sensitivity_images: int = Field(
        default=128, ge=0, description="examples on which each group is cut alone before the first trial; 0: none is"
    )
    candidates: int = Field(
        default=5, ge=1, le=1000, description="best policies by prediction that are measured truly at the end"
    )
    study: str | None = Field(
        default=None,
        min_length=1,
        description="where trials are kept: an Optuna storage URL, or run: a file in the run folder; default: one "
        "SQLite file in the user's data folder, so that equal jobs share trials",
    )
    workers: int = Field(default=1, ge=1, le=1024, description="processes on this machine that measure side by side")
