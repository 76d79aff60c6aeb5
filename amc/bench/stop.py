"""What early stopping saves, and what it costs in the quality of what the search finds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import torch

from amc.bench.table import Table
from amc.job.dense import Dense, prepare
from amc.job.recipe import Recipe
from amc.study.search import measure_of, sampler_of
from amc.study.selection import fit_predictor, select
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
    dense = prepare(recipe, None, progress)
    held_out = _unseen(dense)
    rows = []
    for seed in range(recipe.seed, recipe.seed + seeds):
        row: dict[str, Any] = {"seed": seed}
        for kind in KINDS:
            search = recipe.search.model_copy(update={"stop_early": kind == "stopped", "study": None, "trials": trials})
            row[kind] = _searched(replace(dense, recipe=recipe.model_copy(update={"search": search, "seed": seed})),
                                 held_out, progress)  # fmt: skip
        rows.append(row)
    found = {"model": recipe.model.name, "budget": list(recipe.budget), "trials": trials, "rows": rows}
    return {**found, "validation_images": len(dense.splits.validation), "held_out_images": len(held_out)}


def _unseen(dense: Dense) -> MemorySplit:
    """The images of the train split that trials do not learn from."""
    train, recovery = dense.splits.train, dense.recipe.recovery
    if not isinstance(train, MemorySplit):
        raise UsageError(
            f"this benchmark needs data held in memory, but {dense.splits.name!r} is not; take fashion-mnist-10k"
        )
    unseen = torch.ones(len(train), dtype=torch.bool)
    for seed, images in ((0, recovery.moment_images), (1, recovery.batchnorm_images)):
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
        unseen[order[:images]] = False
    return replace(train, images=train.images[unseen], labels=train.labels[unseen])


def _searched(dense: Dense, held_out: MemorySplit, progress: Progress) -> dict[str, float]:
    """One search, and what it chose."""
    recipe, caps = dense.recipe, dense.caps(dense.recipe.budgets)
    reference = dense.measure.evaluate(dense.model).accuracy
    with TemporaryDirectory() as folder:
        study = Study(None, Path(folder), dense.protocol(), dense.space, alone=True)
        sampler = sampler_of(dense, caps, reference, study)
        study.run(measure_of(dense, study), sampler, recipe.search.trials, progress)
        found = study.trials
        predictor = fit_predictor(dense.space, found, reference, recipe.seed)
        chosen = select(study, dense.measure, predictor, caps, recipe.search.candidates, recipe.seed, reference)
    images = sum(trial.images or len(dense.splits.validation) for trial in found)
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
