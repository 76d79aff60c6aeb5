"""The commands on a finished run: retarget, front, show, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amc.cli.options import (
    BudgetOption,
    DeviceOption,
    JsonOption,
    QuietOption,
    RunArgument,
    TrustOption,
    print_result,
    use_device,
)
from amc.system.progress import shown


def retarget(
    run: RunArgument,
    budget: BudgetOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: RUN/retarget/BUDGET.")] = None,
    candidates: Annotated[
        int, typer.Option(min=0, help="Best by prediction that are measured; 0 trusts the predictor.")
    ] = 3,
    finetune: Annotated[bool, typer.Option(help="Fine-tune as the run's recipe says.")] = False,
    device: DeviceOption = None,
    trust: TrustOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Fit another budget with what was measured: no new search, seconds."""
    use_device(device)
    from amc.job.retarget import retarget

    with shown(quiet=quiet) as progress:
        result = retarget(run, budget or [], out, candidates, finetune, progress)
    print_result(result.record if json_ else result.text)


def front(
    run: RunArgument,
    points: Annotated[
        int, typer.Option(min=2, max=200, help="Budgets between the smallest policy and the dense network.")
    ] = 12,
    device: DeviceOption = None,
    trust: TrustOption = None,
    json_: JsonOption = False,
) -> None:
    """Best policies over a range of caps: a table, and a plot in RUN/front.html."""
    use_device(device)
    from amc.job.front import front, front_text

    found = front(run, points)
    print_result(found if json_ else front_text(found))


def show(run: RunArgument, json_: JsonOption = False) -> None:
    """Show what happened in a run and what was chosen."""
    from amc.job.run_folder import RunFolder
    from amc.job.show import details

    opened = RunFolder.open(run)
    print_result({**opened.metrics, "policy": opened.policy} if json_ else details(opened))


def verify(
    run: RunArgument,
    budget: BudgetOption = None,
    max_drop: Annotated[
        str | None, typer.Option(help="Largest drop in test accuracy against the dense network, e.g. 1.0%.")
    ] = None,
    device: DeviceOption = None,
    trust: TrustOption = None,
    json_: JsonOption = False,
) -> None:
    """Measure a release anew: its files, its costs, its accuracy. Exit 0, or 4 when it does not hold."""
    use_device(device)
    from amc.job.verify import verdict_text, verify

    found = verify(run, budget or [], max_drop)
    print_result(found.record if json_ else verdict_text(found))
    found.raise_if_failed()
