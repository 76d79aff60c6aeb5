"""`--round-to auto`, settled before anything is traced: every process of a run takes the same step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from amc.cost.layer_speeds import Rounding, measure_rounding
from amc.job.job import Brought, bring, example_call, with_step
from amc.job.recipe import Recipe
from amc.job.run_folder import RECIPE, read_recipe
from amc.system.device import Compute
from amc.system.progress import Progress
from amc.train import distributed


def settle_rounding(recipe: Recipe, folder: Path | None, progress: Progress, brought: Brought | None = None) -> Recipe:
    """The recipe with a number for `surgery.round_to`: that of the run in `folder`, else measured if it is `auto`.

    Raises:
        ModelError, DataError: what is wrong with the network or the data.
    """
    if recipe.surgery.round_to != "auto":
        return recipe

    def decide() -> NDArray[np.int64]:
        if folder is not None and (folder / RECIPE).is_file():
            return np.array([read_recipe(folder).surgery.step])
        found = recipe_rounding(recipe, brought)
        progress.say(found.text)
        return np.array([found.step])

    return with_step(recipe, int(distributed.from_leader(1, decide)[0]))


def recipe_rounding(recipe: Recipe, brought: Brought | None = None) -> Rounding:
    """Measure the layer speeds of a recipe's network."""
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    brought = brought or bring(recipe)
    return measure_rounding(brought.model, example_call(brought.task, brought.data), Compute.of(recipe.device))
