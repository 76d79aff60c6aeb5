"""The search of a run: policies are measured until the study holds as many trials as asked for.

By this process alone, or by workers that it starts and looks after; workers elsewhere may join either way.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from amc.crew import Crew
from amc.dense import Dense
from amc.progress import Progress
from amc.pulse import name_of
from amc.recipe import Recipe, resolved_toml
from amc.study import Study
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
    if wanted.workers == 1 or len(study.trials) >= wanted.trials:
        study.run(dense.measure, sampler_of(dense, caps, accuracy, study), wanted.trials, progress)
        return study
    command = [sys.executable, "-m", "amc.cli", "worker", str(folder), "--leashed", "--quiet"]
    threads = str(dense.recipe.threads or 1)

    def environment(number: int) -> dict[str, str]:
        device = {"LOCAL_RANK": str(number % torch.cuda.device_count())} if torch.cuda.is_available() else {}
        return {"OMP_NUM_THREADS": threads, **device}

    def bury(pid: int) -> None:
        name = name_of(folder, pid)
        study.bury(lambda owner: owner == name)

    with Crew(command, wanted.workers, bury, environment) as crew:
        study.follow(wanted.trials, progress, crew.tend)
    return study


def sampler_of(dense: Dense, caps: tuple[Cap, ...], accuracy: float, study: Study) -> EvolutionarySampler:
    """What proposes policies, the same in every process of a study."""
    return EvolutionarySampler(
        dense.space,
        caps,
        lambda: EnsemblePredictor(seed=dense.recipe.seed),
        seed=dense.recipe.seed,
        acquisition=dense.recipe.search.acquisition,
        dense_accuracy=accuracy,
        labels=study.labels,
    )


def shareable(recipe: Recipe) -> Recipe:
    """The recipe as others may read it: without the storage, whose URL may hold a password, and the folder."""
    return recipe.model_copy(update={"out": None, "search": recipe.search.model_copy(update={"study": None})})
