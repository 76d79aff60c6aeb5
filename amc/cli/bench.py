"""The commands of `amc bench`: each parses, calls one function, prints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from amc.cli.options import JsonOption, QuietOption, RecipeOption, SetOption, print_result, recipe_of, settings_of
from amc.system.errors import UsageError
from amc.system.progress import shown


class CommandOrRecipe(TyperGroup):
    """Commands by name; any other first word is a bench recipe."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            _, command, rest = super().resolve_command(ctx, [RECIPE, *args])
            return "", command, rest  # so that the usage line reads `amc bench [OPTIONS] {RECIPE}`
        return super().resolve_command(ctx, args)


def finite(param: typer.CallbackParam, value: float | None) -> float | None:
    """The value of a numeric flag; raises `UsageError` where it is NaN or infinite."""
    if value is not None and not math.isfinite(value):
        raise UsageError(f"{param.opts[0]} must be a finite number, but is {value}")
    return value


RECIPE = "RECIPE"  # the name under which `--help` lists what a bench recipe runs
bench = typer.Typer(
    cls=CommandOrRecipe,
    help="Measure our own claims, side by side with what they are compared to.",
    no_args_is_help=True,
)


ModelsOption = Annotated[list[str] | None, typer.Option("--model", "-m", help="Networks; default: several.")]
ThreadsOption = Annotated[int, typer.Option(min=1, help="Threads of torch.")]


@bench.command(RECIPE)
def bench_methods(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A built-in bench recipe (`amc recipes`) or a TOML file.")
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: runs/bench/NAME.")] = None,
    minutes: Annotated[
        float, typer.Option(min=0, callback=finite, help="Stop after so many, between two trials.")
    ] = 45.0,
    only: Annotated[
        list[str] | None, typer.Option(help="A method of the recipe; may be repeated. Default: all.", metavar="METHOD")
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Measure nothing: the figures of what is there.")] = False,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare methods of search with the same trials, recovery and fine-tune: `amc bench tiny`.

    The same command goes on where the last one stopped.
    """
    from amc.bench.search_methods.bench_recipe import load_bench_recipe
    from amc.bench.search_methods.flow import Scope, bench_methods
    from amc.bench.search_methods.tables import table_text

    wanted = load_bench_recipe(recipe)
    folder = out or Path("runs/bench") / wanted.name
    with shown(quiet=quiet) as progress:
        found = bench_methods(wanted, folder, Scope(minutes, tuple(only or ()), report), progress)
    print_result(found if json_ else f"{table_text(found)}\n\n{folder}/plots.html, results.json, table.md")


@bench.command("cascade")
def bench_cascade(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A built-in cascade recipe (`amc recipes`) or a TOML file.")
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: runs/bench/cascade/NAME.")] = None,
    runs: Annotated[
        Path, typer.Option(help="Where the runs are whose families are used; made there where missing.")
    ] = Path("runs/bench/cascade/runs"),
    minutes: Annotated[float, typer.Option(min=0, callback=finite, help="Begin no further seed after so many.")] = 45.0,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what dynamic inference is worth, one study at a time: `amc bench cascade plans`.

    The same command goes on where the last one stopped.
    """
    from amc.bench.cascade.studies import bench_cascade
    from amc.bench.cascade.study_goals import summary_text
    from amc.bench.cascade.study_recipe import load_cascade_recipe

    wanted = load_cascade_recipe(recipe)
    folder = out or Path("runs/bench/cascade") / wanted.name
    with shown(quiet=quiet) as progress:
        found = bench_cascade(wanted, folder, runs, progress, minutes)
    print_result(found if json_ else f"{summary_text(found['grounds'])}\n\n{folder}/results.json, table.txt")


@bench.command("cut")
def bench_cut(
    model: ModelsOption = None,
    size: Annotated[int, typer.Option(min=16, help="Height and width of the images.")] = 224,
    json_: JsonOption = False,
) -> None:
    """Time tracing, cutting and counting, beside torch-pruning's build and step."""
    from amc.bench.cut import NETWORKS, bench_cut, cut_text

    rows = [bench_cut(recipe_of(model=name, weights="none"), size) for name in model or NETWORKS]
    print_result(rows if json_ else cut_text(rows))


@bench.command("trial")
def bench_trial(
    model: ModelsOption = None,
    policies: Annotated[int, typer.Option(min=1, help="Random policies, at 30 to 80 % of the MACs.")] = 5,
    size: Annotated[int, typer.Option(min=32, help="Height and width of the images, but for resnet20.")] = 64,
    threads: ThreadsOption = 1,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Time the parts of a trial, beside the bare forward passes that it needs."""
    from amc.bench.trial import NETWORKS, bench_trial, trial_recipe, trial_text

    with shown(quiet=quiet) as progress:
        rows = [bench_trial(trial_recipe(name, size, threads), policies, progress) for name in model or NETWORKS]
    print_result(rows if json_ else trial_text(rows))


@bench.command("workers")
def bench_workers(
    recipe: RecipeOption = None,
    workers: Annotated[int, typer.Option(min=2, help="Processes, beside one.")] = 2,
    trials: Annotated[int, typer.Option(min=20, help="Of each search.")] = 100,
    repeats: Annotated[int, typer.Option(min=1, help="Searches of either kind, in turns.")] = 3,
    set_: SetOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Count the policies a minute of several worker processes, beside those of one."""
    from amc.bench.workers import bench_workers, workers_text

    with shown(quiet=quiet) as progress:
        wanted = recipe_of(recipe, settings=set_)
        found = bench_workers(wanted, workers, trials, repeats, progress)
    print_result(found if json_ else workers_text(found))


@bench.command("study")
def bench_study(
    trials: Annotated[int, typer.Option(min=100, help="Measured policies in the study.")] = 10_000,
    groups: Annotated[int, typer.Option(min=4, help="Groups of channels.")] = 60,
    json_: JsonOption = False,
) -> None:
    """Time opening, proposing for and retargeting a very long study, and tell the memory."""
    from amc.bench.study import bench_study, study_text

    found = bench_study(trials, groups)
    print_result(found if json_ else study_text(found))


@bench.command("ascent")
def bench_ascent(
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    budget: Annotated[list[str] | None, typer.Option("--budget", "-b", help="May be repeated.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Ascents of each kind.")] = 3,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare the ascent with ascents that lack a part, on a run's predictor and from nothing measured."""
    from amc.bench.ascent import ascent_text, bench_ascent
    from amc.job.run import Run

    with shown(quiet=quiet) as progress:
        found = bench_ascent(Run.open(run), budget or ["10%", "20%", "30%", "50%", "70%"], seeds, progress)
    print_result(found if json_ else ascent_text(found))


@bench.command("stop")
def bench_stop(
    recipe: RecipeOption = None,
    trials: Annotated[int, typer.Option(min=10, help="Of each search.")] = 60,
    seeds: Annotated[int, typer.Option(min=1, help="Searches of either kind.")] = 3,
    set_: SetOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare searches with and without early stopping: time, and what they find."""
    from amc.bench.stop import bench_stop, stop_text

    with shown(quiet=quiet) as progress:
        found = bench_stop(recipe_of(recipe, settings=set_), trials, seeds, progress)
    print_result(found if json_ else stop_text(found))


@bench.command("predictor")
def bench_predictor(
    policies: Annotated[Path, typer.Option(help=".npy, a row a policy; columns up to 1 are pruned fractions.")],
    accuracy: Annotated[Path, typer.Option(help=".npy, a number a policy, a fraction or in percent.")],
    trials: Annotated[str, typer.Option(help="How many policies to learn from, beside all.")] = "20,40,80,160",
    seeds: Annotated[int, typer.Option(min=1, help="Random 80/20 splits.")] = 20,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare our predictor with usual regressions on measured policies."""
    from amc.bench.predictor import bench_predictor, counts_of, load_measured, predictor_text

    measured, counts = load_measured(policies, accuracy), counts_of(trials)
    with shown(quiet=quiet) as progress:
        found = bench_predictor(measured, counts, seeds, progress)
    print_result(found if json_ else predictor_text(found))


@bench.command("rounding")
def bench_rounding(recipe: RecipeOption = None, set_: SetOption = None, json_: JsonOption = False) -> None:
    """Time a network's heaviest layers at widths of multiples of 8, 16 and 32."""
    from amc.bench.rounding import bench_rounding, rounding_text

    found = bench_rounding(recipe_of(recipe, settings=set_))
    print_result(found if json_ else rounding_text([found]))


@bench.command("recovery")
def bench_recovery(
    recipe: RecipeOption = None,
    policies: Annotated[int, typer.Option(min=1, help="Random policies, at 25 to 80 % of the MACs.")] = 6,
    epochs: Annotated[float, typer.Option(min=0, callback=finite, help="Of the short fine-tune.")] = 2.0,
    set_: SetOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare kinds of recovery, before and after an equal short fine-tune."""
    from amc.bench.recovery import bench_recovery, recovery_text

    with shown(quiet=quiet) as progress:
        found = bench_recovery(recipe_of(recipe, settings=set_), policies, epochs, progress)
    print_result(found if json_ else recovery_text(found))


@bench.command("objectives")
def bench_objectives(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe or a bench recipe.")] = "quickstart",
    caps: Annotated[
        str | None, typer.Option(help="Separated by commas, joined by + where all hold; default: 15%,40%.")
    ] = None,
    policies: Annotated[int, typer.Option(min=1, help="For each cap.")] = 24,
    kinds: Annotated[
        str,
        typer.Option(
            help="Of trials: none, batchnorm, fold; with steps of distillation, e.g. fold+20x64@0.1. The good "
            "half of the policies is chosen by the trials fold and fold+20, which are taken besides."
        ),
    ] = "none,batchnorm,fold,fold+20,fold+50,fold+100",
    epochs: Annotated[
        float | None, typer.Option(callback=finite, help="Of the long fine-tune; default: the recipe's.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Seeds of it, for a third of the policies or eight.")] = 2,
    minutes: Annotated[
        float, typer.Option(min=0, callback=finite, help="Then exit 130; the same command goes on.")
    ] = 45.0,
    out: Annotated[str | None, typer.Option("--out", "-o", help="Default: runs/objectives/NAME.")] = None,
    set_: SetOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Judge kinds of trials by long fine-tunes of the same policies."""
    from amc.bench.caps import recipe_and_caps
    from amc.bench.objectives.measurement import ComparisonDesign, bench_objectives
    from amc.bench.objectives.presentation import objectives_text, write_report

    wanted, limits = recipe_and_caps(recipe, caps, settings_of(set_))
    design = ComparisonDesign.of(limits, kinds, policies, wanted.finetune.epochs if epochs is None else epochs, repeats)
    folder = Path(out or f"runs/objectives/{wanted.name}")
    with shown(quiet=quiet) as progress:
        found = bench_objectives(wanted, design, folder, minutes, progress)
    write_report(found, folder)
    print_result(found if json_ else objectives_text(found))
