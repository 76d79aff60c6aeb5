"""What early stopping saves, and what it costs in the quality of what the search finds."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import torch

from amc.bench.table import Table
from amc.job.job import Job, open_job
from amc.job.recipe import Recipe
from amc.study.optimize import learn, select
from amc.study.search import run_search
from amc.study.trials import Study
from amc.system.errors import UsageError
from amc.system.progress import Progress
from amc.train.evaluation import evaluate
from amc.zoo.data.splits import MemorySplit

KINDS = ("whole", "stopped")


def bench_stop(recipe: Recipe, trials: int, seeds: int, progress: Progress) -> dict[str, Any]:
    """Search with and without early stopping, with the same seeds and the same number of trials.

    What each search chooses is measured on the validation split, as always, and on training images that no moments
    nor BatchNorm have seen; the test split is not touched.

    Raises:
        UsageError: the data are not held in memory, so that such images cannot be told apart.
    """
    dense = open_job(recipe, None, progress)
    held_out = _unseen(dense)
    rows = []
    for seed in range(recipe.seed, recipe.seed + seeds):
        row: dict[str, Any] = {"seed": seed}
        for kind in KINDS:
            search = recipe.search.model_copy(
                update={"sensitivity_images": 0, "stop_early": kind == "stopped", "trials": trials}
            )
            measure = copy.copy(dense.measure)
            measure.seed = seed
            asked = recipe.model_copy(update={"search": search, "seed": seed})
            row[kind] = _searched(replace(dense, recipe=asked, measure=measure), held_out, progress)
        rows.append(row)
    found = {"model": recipe.model.name, "budget": list(recipe.budget), "trials": trials, "rows": rows}
    return {**found, "validation_images": len(dense.data.validation), "held_out_images": len(held_out)}


def _unseen(dense: Job) -> MemorySplit:
    """The images of the train split that trials do not learn from."""
    train, recovery = dense.data.train, dense.recipe.recovery
    if not isinstance(train, MemorySplit):
        raise UsageError(
            f"this benchmark needs data held in memory, but {dense.data.name!r} is not; take fashion-mnist-10k"
        )
    unseen = torch.ones(len(train), dtype=torch.bool)
    for seed, images in ((0, recovery.moment_images), (1, recovery.batchnorm_images)):
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
        unseen[order[:images]] = False
    return replace(train, images=train.images[unseen], labels=train.labels[unseen])


def _searched(dense: Job, held_out: MemorySplit, progress: Progress) -> dict[str, float]:
    """One search, and what it chose."""
    recipe = dense.recipe
    with TemporaryDirectory() as folder:
        study = Study.of(dense.measure, folder=Path(folder), alone=True)
        run_search(study, dense.caps, recipe.search, progress)
        found = study.trials
        predictor = learn(dense.space, found, study.dense_accuracy, recipe.seed).predictor
        chosen = select(study, predictor, dense.caps, recipe.search.candidates)
    images = sum(trial.images or len(dense.data.validation) for trial in found)
    assert predictor.ranks is not None
    return {
        "stopped": sum(trial.stopped for trial in found),
        "images": images / (len(found) * max(trial.images or 1 for trial in found)),
        "seconds": sum(sum(trial.seconds.values()) for trial in found),
        "validation_accuracy": chosen.trial.accuracy,
        "held_out_accuracy": evaluate(
            dense.measure.realise(chosen.policy), held_out, dense.compute, task=dense.task
        ).accuracy,
        "kendall": predictor.ranks.kendall,
    }


def stop_text(found: dict[str, Any]) -> str:
    """Two lines a seed, then the means."""
    forms = {
        "stopped": ".3g", "images": ".1%", "seconds": ".1f", "validation_accuracy": ".2%", "held_out_accuracy": ".2%",
        "kendall": ".2f",
    }  # fmt: skip
    means = {kind: {key: mean(row[kind][key] for row in found["rows"]) for key in forms} for kind in KINDS}
    rows = [
        [str(row["seed"]), kind, *(f"{row[kind][key]:{form}}" for key, form in forms.items())]
        for row in [*found["rows"], {"seed": "mean", **means}]
        for kind in KINDS
    ]
    title = (
        f"{found['model']} at most {', '.join(found['budget'])}, {found['trials']} trials a search; accuracy of the "
        f"policy chosen on {found['validation_images']:,} validation and {found['held_out_images']:,} other images"
    )
    heads = ["seed", "trials", "stopped", "images", "seconds", "validation", "held out", "Kendall"]
    saved = 1 - means["stopped"]["seconds"] / means["whole"]["seconds"]
    return f"{Table(heads, rows, title, texts=2).text}\ntime saved in trials: {saved:.1%}"
