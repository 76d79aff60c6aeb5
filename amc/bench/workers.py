"""`amc bench workers`: how many more policies a minute several worker processes measure than one."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from amc.bench.table import Table
from amc.job.folder import RECIPE
from amc.job.job import Job, open_job
from amc.job.recipe import Recipe, amended, resolved_toml
from amc.job.workers import worker_pool
from amc.study.heartbeat import measured_by
from amc.study.trials import Study
from amc.system.files import write_text
from amc.system.progress import Progress, Silent


def bench_workers(recipe: Recipe, workers: int, trials: int, repeats: int, progress: Progress) -> dict[str, Any]:
    """Whole searches by one worker process and by several, in turns, each on one thread and in a new study.

    The rate is taken from when every worker has measured its first policy, so that starting them does not count; the
    predictor's fits and the storing do.

    Returns:
        `per_minute`: number of workers -> the rates, one a repeat; `ratio`: that of their medians.
    """
    recipe = amended(recipe, {"threads": 1, "search.trials": trials})
    rates: dict[int, list[float]] = {1: [], workers: []}
    stage = progress.stage("searches", 2 * repeats)
    with tempfile.TemporaryDirectory(prefix="amc-bench-") as place:
        home = Path(place) / "dense"
        home.mkdir()
        dense = open_job(recipe, home, Silent())
        accuracy = dense.measure.evaluate_whole(dense.model, dense.data.validation).accuracy
        for repeat in range(repeats):
            for number in rates:
                folder = Path(place) / f"{number}-{repeat}"
                shutil.copytree(home, folder)
                write_text(folder / RECIPE, resolved_toml(recipe))
                rates[number].append(_rate(dense, folder, number, accuracy))
                stage.advance()
    ratio = median(rates[workers]) / median(rates[1])
    return {"model": recipe.model.name, "trials": trials, "workers": workers, "per_minute": rates, "ratio": ratio}


def _rate(dense: Job, folder: Path, number: int, accuracy: float) -> float:
    """Policies a minute."""
    study = Study.of(dense.measure, folder=folder, alone=True)
    study.describe(resolved_toml(dense.recipe), accuracy)
    with worker_pool(study, folder, number, dense.recipe.threads or 1) as pool:
        study.follow(dense.recipe.search.trials, Silent(), pool.tend)
    ends: dict[str | None, list[float]] = {}
    for trial in study.measured:
        if trial.datetime_complete:
            ends.setdefault(measured_by(trial), []).append(trial.datetime_complete.timestamp())
    begin, end = max(min(times) for times in ends.values()), max(max(times) for times in ends.values())
    return 60 * sum(time > begin for times in ends.values() for time in times) / (end - begin)


def workers_text(found: dict[str, Any]) -> str:
    """The rates side by side, and their ratio."""
    rows = [
        [str(number), f"{median(rates):.1f}", ", ".join(f"{rate:.1f}" for rate in rates)]
        for number, rates in found["per_minute"].items()
    ]
    title = f"{found['model']}, {found['trials']} policies a search, one thread a worker"
    table = Table(["workers", "policies a minute", "each"], [*rows, ["ratio", f"{found['ratio']:.2f}", ""]], title)
    return table.text
