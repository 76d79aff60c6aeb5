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

from amc import Job, Progress, Recipe, Study, Trial, load_recipe, open_job
from amc.bench.machine import seconds
from amc.bench.recovery import random_policy
from amc.bench.table import Table

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
    job = open_job(recipe, None, progress)
    shares = np.linspace(0.3, 0.8, policies)
    stage = progress.stage(f"trials of {recipe.model.name}", policies)
    rows: list[dict[str, float]] = []
    with TemporaryDirectory() as folder:
        study = Study.of(job.measure, folder=Path(folder), alone=True)
        job.measure(random_policy(job, 0.5, recipe.seed))  # batches are made once a study
        study.measure_one(job.space.high, job.measure)
        for index, share in enumerate(shares):
            rows.append(_of_one(job, study, random_policy(job, float(share), recipe.seed + index)))
            stage.advance()
    middle = {key: median(row[key] for row in rows) for key in rows[0]}
    found = {"model": recipe.model.name, "input_shape": list(job.data.input_shape), "compute": job.compute.name}
    return {**found, "threads": torch.get_num_threads(), "policies": policies, **middle}


def _of_one(job: Job, study: Study, policy: NDArray[np.int64]) -> dict[str, float]:
    """The fastest of `ROUNDS` trials of one policy, and of its bare forward passes between them."""
    small = job.measure.realise(policy)
    best: dict[str, float] = {}
    bare = float("inf")
    for _ in range(ROUNDS):
        bare = min(bare, seconds(partial(_forward, job, small)))
        trials: list[Trial] = []
        whole = seconds(lambda: trials.append(job.measure(policy)))  # noqa: B023 - called at once
        if whole < best.get("whole", float("inf")):
            best = {**trials[0].seconds, "whole": whole}
    done = trials[0]
    best["store"] = seconds(lambda: study.measure_one(policy, lambda _: done))
    best["whole"] += best["store"]
    return {**{part: best[part] for part in PARTS}, "whole": best["whole"], "bare": bare, "ratio": best["whole"] / bare}


@torch.inference_mode()
def _forward(job: Job, small: nn.Module) -> None:
    """The forward passes of a trial and nothing else."""
    measure, images = job.measure, job.recipe.recovery.batchnorm_images
    norms = [module for module in small.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    small.eval()
    with job.compute.autocast():
        for norm in norms:
            norm.train()
        for batch in measure.train.batches(measure.settings.batch_size, seed=1, limit=images) if images else ():
            job.task.call(batch).to(job.compute.device).on(small)
        for norm in norms:
            norm.eval()
        for batch in measure.batches():
            job.task.call(batch).to(job.compute.device).on(small)


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
