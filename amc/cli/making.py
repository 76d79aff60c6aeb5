"""The commands that make a run, or help to: compress, worker, train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from amc.cli.options import (
    BatchOption,
    BudgetOption,
    DataOption,
    DeviceOption,
    IgnoreOption,
    JsonOption,
    LossOption,
    MetricOption,
    ModelOption,
    OutOption,
    QuietOption,
    RecipeOption,
    RoundToOption,
    SetOption,
    TrustOption,
    WeightsOption,
    print_result,
    recipe_of,
    settings_of,
)
from amc.system.progress import shown


def compress(
    recipe: RecipeOption = None,
    model: ModelOption = None,
    weights: WeightsOption = None,
    data: DataOption = None,
    metric: MetricOption = None,
    batch: BatchOption = None,
    loss: LossOption = None,
    budget: BudgetOption = None,
    out: OutOption = None,
    trials: Annotated[int | None, typer.Option(help="Policies to measure.")] = None,
    seed: Annotated[int | None, typer.Option(help="What all randomness starts from.")] = None,
    study: Annotated[
        str | None,
        typer.Option(help="An Optuna storage URL, or run: a file in the run; default: one file of this user."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes on this machine that measure side by side, each on one thread.")
    ] = None,
    ignore: IgnoreOption = None,
    round_to: RoundToOption = None,
    set_: SetOption = None,
    device: DeviceOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compress a trained network under a budget; with no arguments, the quickstart recipe."""
    from amc.job.compress import compress
    from amc.job.show import summary

    flags: dict[str, Any] = {"out": out, "search.trials": trials, "search.study": study, "search.workers": workers}
    flags |= {"task.metric": metric, "task.batch": batch, "task.loss": loss}
    flags |= {"model.ignore": ignore or None, "surgery.round_to": round_to, "seed": seed, "device": device}
    wanted = recipe_of(recipe, model, weights, data, budget, set_, flags)
    with shown(quiet=quiet) as progress:
        run = compress(wanted, progress)
    print_result(run.metrics if json_ else summary(run))


def worker(
    where: Annotated[
        str, typer.Argument(metavar="STUDY", help="An Optuna storage URL, grpc://HOST:PORT, or a run folder.")
    ],
    study: Annotated[str | None, typer.Option(help="The study's name, where the storage holds several.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", help="A recipe or a run folder; default: what the study was begun with."),
    ] = None,
    model: ModelOption = None,
    weights: WeightsOption = None,
    data: DataOption = None,
    set_: SetOption = None,
    device: DeviceOption = None,
    trust: TrustOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
    supervised: Annotated[bool, typer.Option("--supervised", hidden=True)] = False,
) -> None:
    """Measure policies for a study that was begun elsewhere, until it has all its trials."""
    if supervised:
        from amc.study.worker_pool import start_watchdog

        start_watchdog()
    from amc.job.worker import work

    overrides = {
        "model.name": model,
        "model.weights": weights,
        "data.name": data,
        "device": device,
        **settings_of(set_),
    }
    with shown(quiet=quiet) as progress:
        done = work(where, progress, recipe=recipe, study=study, overrides=overrides, supervised=supervised)
    line = f"{done['study']}: {done['measured_here']} policies measured here, {done['trials']} in all"
    print_result(done if json_ else line)


def train(
    recipe: RecipeOption = None,
    model: ModelOption = None,
    data: DataOption = None,
    metric: MetricOption = None,
    batch: BatchOption = None,
    loss: LossOption = None,
    out: Annotated[str, typer.Option("--out", "-o", help="Where the weights go.")] = "runs/trained",
    set_: SetOption = None,
    device: DeviceOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a dense network from scratch, by a recipe's [train] table."""
    from amc.job.pretrain import pretrain

    flags = {"task.metric": metric, "task.batch": batch, "task.loss": loss, "device": device}
    wanted = recipe_of(recipe, model, None, data, None, set_, flags)
    with shown(quiet=quiet) as progress:
        record = pretrain(wanted, Path(out), progress)
    line = (
        f"{out}: {record['metric']} {record['test_accuracy']:.2%} on the test split, "
        f"{record['measure_accuracy']:.2%} on the validation split; loss {record['test_loss']:.4f} nats"
    )
    print_result(record if json_ else line)
