"""The library's face: what the command line does, as functions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from amc.cascade import archive
from amc.cascade.runtime import Cascade
from amc.job import compress as flow
from amc.job.recipe import job_name, load_recipe
from amc.job.run import Run
from amc.release.archive import load_network
from amc.system.device import Compute
from amc.system.progress import Progress
from amc.zoo.networks.source import Structure
from amc.zoo.trust import Trust, allow


def compress(
    model: str | None = None,
    *,
    data: str | None = None,
    budget: str | Sequence[str] | None = None,
    recipe: str | Path | None = None,
    weights: str | Path | None = None,
    metric: str | None = None,
    batch: str | None = None,
    loss: str | None = None,
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
        metric: `package.module:function` from outputs and batch to scores in [0, 1]; None: accuracy (`amc.zoo.task`).
        batch: `package.module:function` from a batch to the network's arguments; None: the batch's first element.
        loss: `package.module:function` from outputs and batch to what fine-tuning makes small; None: cross-entropy.
        out: the run folder; the same call with the same folder resumes.
        progress: where it is shown; None shows nothing.
        settings: any other recipe key, dotted: `{"finetune.epochs": 10}`.

    Raises:
        AmcError: see `amc.system.errors`; the message is one line with the fix.
    """
    if recipe is None and model is None:
        recipe = "quickstart"
    overrides: dict[str, object] = dict(settings or {})
    overrides |= {
        "model.name": model,
        "model.weights": None if weights is None else str(weights),
        "data.name": data,
        "task.metric": metric,
        "task.batch": batch,
        "task.loss": loss,
        "budget": list(budget) if isinstance(budget, (tuple, set)) else budget,
        "out": None if out is None else str(out),
    }
    if recipe is None and model is not None:
        overrides["name"] = job_name(model)
    return flow.compress(load_recipe(recipe, overrides), progress)


def load(folder: str | Path, model: Structure | None = None, trust: Trust = ()) -> nn.Module:
    """A released network, in `eval` mode, on the CPU. See `amc.release.archive.load_network`."""
    return load_network(folder, model, trust)


def open_run(folder: str | Path, trust: Trust = ()) -> Run:
    """A finished run; `trust` names the user's own code in its recipe (`amc.zoo.trust`).

    Raises:
        RunError: there is none in `folder`.
    """
    allow(trust)
    return Run.open(folder)


def load_cascade(folder: str | Path, trust: Trust = ()) -> Cascade:
    """What `amc cascade` kept, ready to run: `load_cascade(folder).run(inputs)` on the GPU where there is one.

    `trust` names the user's own code that its networks are built by (`amc.zoo.trust`).

    Raises:
        RunError: there is no cascade in `folder`, or a file is damaged.
        ModelError: a network is built by code that is not trusted.
    """
    allow(trust)
    compute = Compute.detect()
    found = archive.load_cascade(folder, compute)
    return Cascade(found.stages, found.policy, compute)
