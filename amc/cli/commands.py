"""The command line: every command parses, calls one function, prints. Data on stdout, progress and errors on stderr."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from amc.cli.bench import bench
from amc.cli.options import (
    BatchOption,
    BudgetOption,
    DataOption,
    IgnoreOption,
    JsonOption,
    LossOption,
    MetricOption,
    ModelOption,
    OutOption,
    QuietOption,
    RecipeOption,
    RoundToOption,
    RunArgument,
    SetOption,
    WeightsOption,
    print_result,
    recipe_of,
    settings_of,
)
from amc.system.errors import AmcError

INTERRUPTED = 130
WHEN_INTERRUPTED = "interrupted; what was measured is kept: the same command goes on"
CascadeArgument = Annotated[Path, typer.Argument(help="A folder of `amc cascade` or of `amc export`.")]

app = typer.Typer(
    name="amc",
    help="Make a trained network fit a device: the best per-layer policy under a cap, from few measured trials.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done; 1 unexpected; 2 bad usage, recipe, data, network or storage; 3 budget cannot be met; "
    "4 gate failed; 130 interrupted (the same command goes on).",
)


def _version(asked: bool) -> None:
    if asked:
        version()
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options of the program itself."""


@app.command()
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
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compress a trained network under a budget; with no arguments, the quickstart recipe."""
    from amc.job.compress import compress
    from amc.job.show import summary
    from amc.system.progress import shown

    flags: dict[str, Any] = {"out": out, "search.trials": trials, "search.study": study, "search.workers": workers}
    flags |= {"task.metric": metric, "task.batch": batch, "task.loss": loss}
    flags |= {"model.ignore": ignore or None, "surgery.round_to": round_to, "seed": seed}
    wanted = recipe_of(recipe, model, weights, data, budget, set_, flags)
    with shown(quiet=quiet) as progress:
        run = compress(wanted, progress)
    print_result(run.metrics if json_ else summary(run))


@app.command()
def worker(
    where: Annotated[
        str, typer.Argument(metavar="STUDY", help="An Optuna storage URL, grpc://HOST:PORT, or a run folder.")
    ],
    study: Annotated[str | None, typer.Option(help="The study's name, where the storage holds several.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", help="A recipe or a run folder; left out: what the study was begun with."),
    ] = None,
    model: ModelOption = None,
    weights: WeightsOption = None,
    data: DataOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
    supervised: Annotated[bool, typer.Option("--supervised", hidden=True)] = False,
) -> None:
    """Measure policies for a study that was begun elsewhere, until it has all its trials."""
    if supervised:
        from amc.study.worker_pool import start_watchdog

        start_watchdog()
    from amc.job.worker import work
    from amc.system.progress import shown

    overrides = {"model.name": model, "model.weights": weights, "data.name": data, **settings_of(set_)}
    with shown(quiet=quiet) as progress:
        done = work(where, progress, recipe=recipe, study=study, overrides=overrides, supervised=supervised)
    line = f"{done['study']}: {done['measured_here']} policies measured here, {done['trials']} in all"
    print_result(done if json_ else line)


@app.command()
def train(
    recipe: RecipeOption = None,
    model: ModelOption = None,
    data: DataOption = None,
    metric: MetricOption = None,
    batch: BatchOption = None,
    loss: LossOption = None,
    out: Annotated[str, typer.Option("--out", "-o", help="Where the weights go.")] = "runs/trained",
    set_: SetOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a dense network from scratch, by a recipe's [train] table."""
    from amc.job.pretrain import pretrain
    from amc.system.progress import shown

    flags = {"task.metric": metric, "task.batch": batch, "task.loss": loss}
    wanted = recipe_of(recipe, model, None, data, None, set_, flags)
    with shown(quiet=quiet) as progress:
        record = pretrain(wanted, Path(out), progress)
    line = (
        f"{out}: {record['metric']} {record['test_accuracy']:.2%} on the test split, "
        f"{record['measure_accuracy']:.2%} on the validation split; loss {record['test_loss']:.4f} nats"
    )
    print_result(record if json_ else line)


@app.command()
def retarget(
    run: RunArgument,
    budget: BudgetOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Left out: RUN/retarget/BUDGET.")] = None,
    candidates: Annotated[
        int, typer.Option(min=0, help="Best by prediction that are measured; 0 trusts the predictor.")
    ] = 3,
    finetune: Annotated[bool, typer.Option(help="Fine-tune as the run's recipe says.")] = False,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Fit another budget with what was measured: no new search, seconds."""
    from amc.job.retarget import retarget
    from amc.system.progress import shown

    with shown(quiet=quiet) as progress:
        result = retarget(run, budget or [], out, candidates, finetune, progress)
    print_result(result.record if json_ else result.text)


@app.command()
def cascade(
    run: RunArgument,
    budget: Annotated[
        str | None,
        typer.Option("--budget", "-b", help="Mean cost of an input: 300MFLOPs (1 FLOP = 1 multiply-add), 30%."),
    ] = None,
    max_cost: Annotated[str | None, typer.Option(help="Cost that no input may exceed, e.g. 1.2GFLOPs or 120%.")] = None,
    accuracy: Annotated[str | None, typer.Option(help="Least accuracy, e.g. 0.92 or 92%.")] = None,
    max_drop: Annotated[
        str | None, typer.Option(help="Largest drop in accuracy against the dense network, e.g. 0.5%.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="With which mean cost, accuracy and drop are certified.")] = 0.9,
    method: Annotated[str, typer.Option(help="tinysaver, esn, pcee, pcee-ws, b-distil, or auto.")] = "auto",
    with_: Annotated[
        list[str] | None,
        typer.Option("--with", help="An independent network to plan with; may be repeated.", metavar="NAME[=WEIGHTS]"),
    ] = None,
    train: Annotated[int, typer.Option(min=0, help="Networks of the run's family that may be trained now.")] = 4,
    exits: Annotated[
        str, typer.Option(help="frozen: exits are fitted to the network as it is; joint: it is trained on with them.")
    ] = "frozen",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Left out: RUN/cascade/TERMS.")] = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Plan a cascade of a run's networks: easy inputs leave early, and what you ask for holds, with a certificate."""
    from amc.cascade.flow import cascade
    from amc.cascade.terms import Terms
    from amc.system.progress import shown

    terms = Terms.read(budget, max_cost, accuracy, max_drop, confidence)
    with shown(quiet=quiet) as progress:
        result = cascade(run, terms, progress, method=method, strangers=with_ or [], out=out, train=train, exits=exits)
    print_result(result.record if json_ else result.text)


@app.command()
def serve(
    cascade: CascadeArgument,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8000,
    batch: Annotated[int, typer.Option(min=1, help="Inputs that a stage is run on at most.")] = 64,
    wait: Annotated[
        float, typer.Option(min=0, max=1000, help="Milliseconds that an input waits before a stage for others to come.")
    ] = 2.0,
    quiet: QuietOption = False,
) -> None:
    """Serve a cascade over HTTP: inputs in, answers out, each with the stage that gave it and what it cost."""
    from amc.cascade.serve import serve
    from amc.system.progress import shown

    with shown(quiet=quiet) as progress:
        serve(cascade, host, port, batch, wait / 1000, progress)


@app.command()
def export(
    cascade: CascadeArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
    json_: JsonOption = False,
) -> None:
    """Write a cascade as ONNX networks, one a stage, with a JSON plan and a runner of sixty lines."""
    from amc.cascade.serve import export

    found = export(cascade, out)
    print_result(found if json_ else "\n".join(f"{size:>12,} {out}/{name}" for name, size in found["files"].items()))


@app.command()
def front(
    run: RunArgument,
    points: Annotated[
        int, typer.Option(min=2, max=200, help="Budgets between the smallest policy and the dense network.")
    ] = 12,
    json_: JsonOption = False,
) -> None:
    """Best policies over a range of caps: a table, and a plot in RUN/front.html."""
    from amc.job.front import front, front_text

    found = front(run, points)
    print_result(found if json_ else front_text(found))


@app.command()
def show(run: RunArgument, json_: JsonOption = False) -> None:
    """Show what happened in a run and what was chosen."""
    from amc.job.folder import RunFolder
    from amc.job.show import details

    opened = RunFolder.open(run)
    print_result({**opened.metrics, "policy": opened.policy} if json_ else details(opened))


@app.command()
def verify(
    run: RunArgument,
    budget: BudgetOption = None,
    max_drop: Annotated[
        str | None, typer.Option(help="Largest drop in test accuracy against the dense network, e.g. 1.0%.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Measure a release anew: its files, its costs, its accuracy. Exit 0, or 4 when it does not hold."""
    from amc.job.verify import verdict_text, verify

    found = verify(run, budget or [], max_drop)
    print_result(found.record if json_ else verdict_text(found))
    found.raise_if_failed()


@app.command()
def doctor(
    recipe: RecipeOption = None,
    model: ModelOption = None,
    weights: WeightsOption = None,
    data: DataOption = None,
    input_: Annotated[
        str | None,
        typer.Option("--input", help="Shape of one picture, e.g. 3x224x224; left out: the data's or the network's."),
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

    Exit 0 if all checks hold; 2 if the network cannot be built, traced or cut; 4 if a check does not hold.
    """
    if zoo is not None:
        _cover(zoo, out, jobs, only, resume, (seconds, gigabytes), json_, quiet)
        return
    from amc.job.doctor.diagnosis import diagnose, raise_if_failed
    from amc.job.doctor.record_text import record_text

    flags: dict[str, Any] = {"model.ignore": ignore or None, "surgery.round_to": round_to}
    flags |= {"surgery.trace_seconds": seconds, "surgery.trace_gigabytes": gigabytes}
    wanted = recipe_of(recipe, model, weights or "none", data, None, set_, flags)  # the shapes alone matter here
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
    from amc.system.progress import shown

    chosen = Limits(limits[0] or LIMITS.seconds, limits[1] or LIMITS.gigabytes)
    with shown(quiet=quiet) as progress:
        found = cover(zoo, out, progress, jobs=jobs, only=only, resume=resume, limits=chosen)
    print_result(found.record if json_ else found.text)
    found.raise_if_failed()


app.add_typer(bench, name="bench")


@app.command()
def recipes(json_: JsonOption = False) -> None:
    """List the built-in recipes: those of `amc compress`, of `amc bench` and of `amc bench cascade`."""
    from amc.bench.cascade.recipe import list_cascade_recipes
    from amc.bench.search_methods.bench_recipe import list_bench_recipes
    from amc.job.recipe import list_recipes

    found = list_recipes()
    benches = {"amc bench": list_bench_recipes(), "amc bench cascade": list_cascade_recipes()}
    width = 2 + max(len(name) for names in (found, *benches.values()) for name in names)
    lines = [f"{name:<{width}}{about}" for name, about in found.items()]
    for command, names in benches.items():
        lines += ["", f"for `{command}`:", *(f"{name:<{width}}{about}" for name, about in names.items())]
    print_result(found if json_ else "\n".join(lines))


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version

    print_result(version("amc-compress"))


def main() -> None:
    """Run the command line; every error of ours is one line and its documented exit code."""
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # typer may swallow Ctrl-C and hand back the code that a shell would show
            _fail(WHEN_INTERRUPTED, INTERRUPTED)
    except AmcError as error:
        _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail(WHEN_INTERRUPTED, INTERRUPTED)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of typer's
            _fail(f"{error.format_message().rstrip('.?')}; see `amc --help`", 2)
        _fail(f"unexpected {type(error).__name__}: {(str(error).splitlines() or [''])[0]}; please report it", 1)


def _fail(text: str, code: int) -> None:
    print(f"amc: {text}", file=sys.stderr)
    sys.exit(code)
