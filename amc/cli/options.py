"""What commands share: their flags, the recipe that those ask for, and how a result is printed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer


def _trust(names: list[str] | None) -> list[str] | None:
    """Trust what `--trust` names, before anything is read."""
    if names:
        from amc.zoo.trust import allow

        allow(names)
    return names


RecipeOption = Annotated[str | None, typer.Option("--recipe", "-r", help="A built-in recipe or a TOML file.")]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", "-m", help="resnet20, a torchvision name, timm:NAME, or package.module:factory."),
]
WeightsOption = Annotated[str | None, typer.Option(help="FILE, default, or none (random).")]
DataOption = Annotated[
    str | None,
    typer.Option(
        help="fashion-mnist-10k, fashion-mnist, imagefolder:FOLDER, images:FOLDER (no labels), "
        "cifar10:FOLDER, idx:FOLDER, hapt:FOLDER, or "
        "package.module:factory."
    ),
]
MetricOption = Annotated[
    str | None,
    typer.Option(
        help="package.module:function from outputs and batch to scores in 0..1, or agreement (with the dense "
        "network); default: accuracy, or agreement where batches carry no labels."
    ),
]
BatchOption = Annotated[
    str | None,
    typer.Option(help="package.module:function from a batch to the network's arguments; default: its first element."),
]
LossOption = Annotated[
    str | None,
    typer.Option(help="package.module:function from outputs and batch to a loss; default: cross-entropy."),
]
BudgetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--budget", "-b", help="1.2GFLOPs (1 FLOP = 1 multiply-add), 600M, 40%, 2.5Mparams, 9MB; several hold at once."
    ),
]
RoundToOption = Annotated[
    str | None,
    typer.Option("--round-to", help="Multiples to keep channels in; auto: by this machine's speed.", metavar="N|auto"),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="Any recipe key, e.g. --set finetune.epochs=10.", metavar="KEY=VALUE"),
]
IgnoreOption = Annotated[
    list[str] | None, typer.Option(help="A module none of whose channels are cut; may be repeated.", metavar="NAME")
]
OutOption = Annotated[str | None, typer.Option("--out", "-o", help="The run folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, mps; default: the GPU where there is one.", metavar="DEVICE")
]
TrustOption = Annotated[
    list[str] | None,
    typer.Option(
        help="package.module:factory of yours that the files read here may name; may be repeated.",
        metavar="NAME",
        callback=_trust,
    ),
]
RunArgument = Annotated[Path, typer.Argument(help="A run folder.")]


def recipe_of(
    recipe: str | None = None,
    model: str | None = None,
    weights: str | None = None,
    data: str | None = None,
    budget: list[str] | None = None,
    settings: list[str] | None = None,
    flags: Mapping[str, Any] = MappingProxyType({}),
    needs_data: bool = True,
) -> Any:
    """The recipe asked for: the quickstart without `--recipe` and `--model`; `--model` alone starts from defaults."""
    from amc.job.recipe import check_data_named, job_name, load_recipe

    overrides: dict[str, object] = dict(flags)
    overrides |= {"model.name": model, "model.weights": weights, "data.name": data, "budget": budget or None}
    overrides |= settings_of(settings)
    if recipe is None and model is None:
        recipe = "quickstart"
    if recipe is None and model is not None:
        overrides["name"] = job_name(model)
        if needs_data and data is None:
            check_data_named(model)
    return load_recipe(recipe, overrides)


def use_device(device: str | None) -> None:
    """Run on `device` whatever the run's own recipe says; None: as it says."""
    if device is not None:
        os.environ["AMC_DEVICE"] = device


def settings_of(settings: list[str] | None) -> dict[str, object]:
    """What `--set KEY=VALUE` asks for."""
    from amc.system.errors import UsageError

    overrides: dict[str, object] = {}
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UsageError(f"--set must be KEY=VALUE, but is {setting!r}; e.g. --set finetune.epochs=10")
        overrides[key] = value
    return overrides


def print_result(result: Any) -> None:
    """A text as it is, anything else as JSON, on stdout."""
    if os.environ.get("RANK", "0") != "0":  # one process of `torchrun` speaks for all
        return
    if isinstance(result, str):
        print(result)
    else:
        print(json.dumps(result, indent=2))
