"""`amc worker`: measure policies for a study that another process began, on this machine or another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage

from amc.job.job import open_job, study_location
from amc.job.recipe import Recipe, amended, load_recipe, parse_recipe
from amc.job.run_folder import RECIPE as RECIPE_FILE
from amc.job.run_folder import read_recipe
from amc.study.search import sampler_of, stopping_measure
from amc.study.sensitivity import measure_sensitivity
from amc.study.storage import open_storage, patiently, place
from amc.study.trial import Protocol
from amc.study.trials import RECIPE, Study
from amc.system.errors import RunError, UsageError
from amc.system.progress import Progress

FIXES = {
    "weights_digest": "give the same --weights",
    "data_digest": "give the same --data",
    "compute": "use a machine with the same device and number format",
    "versions": "install the same torch and AMC",
}


def work(
    where: str,
    progress: Progress,
    *,
    recipe: str | None = None,
    study: str | None = None,
    overrides: Mapping[str, object] | None = None,
    supervised: bool = False,
) -> dict[str, Any]:
    """Join a study and measure until it holds its total; returns what was done.

    Args:
        where: a storage URL, or a run folder on this machine.
        progress: where it is shown.
        recipe: a recipe, a TOML file or a run folder; default: the one that the study was begun with.
        study: the study's name, where the storage holds several.
        overrides: recipe values by dotted key.
        supervised: started by the process that holds the run folder, which answers for its trials.

    Raises:
        AmcError: no such study, the network here is not the study's, the storage is gone; one line each.
    """
    folder = next((Path(text) for text in (where, recipe) if text and (Path(text) / RECIPE_FILE).is_file()), None)
    url = _url_of(Path(where)) if (Path(where) / RECIPE_FILE).is_file() else where
    joined = None if url != where and study is None else _Joined.find(url, study, progress)
    if recipe is not None:
        wanted = read_recipe(Path(recipe)) if folder else load_recipe(recipe)
    elif joined is None:  # a run folder: its own recipe names its study, of the many that the storage may hold
        wanted = read_recipe(Path(where))
    elif joined.recipe is None:
        raise UsageError(f"{joined.name} was begun by an earlier AMC and holds no recipe; give its --recipe")
    else:
        wanted = joined.recipe
    wanted = amended(wanted, {"threads": wanted.threads or 1, **(overrides or {})})
    wanted.budgets  # noqa: B018 - a recipe without a budget is refused before the network is prepared
    job = open_job(wanted, folder, progress, store=False)
    joined = joined or _Joined.find(url, f"amc-{job.measure.protocol().digest}", progress)
    _check_same(job.measure.protocol(), joined)
    trials = Study.of(job.measure, url, folder if supervised else None)
    before = trials.done_here
    measure_sensitivity(trials, wanted.search, progress)
    measure, sampler = stopping_measure(trials, job.caps, wanted.search), sampler_of(trials, job.caps, wanted.search)
    trials.run(measure, sampler, wanted.search.trials, progress)
    return {"study": joined.name, "trials": len(trials.trials), "measured_here": trials.done_here - before}


class _Joined:
    """A study as its storage tells it."""

    def __init__(self, name: str, attributes: Mapping[str, Any]) -> None:
        self.name, self.protocol = name, attributes.get("protocol", {})
        text = attributes.get(RECIPE)
        self.recipe: Recipe | None = parse_recipe(text, f"the recipe in {name}") if text else None

    @classmethod
    def find(cls, url: str, name: str | None, progress: Progress) -> _Joined:
        """Raises `UsageError` when there is none of that name, or several and none was named."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        storage: BaseStorage = open_storage(url)
        studies = {found.study_name: found for found in patiently(storage.get_all_studies, url, progress.say, 0.0)}
        known = {key: found.user_attrs for key, found in studies.items() if key.startswith("amc-")}
        if not known:
            raise UsageError(
                f"a worker joins a study that has begun, but {place(url)} holds none; start `amc compress --study`"
            )
        if name not in known and (name or len(known) > 1):
            listed = ", ".join(f"{key} ({_about(attributes)})" for key, attributes in sorted(known.items()))
            asked = f"no {name}, only" if name else "several studies"
            raise UsageError(f"--study must name one study, but {place(url)} holds {asked}: {listed}")
        chosen = name or next(iter(known))
        return cls(chosen, known[chosen])


def _url_of(folder: Path) -> str:
    return study_location(read_recipe(folder), folder)


def _about(attributes: Mapping[str, Any]) -> str:
    recipe = attributes.get(RECIPE)
    if not recipe:
        return "no recipe"
    known = parse_recipe(recipe)
    return f"{known.model.name} on {known.data.name}, {known.name}"


def _check_same(mine: Protocol, joined: _Joined) -> None:
    """Raises `RunError` that names the first thing in which this machine's numbers would differ from the study's."""
    if f"amc-{mine.digest}" == joined.name:
        return
    for key, value in asdict(mine).items():
        value, theirs = list(value) if isinstance(value, tuple) else value, joined.protocol.get(key)
        if value != theirs:
            fix = FIXES.get(key, "give no --recipe and --set, so that the study's own recipe holds")
            raise RunError(
                f"a worker must measure as its study {joined.name} does, but here {key} is {value!r} and there "
                f"{theirs!r}; {fix}"
            )
    raise RunError(f"a worker must measure as its study {joined.name} does, but its protocol is another; update AMC")
