"""`amc doctor --model`: the record of one network, examined in a child process."""

from __future__ import annotations

from amc.job.doctor.record import Record, examine_or_say_why, failure, subject_of
from amc.job.doctor.sweep import examine_apart
from amc.job.recipe import Recipe
from amc.system.errors import GateFailed, ModelError


def diagnose(recipe: Recipe, input_shape: str | None, *, explicit_data: bool) -> Record:
    """The record of a recipe's network, whatever happens to it: see `amc.job.doctor.record.examine`.

    Args:
        input_shape: "3x224x224"; None: the data's when data was asked for or the network is ours, else its own.
        explicit_data: whether the user named the data.

    Raises:
        UsageError, DataError: the shape is malformed, or the data cannot be read.
    """

    def work() -> Record:
        return examine_or_say_why(recipe, subject_of(recipe, input_shape, explicit_data=explicit_data))

    try:
        return examine_apart(work, recipe.surgery.limits)
    except ModelError as error:  # a limit, or the end of the process
        return failure(recipe, None, error)


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
