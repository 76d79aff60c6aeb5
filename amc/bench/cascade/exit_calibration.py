"""How well a scorer's estimates hold at each exit, and the oracle that no stop rule can beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from amc.cascade import ACCURACIES, CONFIDENCE, NEVER_STOPS, Outcomes, Records, StopRule, scores_of, simulate


@dataclass(frozen=True)
class ExitCalibration:
    """What one exit of a stop rule does on records, which should not be those that it was fitted to.

    Attributes:
        reached, share: of the examples, how many visited the stage, and how many stopped there.
        accuracy: of those that stopped there; None where there are none.
        estimated: their mean score, where scores are accuracies.
        confidence_error, estimate_error: expected calibration errors over all examples, of the confidence and of the
            score (None where scores are no accuracies).
    """

    stage: str
    reached: float
    share: float
    accuracy: float | None
    estimated: float | None
    confidence_error: float
    estimate_error: float | None


def oracle(records: Records, added: Sequence[float]) -> Outcomes:
    """Stopping at the first stage that is right, which only the labels tell; at the last where none is."""
    stages = len(records.stages)
    first = records.right.to(torch.int8).argmax(0)
    stop = torch.where(records.right.any(0), first, stages - 1)
    predictions = records.predictions.gather(0, stop[None])[0]
    cost = torch.tensor(list(accumulate(added)), dtype=torch.float64)[stop]
    return Outcomes(stop, stop, predictions, predictions == records.labels, cost)


def exit_reports(records: Records, rule: StopRule, added: Sequence[float]) -> tuple[ExitCalibration, ...]:
    """One report for each stage."""
    scores = scores_of(records, rule.scorer)
    stop = simulate(records, rule, added, scores).stop
    accuracies = rule.scorer.kind in ACCURACIES
    reports = []
    for stage, name in enumerate(records.stages):
        here = stop == stage
        right, some = records.right[stage], bool(here.any())
        known = here & (scores[stage] != NEVER_STOPS)
        reports.append(
            ExitCalibration(
                stage=name,
                reached=float((stop >= stage).double().mean()),
                share=float(here.double().mean()),
                accuracy=float(right[here].double().mean()) if some else None,
                estimated=float(scores[stage][known].mean()) if accuracies and bool(known.any()) else None,
                confidence_error=calibration_error(records.features[stage, :, CONFIDENCE], right),
                estimate_error=calibration_error(scores[stage], right) if accuracies else None,
            )
        )
    return tuple(reports)


def calibration_error(estimate: Tensor, right: Tensor, number: int = 15) -> float:
    """Expected calibration error (ECE): how far, on average over equal-width bins, accuracy lies from the estimate.

    Args:
        estimate: (n,) float64 in [0, 1], or `NEVER_STOPS` where there is none: left out.
        right: (n,) bool.
    """
    known = estimate != NEVER_STOPS
    bias = right[known].double() - estimate[known]
    place = (estimate[known] * number).long().clamp(0, number - 1)
    return float(torch.bincount(place, weights=bias, minlength=number).abs().sum() / max(1, len(bias)))
