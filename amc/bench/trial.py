"""What a trial costs beyond the bare forward passes that it needs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from amc.bench.machine import seconds
from amc.bench.recovery import random_policy
from amc.bench.table import Table
from amc.job.job import Job, open_job
from amc.job.recipe import Recipe, load_recipe
from amc.study.measure import ORDER
from amc.study.trial import Trial
from amc.study.trials import Study
from amc.surgery.layers import BATCH_NORMS
from amc.system.eval_mode import evaluating
from amc.system.progress import Progress

NETWORKS = ("resnet20", "resnet18", "mobilenet_v2")
IMAGES = "amc.bench.images:resized"
ROUNDS = 3  # of each policy; the fastest counts, for what else runs on the machine adds only
PARTS = ("cut", "fold", "batchnorm", "evaluate", "store")


def trial_recipe(name: str, size: int, threads: int | None) -> Recipe:
    """The quickstart for `resnet20`; for others random weights, on the embedded images at `size` pixels."""
    if name == "resnet20":
        return load_recipe("quickstart", {"threads": threads})
    wanted = {"model.name": name, "model.weights": "none", "data.name": IMAGES, "data.size": size, "budget": ["50%"]}
    return load_recipe(None, {**wanted, "threads": threads})


def bench_trial(recipe: Recipe, policies: int, progress: Progress) -> dict[str, Any]:
    """Trials of random policies at 30 to 80 % of the MACs, and the forward passes they need, in turns.

    The forward passes are those of the finished network on batches that are at hand: the ones that BatchNorm is
    re-estimated on, in training mode, and those of the validation split.

    Returns:
        Medians over the policies, in seconds: the parts of a trial, the whole, the bare forward passes; and of the
        ratio of the last two.
    """
    dense = open_job(recipe, None, progress)
    shares = np.linspace(0.3, 0.8, policies)
    stage = progress.stage(f"trials of {recipe.model.name}", policies)
    rows: list[dict[str, float]] = []
    with TemporaryDirectory() as folder:
        study = Study(None, Path(folder), dense.measure.protocol(), dense.space, alone=True)
        dense.measure(random_policy(dense, 0.5, recipe.seed))  # batches are made once a study
        study.measure_one(dense.space.high, dense.measure)
        for index, share in enumerate(shares):
            rows.append(_of_one(dense, study, random_policy(dense, float(share), recipe.seed + index)))
            stage.advance()
    middle = {key: median(row[key] for row in rows) for key in rows[0]}
    found = {"model": recipe.model.name, "input_shape": list(dense.data.input_shape), "compute": dense.compute.name}
    return {**found, "threads": torch.get_num_threads(), "policies": policies, **middle}


def _of_one(dense: Job, study: Study, policy: NDArray[np.int64]) -> dict[str, float]:
    """The fastest of `ROUNDS` trials of one policy, and of its bare forward passes between them."""
    small = dense.measure.realise(policy)
    best: dict[str, float] = {}
    bare = float("inf")
    for _ in range(ROUNDS):
        bare = min(bare, seconds(partial(_forward, dense, small)))
        trials: list[Trial] = []
        whole = seconds(lambda: trials.append(dense.measure(policy)))  # noqa: B023 - called at once
        if whole < best.get("whole", float("inf")):
            best = {**trials[0].seconds, "whole": whole}
    done = trials[0]
    best["store"] = seconds(lambda: study.measure_one(policy, lambda _: done))
    best["whole"] += best["store"]
    return {**{part: best[part] for part in PARTS}, "whole": best["whole"], "bare": bare, "ratio": best["whole"] / bare}


@torch.inference_mode()
def _forward(dense: Job, small: nn.Module) -> None:
    """The forward passes of a trial and nothing else."""
    measure, size = dense.measure, dense.recipe.search.batch_size
    images = dense.recipe.recovery.batchnorm_images
    norms = [module for module in small.modules() if isinstance(module, BATCH_NORMS)]
    with evaluating(small), dense.compute.autocast():
        for norm in norms:
            norm.train()
        for batch in measure.train.batches(size, seed=1, limit=images) if images else ():
            dense.task.call(batch).to(dense.compute.device).on(small)
        for norm in norms:
            norm.eval()
        for batch in measure.validation.batches(size, seed=ORDER, limit=dense.recipe.search.measure_images):
            dense.task.call(batch).to(dense.compute.device).on(small)


def trial_text(rows: list[dict[str, Any]]) -> str:
    """A line a network: milliseconds, and the ratio."""
    parts = (*PARTS, "whole", "bare")
    lines = [
        [
            row["model"], "x".join(map(str, row["input_shape"])), *(f"{1000 * row[part]:.1f}" for part in parts),
            f"{row['ratio']:.3f}",
        ] for row in rows
    ]  # fmt: skip
    title = "medians in milliseconds; ratio: the whole trial over the bare forward passes"
    return Table(["model", "input", *parts, "ratio"], lines, title).text
