"""`amc doctor --model`: one network examined in a child process, and torch-pruning's view of its groups."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from amc.job.doctor.examination import Record, examine_or_say_why, failure, subject_of
from amc.job.doctor.second_opinion import LIMITS, compare_groups, failed_opinion, torch_pruning_groups
from amc.job.recipe import Recipe
from amc.system.errors import AmcError, GateFailed, ModelError
from amc.system.files import write_json
from amc.system.isolation import Limits, isolated


def diagnose(recipe: Recipe, input_shape: str | None, *, explicit_data: bool) -> Record:
    """The record of a recipe's network, whatever happens to it: see `amc.job.doctor.examination.examine`.

    To it is added `second_opinion`, see `amc.job.doctor.second_opinion.compare_groups`.

    Args:
        input_shape: "3x224x224"; None: the data's when data was asked for or the network is ours, else its own.
        explicit_data: whether the user named the data.

    Raises:
        UsageError, DataError: the shape is malformed, or the data cannot be read.
    """

    def examined() -> Record:
        return examine_or_say_why(recipe, subject_of(recipe, input_shape, explicit_data=explicit_data))

    def theirs() -> Record:
        return torch_pruning_groups(recipe, subject_of(recipe, input_shape, explicit_data=explicit_data))

    try:
        record = _in_child(examined, recipe.surgery.limits)
    except ModelError as error:  # a limit, or the end of the process
        return failure(recipe, None, error)
    if record["checks"] is not None:
        try:
            record["second_opinion"] = compare_groups(record, _in_child(theirs, LIMITS))
        except AmcError as error:
            record["second_opinion"] = failed_opinion(str(error))
    return record


def _in_child(work: Callable[[], Record], limits: Limits) -> Record:
    """What `work` finds, in a child process.

    Raises:
        LimitExceeded: the child took too long or too much memory.
    """
    with isolated(lambda folder: write_json(folder / "record.json", work()), limits) as folder:
        record: Record = json.loads(Path(folder, "record.json").read_text(encoding="utf-8"))
    return record


def raise_if_failed(record: Record) -> None:
    """Raise what a record says is wrong.

    Raises:
        ModelError: the network could not be built, traced or cut at all.
        GateFailed: it was cut, but a check does not hold.
    """
    if record["checks"] is None:
        raise ModelError(record["reason"])
    if not record["ok"]:
        raise GateFailed(f"all checks of {record['model']} must hold, but: {record['reason']}")
