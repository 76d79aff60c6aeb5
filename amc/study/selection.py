"""From a study to one policy: fit, climb under the caps, measure the best few, fit again; then keep the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save

from amc.cost.budget import format_cost
from amc.study.objective import labels_of
from amc.study.trial import Measure, Trial
from amc.study.trials import Study
from amc.system.errors import BudgetUnreachable
from amc.system.files import write_whole
from amc_predictor import EnsemblePredictor, Sensitivity
from amc_search import (
    Candidates,
    Cap,
    CapUnreachable,
    Certificate,
    Learned,
    Policies,
    Space,
    certify,
    climb,
    close,
    is_feasible,
)

POOR_KENDALL = 0.4  # below it, the order of two policies is little better than a guess
KAPPA = 1.0  # the bound climbed is mean - KAPPA x standard deviation


@dataclass(frozen=True)
class Selection:
    """The policy chosen, and what it was chosen from.

    Attributes:
        trial: the chosen policy's own measurement.
        candidates: what the last climb found, best first by prediction.
        certificate: what an additive model of all trials says of the best policy, or None.
    """

    trial: Trial
    candidates: Candidates
    certificate: Certificate | None

    @property
    def policy(self) -> NDArray[np.int64]:
        return np.array(self.trial.policy, dtype=np.int64)


def fit_predictor(
    space: Space, trials: list[Trial], dense_accuracy: float, seed: int, sensitivity: Sensitivity | None = None
) -> EnsemblePredictor:
    """A predictor of accuracy from all trials and the dense network's own."""
    return _fitted(space, *_known(space, trials, dense_accuracy), seed, sensitivity)


def _fitted(
    space: Space, policies: Policies, labels: NDArray[np.float64], seed: int, sensitivity: Sensitivity | None
) -> EnsemblePredictor:
    predictor = EnsemblePredictor(seed=seed, sensitivity=sensitivity)
    predictor.fit(space.fractions(policies), torch.as_tensor(labels).float())
    return predictor


def _known(space: Space, trials: list[Trial], dense_accuracy: float) -> tuple[Policies, NDArray[np.float64]]:
    """All measured policies and the dense one, (n, d), and their labels, (n,)."""
    policies = np.array([*(trial.policy for trial in trials), space.high], dtype=np.int64)
    return policies, np.append(labels_of(trials), dense_accuracy)


def best_candidates(
    predictor: EnsemblePredictor, space: Space, caps: tuple[Cap, ...], trials: list[Trial], seed: int
) -> Candidates:
    """Climb the predictor under the caps, from random starts and from the best policies measured.

    Raises:
        BudgetUnreachable: no legal policy fits; the message names the smallest reachable cost.
    """
    measured = np.array([trial.policy for trial in trials], dtype=np.int64).reshape(-1, len(space))
    order = np.argsort(-labels_of(trials), kind="stable")[:32]
    try:
        return climb(predictor, space, caps, kappa=KAPPA, seed=seed, warm=measured[order])
    except CapUnreachable as error:
        raise unreachable(error) from None


def unreachable(error: CapUnreachable) -> BudgetUnreachable:
    """The search's error in the user's units."""
    limit, smallest = format_cost(error.unit, error.limit), format_cost(error.unit, error.smallest)  # type: ignore[arg-type]
    return BudgetUnreachable(
        f"a budget must be reachable, but {limit} is below the smallest policy's {smallest}; "
        "raise the budget, lower surgery.round_to, or take a smaller network"
    )


def select(
    study: Study,
    measure: Measure,
    predictor: EnsemblePredictor,
    caps: tuple[Cap, ...],
    number: int,
    seed: int,
    dense_accuracy: float,
) -> Selection:
    """Measure the best `number` candidates, in rounds that learn from each other; the best measured policy wins.

    Args:
        study: its trials count as well: an earlier one may win.
        measure: what measures a candidate.
        predictor: fitted on the study as it is.
        caps: all hold.
        number: of candidates, at most.
        seed: of climbs and of the predictors of later rounds.
        dense_accuracy: of the dense network, which is learned from.

    Raises:
        BudgetUnreachable: no legal policy fits.
    """
    fitted = [predictor]  # to be used once

    def learn() -> Learned:
        known = _known(study.space, study.trials, dense_accuracy)
        return Learned(*known, fitted.pop() if fitted else _fitted(study.space, *known, seed, predictor.sensitivity))

    def measured(policies: list[NDArray[np.int64]]) -> None:
        study.measure_all(policies, measure)

    try:
        found = close(study.space, caps, number, learn, measured, seed=seed, kappa=KAPPA)
    except CapUnreachable as error:
        raise unreachable(error) from None
    trials = study.trials
    certificate = certify(study.space, caps, *_known(study.space, trials, dense_accuracy))
    return Selection(best_of(trials, caps), found, certificate)


def best_of(trials: Sequence[Trial], caps: tuple[Cap, ...]) -> Trial:
    """The trial under all caps with the best label, of those measured to the end; at least one must be."""
    labels = labels_of(trials)
    fitting = [index for index, trial in enumerate(trials) if not trial.stopped and _fits(trial, caps)]
    return trials[max(fitting, key=lambda index: labels[index])]


def _fits(trial: Trial, caps: tuple[Cap, ...]) -> bool:
    policies: Policies = np.array([trial.policy], dtype=np.int64)
    return bool(is_feasible(policies, caps)[0])


def save_predictor(path: Path, predictor: EnsemblePredictor) -> None:
    """Write a fitted predictor; `load_predictor` gives it back exactly."""
    payload = save({name: tensor.contiguous() for name, tensor in predictor.state().items()})
    write_whole(path, lambda file: file.write(payload))


def load_predictor(path: Path) -> EnsemblePredictor | None:
    """None when the file is missing, broken, or of another version."""
    try:
        return EnsemblePredictor.from_state(load(path.read_bytes()))
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def warn_if_poor(predictor: EnsemblePredictor) -> str | None:
    """One plain sentence when the predictor cannot order policies."""
    ranks = predictor.ranks
    if ranks is None or ranks.kendall >= POOR_KENDALL:
        return None
    return (
        f"warning: the predictor orders unseen policies poorly (Kendall {ranks.kendall:.2f}, cross-validated); "
        "the policy chosen may be far from the best: measure more (--trials), or on more pictures"
    )
