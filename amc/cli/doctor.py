"""The command that examines networks: doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from amc.cli.options import (
    DataOption,
    IgnoreOption,
    JsonOption,
    ModelOption,
    QuietOption,
    RecipeOption,
    RoundToOption,
    SetOption,
    WeightsOption,
    print_result,
    recipe_of,
)
from amc.system.progress import shown


def doctor(
    recipe: RecipeOption = None,
    model: ModelOption = None,
    weights: WeightsOption = None,
    data: DataOption = None,
    input_: Annotated[
        str | None,
        typer.Option("--input", help="Shape of one image, e.g. 3x224x224; default: the data's or the network's."),
    ] = None,
    ignore: IgnoreOption = None,
    round_to: RoundToOption = None,
    zoo: Annotated[str | None, typer.Option(help="torchvision or timm: every network of it, as a table.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the tables of --zoo; default: nothing is written.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Networks of --zoo at a time.")] = 1,
    only: Annotated[
        str | None, typer.Option(help="Networks of --zoo: a pattern, or a part of their names.", metavar="PATTERN")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a --zoo that was ended left off.")] = False,
    seconds: Annotated[float | None, typer.Option(min=1, help="A network may take; 400 with --zoo.")] = None,
    gigabytes: Annotated[float | None, typer.Option(min=0.1, help="A network may take; 12 with --zoo.")] = None,
    set_: SetOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what of a network can be cut, what cannot and why, and check that cutting is exact.

    Exit 0 if all checks hold; 5 if the network cannot be built, traced or cut; 4 if a check does not hold.
    """
    if zoo is not None:
        _cover(zoo, out, jobs, only, resume, (seconds, gigabytes), json_, quiet)
        return
    from amc.job.doctor.diagnosis import diagnose, raise_if_failed
    from amc.job.doctor.record_text import record_text

    flags: dict[str, Any] = {"model.ignore": ignore or None, "surgery.round_to": round_to}
    flags |= {"surgery.trace_seconds": seconds, "surgery.trace_gigabytes": gigabytes}
    # the shapes alone matter here
    wanted = recipe_of(recipe, model, weights or "none", data, None, set_, flags, needs_data=False)
    found = diagnose(wanted, input_, explicit_data=data is not None)
    print_result(found if json_ else record_text(found))
    raise_if_failed(found)


def _cover(
    zoo: str,
    out: Path | None,
    jobs: int,
    only: str | None,
    resume: bool,
    limits: tuple[float | None, float | None],
    json_: bool,
    quiet: bool,
) -> None:
    from amc.bench.coverage.coverage import LIMITS, cover
    from amc.system.isolation import Limits

    chosen = Limits(limits[0] or LIMITS.seconds, limits[1] or LIMITS.gigabytes)
    with shown(quiet=quiet) as progress:
        found = cover(zoo, out, progress, jobs=jobs, only=only, resume=resume, limits=chosen)
    print_result(found.record if json_ else found.text)
    found.raise_if_failed()
