"""From a study to one policy: fit, ascend under the caps, measure the best few, fit again; then keep the best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save

from amc.cost.budget import Budget, format_cost, parse_budgets
from amc.study.objective import objective_values
from amc.study.policy import Policy
from amc.study.sensitivity import held_sensitivity
from amc.study.trial import Trial
from amc.study.trials import Study
from amc.system.errors import BudgetUnreachable, ModelError, UsageError
from amc.system.files import write_whole
from amc_predictor import PREDICTORS, CalibratedPredictor, SensitivityCurves
from amc_search import (
    Candidates,
    Cap,
    CapUnreachable,
    Certificate,
    Learned,
    Policies,
    Space,
    ascend,
    certify,
    exploit,
    is_feasible,
    uniform,
)

POOR_KENDALL = 0.4  # below it, the order of two policies is little better than a guess
KAPPA = 1.0  # the bound that the ascent maximises is mean - KAPPA x standard deviation
WARM = 32  # best measured policies that an ascent also starts from
FEWEST = 3  # trials that a predictor can be fitted to, beside the dense network
CANDIDATES = 3  # best by prediction that are measured for another budget


def optimize(
    study: Study,
    budgets: str | Budget | Iterable[str | Budget],
    *,
    candidates: int = CANDIDATES,
    predictor: str = "ensemble",
) -> Policy:
    """The best policy under `budgets`, by what the study has measured: no new search, seconds.

    Args:
        study: what `search` gave; it may have been made for other budgets.
        budgets: caps that must all hold.
        candidates: how many of the best by prediction are measured, beside uniform ratios, before one is taken; 0
            takes the best by prediction as it is.
        predictor: what learns accuracy from the trials: `ensemble`, or `mlp`, networks alone.

    Raises:
        BudgetUnreachable: no policy fits.
        UsageError: a budget is malformed.
    """
    fit = fit_predictor(study, predictor)
    caps = study.measure.trace.caps(parse_budgets(budgets))
    return best_policy(study, fit.predictor, caps, candidates)


def best_policy(study: Study, predictor: CalibratedPredictor, caps: tuple[Cap, ...], candidates: int) -> Policy:
    """The best policy under the caps by a fitted predictor; see `optimize`."""
    found = best_candidates(predictor, study.space, caps, study.trials, study.measure.seed)
    if not candidates:
        return policy_of(study, predictor, found.policies[0])
    tried = [*found.policies[:candidates], uniform(study.space, caps)]  # far from the trials uniform may be best
    if not study.measure_all(tried, study.measure):
        raise ModelError(f"a candidate must be measurable, but none was; the last: {study.failures[-1]}")
    chosen = best_of(study.trials, caps)
    return policy_of(study, predictor, np.array(chosen.policy, dtype=np.int64), chosen)


def policy_of(
    study: Study, predictor: CalibratedPredictor, counts: NDArray[np.int64], trial: Trial | None = None
) -> Policy:
    """Counts (d,) with their costs and their own prediction."""
    with torch.no_grad():
        mean, std = predictor.predict(study.space.fractions(counts[None]))
    costs = study.measure.trace.costs_of(counts)
    return Policy(study.space.names, tuple(counts.tolist()), costs, float(mean[0]), float(std[0]), trial)


@dataclass(frozen=True)
class Selection:
    """The policy chosen, and what it was chosen from.

    Attributes:
        trial: the chosen policy's own measurement.
        candidates: what the last ascent found, best first by prediction.
        certificate: what an additive model of all trials says of the best policy, or None.
    """

    trial: Trial
    candidates: Candidates
    certificate: Certificate | None

    @property
    def policy(self) -> NDArray[np.int64]:
        return np.array(self.trial.policy, dtype=np.int64)


@dataclass(frozen=True)
class Fit:
    """A predictor and what it learned from.

    Attributes:
        predictor: fitted.
        trials: those it saw, in their order; the dense network was the last example.
    """

    predictor: CalibratedPredictor
    trials: tuple[Trial, ...]


def fit_predictor(study: Study, name: str = "ensemble") -> Fit:
    """A predictor of accuracy from all trials of the study, its sensitivity curves and the dense network's accuracy.

    Raises:
        UsageError: the study holds too few trials.
    """
    if len(study.trials) < FEWEST:
        raise UsageError(
            f"a predictor needs at least {FEWEST} measured policies, got {len(study.trials)}; give more trials"
        )
    return learn(study.space, study.trials, study.dense_accuracy, study.measure.seed, held_sensitivity(study), name)


def learn(
    space: Space,
    trials: Sequence[Trial],
    dense_accuracy: float,
    seed: int,
    sensitivity: SensitivityCurves | None = None,
    name: str = "ensemble",
) -> Fit:
    """A predictor of accuracy, of `PREDICTORS` by name, from trials and the dense network's own accuracy."""
    predictor = PREDICTORS[name](seed=seed, sensitivity=sensitivity)
    return Fit(_fitted(predictor, space, *_known(space, trials, dense_accuracy)), tuple(trials))


def _fitted(
    predictor: CalibratedPredictor, space: Space, policies: Policies, values: NDArray[np.float64]
) -> CalibratedPredictor:
    predictor.fit(space.fractions(policies), torch.as_tensor(values).float())
    return predictor


def _known(space: Space, trials: Sequence[Trial], dense_accuracy: float) -> tuple[Policies, NDArray[np.float64]]:
    """The policies of trials and the dense one, (n, d), and their objective values, (n,)."""
    policies = np.array([*(trial.policy for trial in trials), space.high], dtype=np.int64)
    return policies, np.append(objective_values(trials), dense_accuracy)


def best_candidates(
    predictor: CalibratedPredictor, space: Space, caps: tuple[Cap, ...], trials: list[Trial], seed: int
) -> Candidates:
    """Ascend the predictor under the caps, from random starts and from the best policies measured.

    Raises:
        BudgetUnreachable: no legal policy fits; the message names the smallest reachable cost.
    """
    measured = np.array([trial.policy for trial in trials], dtype=np.int64).reshape(-1, len(space))
    order = np.argsort(-objective_values(trials), kind="stable")[:WARM]
    try:
        return ascend(predictor, space, caps, kappa=KAPPA, seed=seed, warm=measured[order])
    except CapUnreachable as error:
        raise unreachable(error) from None


def unreachable(error: CapUnreachable) -> BudgetUnreachable:
    """The search's error in the user's units."""
    limit, smallest = format_cost(error.unit, error.limit), format_cost(error.unit, error.smallest)  # type: ignore[arg-type]
    return BudgetUnreachable(
        f"a budget must be reachable, but {limit} is below the smallest policy's {smallest}; "
        "raise the budget, lower surgery.round_to, or take a smaller network"
    )


def select(study: Study, predictor: CalibratedPredictor, caps: tuple[Cap, ...], number: int) -> Selection:
    """Measure the best `number` candidates, in rounds that learn from each other; the best measured policy wins.

    Args:
        study: its trials count as well: an earlier one may win.
        predictor: fitted on the study as it is.
        caps: all hold.
        number: of candidates, at most.

    Raises:
        BudgetUnreachable: no legal policy fits.
    """
    fitted, seed = [predictor], study.measure.seed  # the predictor serves the first round

    def known() -> tuple[Policies, NDArray[np.float64]]:
        return _known(study.space, study.trials, study.dense_accuracy)

    def learned() -> Learned:
        examples = known()
        if fitted:
            return Learned(*examples, fitted.pop())
        again = type(predictor)(seed=seed, sensitivity=predictor.sensitivity)
        return Learned(*examples, _fitted(again, study.space, *examples))

    def measured(policies: list[NDArray[np.int64]]) -> None:
        study.measure_all(policies, study.measure)

    try:
        found = exploit(study.space, caps, number, learned, measured, seed=seed, kappa=KAPPA)
    except CapUnreachable as error:
        raise unreachable(error) from None
    certificate = certify(study.space, caps, *known())
    return Selection(best_of(study.trials, caps), found, certificate)


def best_of(trials: Sequence[Trial], caps: tuple[Cap, ...]) -> Trial:
    """The trial under all caps with the best objective value, of those measured to the end; at least one must be."""
    values = objective_values(trials)
    fitting = [index for index, trial in enumerate(trials) if not trial.stopped and _fits(trial, caps)]
    return trials[max(fitting, key=lambda index: values[index])]


def _fits(trial: Trial, caps: tuple[Cap, ...]) -> bool:
    policies: Policies = np.array([trial.policy], dtype=np.int64)
    return bool(is_feasible(policies, caps)[0])


def save_predictor(path: Path, predictor: CalibratedPredictor) -> None:
    """Write a fitted predictor; `load_predictor` gives it back exactly."""
    payload = save({name: tensor.contiguous() for name, tensor in predictor.state().items()})
    write_whole(path, lambda file: file.write(payload))


def load_predictor(path: Path, name: str = "ensemble") -> CalibratedPredictor | None:
    """One of `PREDICTORS` by name; None when the file is missing, broken, or of another version."""
    try:
        return PREDICTORS[name].from_state(load(path.read_bytes()))
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def warn_if_poor(predictor: CalibratedPredictor) -> str | None:
    """One plain sentence when the predictor cannot order policies."""
    ranks = predictor.ranks
    if ranks is None or ranks.kendall >= POOR_KENDALL:
        return None
    return (
        f"warning: the predictor orders unseen policies poorly (Kendall {ranks.kendall:.2f}, cross-validated); "
        "the policy chosen may be far from the best: measure more (--trials), or on more images"
    )
