"""`amc bench workers`: how many more policies a minute several worker processes measure than one."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import tomli_w

from amc import Progress, Recipe, Silent, compress, measured_by
from amc.bench.table import Table


def bench_workers(recipe: Recipe, workers: int, trials: int, repeats: int, progress: Progress) -> dict[str, Any]:
    """Whole searches by one worker process and by several, in turns, each on one thread and in a new study.

    The rate is taken from when every worker has measured its first policy, so that starting them does not count; the
    predictor's fits and the storing do.

    Returns:
        `per_minute`: number of workers -> the rates, one a repeat; `ratio`: that of their medians.
    """
    rates: dict[int, list[float]] = {1: [], workers: []}
    stage = progress.stage("searches", 2 * repeats)
    with tempfile.TemporaryDirectory(prefix="amc-bench-") as place:
        path = Path(place) / "recipe.toml"
        path.write_text(tomli_w.dumps(recipe.model_dump(exclude_none=True)))
        for repeat in range(repeats):
            for number in rates:
                rates[number].append(_rate(path, Path(place) / f"{number}-{repeat}", number, trials))
                stage.advance()
    ratio = median(rates[workers]) / median(rates[1])
    return {"model": recipe.model.name, "trials": trials, "workers": workers, "per_minute": rates, "ratio": ratio}


def _rate(recipe: Path, folder: Path, number: int, trials: int) -> float:
    """Policies a minute."""
    run = compress(recipe=recipe, out=folder, progress=Silent(), settings={
        "threads": 1, "search.trials": trials, "search.workers": number, "search.study": "run",
        "search.candidates": 1, "finetune.epochs": 0.0, "finetune.uniform": False,
    })  # fmt: skip
    ends: dict[str | None, list[float]] = {}
    for trial in run.study.measured[:trials]:
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
