"""The search: informative policies are measured until a study holds as many trials as asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from amc.cost.budget import Budget, parse_budgets
from amc.cost.trace import Trace
from amc.study.measure import Measure
from amc.study.optimize import unreachable
from amc.study.sensitivity import held_sensitivity, measure_sensitivity
from amc.study.settings import SearchSettings
from amc.study.stopping import CheaperTrials
from amc.study.trial import Trial
from amc.study.trials import Study
from amc.system.errors import UsageError
from amc.system.progress import Progress, Silent
from amc_predictor import PREDICTORS
from amc_search import Cap, CapUnreachable, EvolutionarySampler, Policies, Space, uniform


def search(
    space: Trace,
    measure: Measure,
    budgets: str | Budget | Iterable[str | Budget],
    trials: int | None = None,
    *,
    storage: str | None = None,
    settings: SearchSettings | None = None,
    progress: Progress | None = None,
) -> Study:
    """Measure policies that tell most about the best one under `budgets`, and return the study of all trials.

    Args:
        space: what `trace` gave.
        measure: of the same network.
        budgets: caps that must all hold.
        trials: policies to measure in all; those that the storage holds already count. None: as `settings` has it.
        storage: an Optuna storage URL, which any number of processes may share; None: this process's memory.
        settings: how policies are chosen; None: the defaults.
        progress: where it is shown; None shows nothing.

    Raises:
        AmcError: a budget is malformed or unreachable, the network cannot be measured, or its study not be written.
    """
    if measure.trace is not space:
        raise UsageError("a search needs a measure of the same traced network, but this one was made with another")
    if trials is not None and trials < 1:
        raise UsageError(f"a search must measure at least 1 policy, but trials = {trials}")
    wanted = (settings or SearchSettings()).model_copy(update={} if trials is None else {"trials": trials})
    study = Study.of(measure, storage)
    run_search(study, space.caps(parse_budgets(budgets)), wanted, progress or Silent())
    return study


def run_search(study: Study, caps: tuple[Cap, ...], settings: SearchSettings, progress: Progress) -> None:
    """Measure in this process until the study holds `settings.trials` trials, whoever measured them."""
    uniform_policy(study.space, caps)
    measure_sensitivity(study, settings, progress)
    study.run(stopping_measure(study, caps, settings), sampler_of(study, caps, settings), settings.trials, progress)


def uniform_policy(space: Space, caps: tuple[Cap, ...]) -> Policies:
    """The same ratio for every group, (d,), as near to the caps as the grid allows. Raises `BudgetUnreachable`."""
    try:
        return uniform(space, caps)
    except CapUnreachable as error:
        raise unreachable(error) from None


def stopping_measure(
    study: Study, caps: Sequence[Cap], settings: SearchSettings
) -> Callable[[NDArray[np.int64]], Trial]:
    """What measures proposed policies: no longer than they can matter, unless the settings say so."""
    if not settings.stop_early:
        return study.measure
    units = tuple(dict.fromkeys(cap.cost.unit for cap in caps))
    return partial(study.measure, floor=CheaperTrials(lambda: study.trials, units))


def sampler_of(study: Study, caps: tuple[Cap, ...], settings: SearchSettings) -> EvolutionarySampler:
    """What proposes policies, the same in every process of a study."""
    sensitivity, seed = held_sensitivity(study), study.measure.seed
    return EvolutionarySampler(
        study.space,
        caps,
        lambda: PREDICTORS[settings.predictor](seed=seed, sensitivity=sensitivity),
        seed=seed,
        acquisition=settings.acquisition,
        is_informed=sensitivity is not None,
        dense_accuracy=study.dense_accuracy,
        values=study.labels,
    )
