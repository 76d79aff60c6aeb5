"""The commands of `amc bench`: each parses, calls one function, prints."""

from __future__ import annotations

from typing import Annotated

import typer

from amc.options import JsonOption, QuietOption, RecipeOption, SetOption, print_result, recipe_of

bench = typer.Typer(help="Measure our own claims, side by side with what they are compared to.", no_args_is_help=True)


ModelsOption = Annotated[list[str] | None, typer.Option("--model", "-m", help="Networks; left out: several.")]
ThreadsOption = Annotated[int, typer.Option(min=1, help="Threads of torch.")]


@bench.command("cut")
def bench_cut(
    model: ModelsOption = None,
    size: Annotated[int, typer.Option(min=16, help="Height and width of the pictures.")] = 224,
    json_: JsonOption = False,
) -> None:
    """Time tracing, cutting and counting, beside torch-pruning's build and step."""
    from amc.bench.cut import NETWORKS, bench_cut, cut_text

    rows = [bench_cut(recipe_of(None, name, "none", None, None, None, {}), size) for name in model or NETWORKS]
    print_result(rows if json_ else cut_text(rows))


@bench.command("trial")
def bench_trial(
    model: ModelsOption = None,
    policies: Annotated[int, typer.Option(min=1, help="Random policies, at 30 to 80 % of the MACs.")] = 5,
    size: Annotated[int, typer.Option(min=32, help="Height and width of the pictures, but for resnet20.")] = 64,
    threads: ThreadsOption = 1,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Time the parts of a trial, beside the bare forward passes that it needs."""
    from amc.bench.trial import NETWORKS, bench_trial, trial_recipe, trial_text
    from amc.progress import shown

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
    from amc.progress import shown

    with shown(quiet=quiet) as progress:
        wanted = recipe_of(recipe, None, None, None, None, set_, {})
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
    from amc.progress import shown

    with shown(quiet=quiet) as progress:
        found = bench_stop(recipe_of(recipe, None, None, None, None, set_, {}), trials, seeds, progress)
    print_result(found if json_ else stop_text(found))


@bench.command("rounding")
def bench_rounding(recipe: RecipeOption = None, set_: SetOption = None, json_: JsonOption = False) -> None:
    """Time a network's heaviest layers at widths of multiples of 8, 16 and 32."""
    from amc.bench.rounding import bench_rounding, rounding_text

    found = bench_rounding(recipe_of(recipe, None, None, None, None, set_, {}))
    print_result(found if json_ else rounding_text([found]))


@bench.command("recovery")
def bench_recovery(
    recipe: RecipeOption = None,
    policies: Annotated[int, typer.Option(min=1, help="Random policies, at 25 to 80 % of the MACs.")] = 6,
    epochs: Annotated[float, typer.Option(min=0, help="Of the short fine-tune.")] = 2.0,
    set_: SetOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare kinds of recovery, before and after an equal short fine-tune."""
    from amc.bench.recovery import bench_recovery, recovery_text
    from amc.progress import shown

    with shown(quiet=quiet) as progress:
        found = bench_recovery(recipe_of(recipe, None, None, None, None, set_, {}), policies, epochs, progress)
    print_result(found if json_ else recovery_text(found))
