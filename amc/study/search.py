"""The search of a run: policies are measured until the study holds as many trials as asked for.

By this process alone, or by workers that it starts and looks after; workers elsewhere may join either way.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from amc.job.dense import Dense
from amc.job.recipe import Recipe, resolved_toml
from amc.study.heartbeat import name_of
from amc.study.sensitivity import sensitivity_of
from amc.study.stopping import Rivals
from amc.study.trial import Trial
from amc.study.trials import Study
from amc.study.worker_pool import Crew
from amc.system.progress import Progress
from amc_predictor import EnsemblePredictor
from amc_search import Cap, EvolutionarySampler


def search(dense: Dense, caps: tuple[Cap, ...], accuracy: float, folder: Path, progress: Progress) -> Study:
    """Measure informative policies; the folder must be held by this process.

    Args:
        dense: the network.
        caps: all hold.
        accuracy: of the dense network.
        folder: the run's.
        progress: where it is shown.

    Raises:
        AmcError: the network cannot be measured, or its study not be written; what was measured is kept.
    """
    wanted = dense.recipe.search
    study = Study(wanted.study, folder, dense.protocol(), dense.space, alone=True)
    study.describe(resolved_toml(shareable(dense.recipe)), accuracy)
    sensitivity_of(dense, study, progress)  # once, and not by every worker
    if wanted.workers == 1 or len(study.trials) >= wanted.trials:
        study.run(measure_of(dense, study), sampler_of(dense, caps, accuracy, study), wanted.trials, progress)
        return study
    with crew_of(dense.recipe, study, folder, wanted.workers) as crew:
        study.follow(wanted.trials, progress, crew.tend)
    return study


def crew_of(recipe: Recipe, study: Study, folder: Path, number: int) -> Crew:
    """Workers for a study of a run folder that this process holds."""
    name = f"amc-{study.protocol.digest}"  # a shared storage may hold others
    command = [sys.executable, "-m", "amc.cli", "worker", str(folder), "--study", name, "--leashed", "--quiet"]
    threads = str(recipe.threads or 1)

    def environment(place: int) -> dict[str, str]:
        device = {"LOCAL_RANK": str(place % torch.cuda.device_count())} if torch.cuda.is_available() else {}
        return {"OMP_NUM_THREADS": threads, **device}

    def bury(pid: int) -> None:
        dead = name_of(folder, pid)
        study.bury(lambda owner: owner is not None and owner.startswith(dead))

    return Crew(command, number, bury, environment)


def measure_of(dense: Dense, study: Study) -> Callable[[NDArray[np.int64]], Trial]:
    """What measures proposed policies: no longer than they can matter, where the recipe has it so."""
    if not dense.recipe.search.stop_early:
        return dense.measure
    units = tuple(dict.fromkeys(budget.unit for budget in dense.recipe.budgets))
    return partial(dense.measure, floor=Rivals(lambda: study.trials, units))


def sampler_of(dense: Dense, caps: tuple[Cap, ...], accuracy: float, study: Study) -> EvolutionarySampler:
    """What proposes policies, the same in every process of a study."""
    sensitivity = sensitivity_of(dense, study)
    return EvolutionarySampler(
        dense.space,
        caps,
        lambda: EnsemblePredictor(seed=dense.recipe.seed, sensitivity=sensitivity),
        seed=dense.recipe.seed,
        acquisition=dense.recipe.search.acquisition,
        is_informed=sensitivity is not None,
        dense_accuracy=accuracy,
        labels=study.labels,
    )


def shareable(recipe: Recipe) -> Recipe:
    """The recipe as others may read it: without the storage, whose URL may hold a password, and the folder."""
    return recipe.model_copy(update={"out": None, "search": recipe.search.model_copy(update={"study": None})})
