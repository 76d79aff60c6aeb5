"""`amc bench cascade RECIPE`: one study on its grounds, seed by seed; what is done is kept, and never done twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from amc import Progress, UsageError, claimed, read_json, write_json, write_text
from amc.bench.cascade import certificate_study, exit_study, plan_study, saver_study, speed_study, student_study
from amc.bench.cascade.study_context import StudyContext, open_context
from amc.bench.cascade.study_goals import Figures, StudyGoal, summary, summary_text
from amc.bench.cascade.study_recipe import CascadeRecipe
from amc.bench.deadline import Deadline, Paused, Unfinished
from amc.bench.machine import machine

FORMAT = "amc-bench-cascade/1"
RESULTS, TABLE = "results.json", "table.txt"


@dataclass(frozen=True)
class StudyKind:
    """What one kind of study does.

    Attributes:
        measure: the figures of one seed, and whatever else is worth keeping, JSON-able.
        goals: what is to be shown.
    """

    measure: Callable[[StudyContext], tuple[Figures, dict[str, Any]]]
    goals: Sequence[StudyGoal]


STUDIES: dict[str, StudyKind] = {
    "exits": StudyKind(exit_study.measure, exit_study.GOALS),
    "exits-joint": StudyKind(partial(exit_study.measure, joint=True), exit_study.GOALS),
    "savers": StudyKind(saver_study.measure, saver_study.GOALS),
    "students": StudyKind(student_study.measure, student_study.GOALS),
    "risk": StudyKind(certificate_study.measure, certificate_study.GOALS),
    "speed": StudyKind(speed_study.measure, speed_study.GOALS),
    "plans": StudyKind(plan_study.measure, plan_study.GOALS),
}


def bench_cascade(
    recipe: CascadeRecipe, folder: Path, runs: Path, progress: Progress, minutes: float = 45.0
) -> dict[str, Any]:
    """Run what is missing of a study, and sum up.

    Args:
        folder: where results go, a file for each context and seed.
        runs: where the grounds' runs are, or go; studies share them.
        minutes: after which no further seed is begun.

    Returns:
        What `results.json` holds.

    Raises:
        Unfinished: the time is over; the same command goes on.
        UsageError: the folder holds another study.
    """
    study, deadline, start = STUDIES[recipe.study], Deadline(minutes), perf_counter()
    figures: dict[str, dict[int, Figures]] = {}
    details: dict[str, dict[int, Any]] = {}
    with claimed(folder):
        _keep_recipe(recipe, folder)
        for section in recipe.contexts:
            for seed in range(recipe.seeds):
                path = folder / f"{section.name}-{seed}.json"
                if not path.is_file():
                    _check(deadline, folder)
                    began = perf_counter()
                    progress.say(f"{recipe.name} on {section.name}, seed {seed}")
                    context = open_context(section.wanted, seed, recipe.budgets, runs, progress, section.name)
                    found, more = study.measure(context)
                    write_json(path, {"figures": found, **more, "seconds": perf_counter() - began})
                kept = read_json(path)
                figures.setdefault(section.name, {})[seed] = kept.pop("figures")
                details.setdefault(section.name, {})[seed] = kept
        result = {
            "format": FORMAT,
            "recipe": recipe.model_dump(by_alias=True),
            "machine": machine(),
            "seconds": sum(each["seconds"] for by_seed in details.values() for each in by_seed.values()),
            "grounds": summary(figures, study.goals),
            "seeds": details,
        }
        write_json(folder / RESULTS, result)
        write_text(folder / TABLE, summary_text(result["grounds"]) + "\n")
    progress.say(f"{perf_counter() - start:.0f} s")
    return result


def _check(deadline: Deadline, folder: Path) -> None:
    try:
        deadline.check()
    except Paused:
        raise Unfinished(f"the minutes are over; the same command goes on with what is in {folder}") from None


def _keep_recipe(recipe: CascadeRecipe, folder: Path) -> None:
    path, mine = folder / "recipe.json", recipe.model_dump(by_alias=True)
    if not path.is_file():
        write_json(path, mine)
        return
    theirs = read_json(path)
    different = next((key for key in mine if key != "seeds" and mine[key] != theirs.get(key)), None)
    if different is not None:
        raise UsageError(
            f"a folder holds one study, but {folder} was begun with {different} = {theirs.get(different)!r} and this "
            f"is {mine[different]!r}; give another --out"
        )
    write_json(path, mine)
