"""What early stopping saves, and what it costs in the quality of what the search finds."""

from __future__ import annotations

import copy
from dataclasses import replace
from statistics import mean
from typing import Any

import torch

from amc import Job, MemorySplit, Progress, Recipe, UsageError, fit_predictor, open_job, optimize, search
from amc.bench.table import Table

KINDS = ("whole", "stopped")


def bench_stop(recipe: Recipe, trials: int, seeds: int, progress: Progress) -> dict[str, Any]:
    """Search with and without early stopping, with the same seeds and the same number of trials.

    What each search chooses is measured on the validation split, as always, and on training images that no moments
    nor BatchNorm have seen; the test split is not touched.

    Raises:
        UsageError: the data are not held in memory, so that such images cannot be set apart.
    """
    job = open_job(recipe, None, progress)
    held_out = _unseen(job)
    rows = []
    for seed in range(recipe.seed, recipe.seed + seeds):
        row: dict[str, Any] = {"seed": seed}
        for kind in KINDS:
            row[kind] = _searched(job, trials, seed, kind == "stopped", held_out, progress)
        rows.append(row)
    found = {"model": recipe.model.name, "budget": list(map(str, recipe.budget)), "trials": trials, "rows": rows}
    return {**found, "validation_images": len(job.data.validation), "held_out_images": len(held_out)}


def _unseen(job: Job) -> MemorySplit:
    """The images of the train split that trials do not learn from."""
    train, recovery = job.data.train, job.recipe.recovery
    if not isinstance(train, MemorySplit):
        raise UsageError(
            f"this benchmark needs data held in memory, but {job.data.name!r} is not; take fashion-mnist-10k"
        )
    unseen = torch.ones(len(train), dtype=torch.bool)
    for seed, images in ((0, recovery.moment_images), (1, recovery.batchnorm_images)):
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
        unseen[order[:images]] = False
    return replace(train, images=train.images[unseen], labels=train.labels[unseen])


def _searched(
    job: Job, trials: int, seed: int, stop_early: bool, held_out: MemorySplit, progress: Progress
) -> dict[str, float]:
    """One search, and what it chose."""
    measure = copy.copy(job.measure)
    measure.seed = seed
    settings = job.recipe.search.model_copy(update={"sensitivity_images": 0, "stop_early": stop_early})
    study = search(job.trace, measure, job.budgets, trials, settings=settings, progress=progress)
    found, ranks = study.trials, fit_predictor(study).predictor.ranks
    chosen = optimize(study, job.budgets, candidates=settings.candidates)
    assert ranks is not None and chosen.trial is not None
    images = sum(trial.images or measure.images for trial in found)
    return {
        "stopped": sum(trial.stopped for trial in found),
        "images": images / (len(found) * measure.images),
        "seconds": sum(sum(trial.seconds.values()) for trial in found),
        "validation_accuracy": chosen.trial.accuracy,
        "held_out_accuracy": measure.evaluate_whole(measure.realise(chosen.array), held_out).accuracy,
        "kendall": ranks.kendall,
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
