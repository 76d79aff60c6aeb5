"""`amc.compress` and `amc.open_run`: the main flow, for names and for objects alike."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amc.cost.trace import digest_tensors
from amc.job import compress as flow
from amc.job.job import Brought, load_data, load_model
from amc.job.recipe import Recipe, amended, check_data_named, job_name, load_recipe
from amc.job.run import Run
from amc.system.errors import UsageError
from amc.system.progress import Progress
from amc.zoo.data.loaders import as_split, as_splits, hold_out_split
from amc.zoo.data.splits import Splits
from amc.zoo.networks.source import ModelSource
from amc.zoo.task import Task, load_task
from amc.zoo.trust import Trust, allow

HELD_OUT = 0.1  # share of a train set that becomes the validation split where none is given

Function = Callable[..., Any]


def compress(
    model: str | nn.Module | None = None,
    *,
    data: str | None = None,
    train: Any = None,
    validation: Any = None,
    test: Any = None,
    budget: str | Sequence[str] | None = None,
    recipe: str | Path | Recipe | None = None,
    weights: str | Path | None = None,
    metric: str | Function | None = None,
    batch: str | Function | None = None,
    loss: str | Function | None = None,
    out: str | Path | None = None,
    device: str | torch.device | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
    settings: dict[str, object] | None = None,
) -> Run:
    """Compress a trained network under a budget; with no arguments, the quickstart recipe.

    Args:
        model: an `nn.Module`, or a name: `resnet20`, a torchvision name, `timm:NAME` or `package.module:factory`.
        data: a data set by name: `imagefolder:/data/imagenet`, `fashion-mnist`, ... (see `amc compress --help`).
        train: in place of `data`, the examples to train on: a DataLoader, a data set, or a list of batches.
        validation: likewise, what policies are chosen on; None: a tenth of `train`, where that is a data set.
        test: likewise, looked at once, at the end; None: the validation split stands in for it, and the figures say so.
        budget: `1.2GFLOPs` (1 FLOP is 1 multiply-add), `40%`, `9MB`, ...; several all hold.
        recipe: a built-in recipe, a TOML file or a `Recipe`; the other arguments override it.
        weights: a file, `default` or `none`, for a network by name.
        metric: from outputs and batch to scores in [0, 1], as a function or `package.module:function`; None: accuracy,
            or agreement with the dense network where batches carry no labels. See `amc.zoo.task`.
        batch: from a batch to the network's arguments; None: the batch's first element.
        loss: from outputs and batch to what fine-tuning makes small; None: cross-entropy.
        out: the run folder; the same call with the same folder resumes.
        device: where it runs; None: the GPU where there is one.
        seed: what all randomness starts from.
        progress: where it is shown; None shows nothing.
        settings: any other recipe key, dotted: `{"finetune.epochs": 10}`.

    Raises:
        AmcError: see `amc.system.errors`; the message is one line with the fix.
    """
    if model is not None and not isinstance(model, (str, nn.Module)):
        made = f"; give {model.__name__}()" if isinstance(model, type) else ""
        raise UsageError(f"model must be an nn.Module or a name, but is {model!r}{made}")
    if recipe is None and model is None and train is None:
        recipe = "quickstart"
    if recipe is None and data is None and train is None:
        check_data_named(model)
    overrides: dict[str, object] = dict(settings or {})
    overrides |= {
        "model.name": model if isinstance(model, str) else None,
        "model.weights": None if weights is None else str(weights),
        "data.name": data,
        "task.metric": metric if isinstance(metric, str) else None,
        "task.batch": batch if isinstance(batch, str) else None,
        "task.loss": loss if isinstance(loss, str) else None,
        "budget": list(budget) if isinstance(budget, (tuple, set)) else budget,
        "out": None if out is None else str(out),
        "device": None if device is None else str(device),
        "seed": seed,
    }
    if recipe is None and model is not None:
        overrides["name"] = job_name(model) if isinstance(model, str) else type(model).__name__.lower()
    wanted = amended(recipe, overrides) if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
    objects = isinstance(model, nn.Module) or train is not None or any(map(callable, (metric, batch, loss)))
    if not objects:
        return flow.compress(wanted, progress)
    task = load_task(batch or wanted.task.batch, metric or wanted.task.metric, loss or wanted.task.loss)
    wanted, brought = _brought(wanted, model, train, validation, test, task)
    return flow.compress(wanted, progress, brought)


def _brought(
    recipe: Recipe, model: str | nn.Module | None, train: Any, validation: Any, test: Any, task: Task
) -> tuple[Recipe, Brought]:
    """Objects as a job takes them, and the recipe that names them by their digests: another object is another job."""
    data = _data(recipe, train, validation, test)
    names: dict[str, object] = {}
    if train is not None:
        names["data.name"] = f"object:{data.digest}"
    if isinstance(model, nn.Module):
        source = ModelSource.of_object(model)
        names |= {"model.name": source.name, "model.weights": f"digest:{digest_tensors(model.state_dict())}"}
        model = copy.deepcopy(model)  # derived weights are materialised in place
    else:
        source, model = load_model(recipe, data.num_classes, data.input_shape)
    names |= dict(zip(("task.batch", "task.metric", "task.loss"), (name or None for name in task.names), strict=True))
    return amended(recipe, names), Brought(source, model, data, task)


def _data(recipe: Recipe, train: Any, validation: Any, test: Any) -> Splits:
    if train is None:
        if validation is not None or test is not None:
            raise UsageError("`validation` and `test` go with `train`, but there is none; give train=")
        return load_data(recipe)
    whole = as_split(train, "train")
    if validation is None:
        rest, held = hold_out_split(whole, HELD_OUT, recipe.seed)
        return as_splits(rest, held, held if test is None else test)
    held_out = as_split(validation, "validation")
    return as_splits(whole, held_out, held_out if test is None else test)


def open_run(folder: str | Path, trust: Trust = (), **objects: Any) -> Run:
    """A finished run.

    Args:
        folder: its `out`.
        trust: names of the user's own code that its recipe may import (`amc.zoo.trust`).
        objects: for a run that was made from objects, the same `model`, `train`, `validation`, `test`, `metric`,
            `batch` and `loss` again: what needs the dense network needs them.

    Raises:
        RunError: there is no finished run in `folder`.
    """
    allow(trust)
    run = Run.open(folder)
    if objects:
        batch, metric, loss = (objects.pop(key, None) for key in ("batch", "metric", "loss"))
        model, train, validation, test = (objects.pop(key, None) for key in ("model", "train", "validation", "test"))
        if objects:
            raise UsageError(f"open_run takes the objects of compress, but got {next(iter(objects))!r}")
        task = load_task(batch, metric, loss)
        run.brought = _brought(run.recipe, model, train, validation, test, task)[1]
    return run
