"""What each group's cut alone does: measured on a few examples before the first trial, and kept with the study.

The curves order policies under a cap well before any is measured, so that the search needs fewer trials: see
`amc_predictor.curves`. Networks are made as for a trial, by the same cut and fold. What counts is how far their
outputs are from the dense network's: that needs no labels, and is known from few examples much better than the loss,
which on examples that the dense network happens to get wrong falls as often as it rises.
"""

from __future__ import annotations

from math import ceil, isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from amc.study.measure import Measure
from amc.study.settings import SearchSettings
from amc.study.trials import Study
from amc.system.progress import Progress, Silent
from amc.zoo.call import float_tensors
from amc_predictor import SensitivityCurves
from amc_search import Space

LEVELS = (0.0, 0.125, 0.3, 0.6)  # kept fractions of a group at which it is measured, as near as its steps allow
SHARE = 0.25  # of the search's trials, what the curves may cost at most, on fewer images if need be
FEWEST = 32  # images below which they say too little
HELD = 2**28  # bytes of the whole network's outputs after which no further batch is looked at
SETTLED = 0.5  # training images for BatchNorm for each image that is measured, at most

SENSITIVITY = "sensitivity"  # study attribute

Curves = list[tuple[list[float], list[float]]]  # a group's kept fractions and what is lost at each


def held_sensitivity(study: Study) -> SensitivityCurves | None:
    """The curves that the study holds, if any."""
    curves = study.attribute(SENSITIVITY)
    return (SensitivityCurves.of(curves) or None) if curves else None


def measure_sensitivity(study: Study, settings: SearchSettings, progress: Progress | None = None) -> None:
    """Measure the curves and keep them with the study, unless it holds them already.

    None are measured where the settings want none, or where they would cost more than they are worth to so short a
    search.
    """
    if images_for(study.measure, settings) and study.attribute(SENSITIVITY) is None:
        study.set_attribute(SENSITIVITY, sensitivity_curves(study.measure, settings, progress))


def sensitivity_curves(measure: Measure, settings: SearchSettings, progress: Progress | None = None) -> Curves:
    """Cut each group alone to each of `LEVELS` and measure how far that moves the outputs.

    The distance is the divergence from the whole network's classes, in nats, or a relative square error where outputs
    are no logits (`amc.zoo.task`). A network whose outputs are not finite leaves its knot out; outputs that do not
    correspond to the dense network's, as a detector's boxes do not, give no curves at all, nor do no images.
    """
    if not images_for(measure, settings):
        return []
    rough, space = _rough(measure, settings), measure.trace.space
    # with BatchNorm settled on as few images: what that does to the outputs is no group's doing
    whole = _whole_outputs(rough, rough.realise(space.high))
    stage = (progress or Silent()).stage("cut each group alone", networks(space))
    curves: Curves = []
    for group in range(len(space)):
        kept: list[float] = []
        moved: list[float] = []
        for count in levels(space, group):
            policy = space.high.copy()
            policy[group] = count
            distance = _distance(rough, rough.realise(policy), whole)
            stage.advance()
            if distance is None:
                return []
            if isfinite(distance):
                kept.append(float(count / space.high[group]))
                moved.append(distance)
        curves.append((kept, moved))
    return curves


def levels(space: Space, group: int) -> NDArray[np.int64]:
    """The keep-counts at which a group is measured, rising, the whole group not among them."""
    counts = np.arange(space.low[group], space.high[group], space.step[group])
    if not len(counts):
        return counts
    nearest = np.abs(counts[None] - np.array(LEVELS)[:, None] * space.high[group]).argmin(axis=1)
    return np.unique(counts[nearest])


def networks(space: Space) -> int:
    """How many networks are measured."""
    return sum(len(levels(space, group)) for group in range(len(space)))


def images_for(measure: Measure, settings: SearchSettings) -> int:
    """On how many images networks are compared: as the settings say, or what `SHARE` of the trials buys; or 0."""
    wanted, count = min(settings.sensitivity_images, measure.images), max(1, networks(measure.trace.space))
    affordable = SHARE * settings.trials * measure.passes / ((1 + SETTLED) * count)
    return min(wanted, int(affordable)) if affordable >= min(wanted, FEWEST) else 0


def sensitivity_price(measure: Measure, settings: SearchSettings) -> int:
    """What the curves cost, in trials, rounded up: images passed through a network for them, and for one trial."""
    if not images_for(measure, settings):
        return 0
    return ceil(networks(measure.trace.space) * _rough(measure, settings).passes / measure.passes)


def _rough(measure: Measure, settings: SearchSettings) -> Measure:
    """What measures on few images, after no training."""
    images = images_for(measure, settings)
    return measure.rough(images, min(measure.recovery.batchnorm_images, int(SETTLED * images)))


def _whole_outputs(rough: Measure, model: nn.Module) -> list[tuple[Any, int, Any]]:
    """Batches, their sizes and what the whole network makes of them: fewer where outputs are as large as images."""
    found: list[tuple[Any, int, Any]] = []
    held = 0
    for batch in rough.batches():
        outputs = rough.outputs(model, batch)
        found.append((batch, len(rough.task.call(batch)), outputs))
        held += sum(tensor.numel() * tensor.element_size() for tensor in float_tensors(outputs))
        if held > HELD:
            break
    return found


def _distance(rough: Measure, model: nn.Module, whole: list[tuple[Any, int, Any]]) -> float | None:
    """How far the outputs of `model` are from those of the whole network, the mean over examples; None: unknown."""
    total, count = 0.0, 0
    for batch, size, wanted in whole:
        distance = rough.task.distil(rough.outputs(model, batch), wanted, 1.0, batch)
        if distance is None:
            return None
        total, count = total + float(distance) * size, count + size
    return total / max(count, 1)
