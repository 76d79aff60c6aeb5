"""The library's face: what the command line does, as functions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from amc import flow
from amc.progress import Progress
from amc.recipe import load_recipe
from amc.release.archive import load_network
from amc.run import Run


def compress(
    model: str | None = None,
    *,
    data: str | None = None,
    budget: str | Sequence[str] | None = None,
    recipe: str | Path | None = None,
    weights: str | Path | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
    settings: dict[str, object] | None = None,
) -> Run:
    """Compress a trained network under a budget; with no arguments, the quickstart recipe.

    Args:
        model: `resnet20`, a torchvision name, `timm:NAME` or `package.module:factory`.
        data: `imagefolder:/data/imagenet`, `fashion-mnist`, ... (`amc compress --help` lists them).
        budget: `1.2GFLOPs` (1 FLOP is 1 multiply-add), `40%`, `9MB`, ...; several all hold.
        recipe: a built-in recipe or a TOML file; the other arguments override it.
        weights: a file, `default` or `none`.
        out: the run folder; the same call with the same folder resumes.
        progress: told what is being done; None is silent.
        settings: any other recipe key, dotted: `{"finetune.epochs": 10}`.

    Raises:
        AmcError: see `amc.errors`; the message is one line with the mend.
    """
    if recipe is None and model is None:
        recipe = "quickstart"
    overrides: dict[str, object] = dict(settings or {})
    overrides |= {
        "model.name": model,
        "model.weights": None if weights is None else str(weights),
        "data.name": data,
        "budget": budget if budget is None or isinstance(budget, str) else list(budget),
        "out": None if out is None else str(out),
    }
    if recipe is None and model is not None:
        overrides["name"] = model.rpartition(":")[2]
    return flow.compress(load_recipe(recipe, overrides), progress)


def load(folder: str | Path) -> nn.Module:
    """A released network, in `eval` mode, on the CPU. See `amc.release.archive.load_network`."""
    return load_network(folder)


def open_run(folder: str | Path) -> Run:
    """A finished run. Raises `RunError` when there is none in `folder`."""
    return Run.open(folder)
