"""What the search learns from: measured accuracy, less its noise.

Top-1 accuracy on some thousand images is a coarse number: two good policies differ by less than its noise. The
cross-entropy of the same outputs is much finer, once a temperature has taken out how confident the network happens to
be (recovery changes that, not the ranking). So accuracy is regressed on this calibrated loss over all trials, and a
trial's label lies mostly on that curve. On 50 random policies of a ResNet-20 at 43 to 50 % of its multiply-adds,
2,000 images, the order agreed with that on 11,000 others at Kendall 0.76 for accuracy and 0.83 for these labels.

A trial that was stopped early has accuracy and loss of the images it saw. It is labelled like any other, and has the
less say in where the curve lies the fewer they were.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from amc.study.trial import Trial

ON_CURVE = 0.75  # the share of a good trial's label that comes from the curve; the rest is the accuracy itself
NEAR = 0.05  # accuracies this far below the best one take half that share: a wrecked network is told by its accuracy
FEWEST = 8  # trials for a curve
RESOLUTION = 0.01  # accuracies this close to the best one steer the curve most


def smoothed_objective(
    accuracy: NDArray[np.float64], loss: NDArray[np.float64], seen: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Labels (n,) in [0, 1] from accuracies (n,) and calibrated losses (n,), nats, of the same trials.

    The curve is a parabola in exp(-loss), fitted closest where accuracy is high: there the order matters. Fewer than
    `FEWEST` trials, or losses all alike, leave the accuracies as they are. `seen` is the share of the images that
    each trial saw, (n,) in (0, 1]; None: all.
    """
    likelihood = np.exp(-loss)
    if len(accuracy) < FEWEST or np.ptp(likelihood) < 1e-9:
        return accuracy
    scaled = (likelihood - likelihood.max()) / np.ptp(likelihood)
    weights = RESOLUTION / (RESOLUTION + accuracy.max() - accuracy)
    if seen is not None:
        weights = weights * np.sqrt(seen)
    curve = np.polyval(np.polyfit(scaled, accuracy, 2, w=weights), scaled)
    share = ON_CURVE / (1 + ((accuracy.max() - accuracy) / NEAR) ** 2)
    labels: NDArray[np.float64] = np.clip(share * curve + (1 - share) * accuracy, 0.0, 1.0)
    return labels


def objective_values(trials: Sequence[Trial]) -> NDArray[np.float64]:
    """The labels (n,) of trials of one study, whole or stopped."""
    most = max((trial.images or 0 for trial in trials), default=0)
    seen = [trial.images / most if trial.images else 1.0 for trial in trials]
    accuracy, loss = (np.array([getattr(trial, of) for trial in trials]) for of in ("accuracy", "loss"))
    return smoothed_objective(accuracy, loss, np.array(seen))
