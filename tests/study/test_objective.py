from __future__ import annotations

import numpy as np

from amc.study.objective import FEWEST, objective_values, smoothed_objective
from amc.study.trial import Trial


def world(seed: int, number: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True accuracies, accuracies measured on 2,000 pictures, and losses that follow the true ones closely."""
    rng = np.random.default_rng(seed)
    true = 0.93 - rng.gamma(1.0, 0.01, number)
    measured = rng.binomial(2000, true) / 2000
    return true, measured, 3 * (1 - true) * (1 + rng.normal(0, 0.005, number))


def test_labels_are_nearer_to_the_truth_than_the_accuracies_measured() -> None:
    """With a loss that follows the true accuracy, the labels' error is smaller, in every one of ten worlds."""
    for seed in range(10):
        true, measured, loss = world(seed)
        assert np.abs(smoothed_objective(measured, loss) - true).mean() < 0.8 * np.abs(measured - true).mean()


def test_few_trials_are_left_as_they_are() -> None:
    """A curve needs points."""
    _, measured, loss = world(0, FEWEST - 1)
    assert (smoothed_objective(measured, loss) == measured).all()
    assert (smoothed_objective(measured, np.ones_like(measured)) == measured).all()


def test_a_wrecked_policy_keeps_its_own_accuracy() -> None:
    """The curve is that of good policies: far below them it has no say."""
    _, measured, loss = world(1)
    label = smoothed_objective(np.append(measured, 0.1), np.append(loss, 2.3))[-1]
    assert abs(label - 0.1) < 0.02


def test_labels_are_accuracies() -> None:
    """Between 0 and 1, finite, one for each trial, whatever the losses."""
    rng = np.random.default_rng(3)
    labels = smoothed_objective(rng.random(30), rng.exponential(2.0, 30))
    assert labels.shape == (30,) and np.isfinite(labels).all()
    assert (labels >= 0).all() and (labels <= 1).all()


def test_a_stopped_trial_has_little_say_in_the_curve() -> None:
    """A lucky accuracy told on few pictures moves the labels of the others less than the same told on all."""
    _, measured, loss = world(2)
    accuracy, odd = np.append(measured, measured.max()), np.append(loss, np.quantile(loss, 0.9))
    alone = smoothed_objective(measured, loss)
    seen = np.append(np.ones_like(measured), 0.05)
    whole, stopped = (np.abs(smoothed_objective(accuracy, odd, part)[:-1] - alone).mean() for part in (None, seen))
    assert stopped < 0.3 * whole


def test_whole_and_stopped_trials_are_labelled_together() -> None:
    """A label each; trials that do not say how many pictures they saw count as whole."""
    _, measured, loss = world(4, 30)

    def trials(images: list[int | None]) -> list[Trial]:
        known = zip(measured, loss, images, strict=True)
        return [Trial((8,), {}, float(a), float(b), {}, n == 250, n) for a, b, n in known]

    mixed = objective_values(trials([250 if index % 3 == 0 else 2000 for index in range(30)]))
    assert mixed.shape == (30,) and (np.abs(mixed - measured) < 0.05).all()
    assert (objective_values(trials([None] * 30)) == smoothed_objective(measured, loss)).all()
    assert len(objective_values([])) == 0
