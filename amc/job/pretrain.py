"""`amc train`: a dense network from random weights, by a recipe's `[train]` table."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from amc.job.job import bring
from amc.job.recipe import Recipe
from amc.job.run import claimed
from amc.release.archive import save_network
from amc.system.device import Compute
from amc.system.errors import RunError
from amc.system.files import write_json
from amc.system.progress import Progress, Silent
from amc.train.distributed import join, rank
from amc.train.evaluation import evaluate
from amc.train.own_exits import exit_accuracies, with_every_exit
from amc.train.training import train

FORMAT = "amc-training/1"


def pretrain(recipe: Recipe, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Train the recipe's network from scratch and write it to `out`; returns what `training.json` holds.

    The weights kept are those best on the validation split; the test split is looked at once, after that. The same
    command goes on where it was stopped.

    Raises:
        RunError: `out` already holds a trained network.
        ModelError, DataError, StorageError: one line each.
    """
    progress = progress or Silent()
    join()
    with claimed(out) if rank() == 0 else nullcontext():
        if (out / "training.json").is_file():
            raise RunError(
                f"a new training needs a folder without one, but {out} holds training.json; give another --out"
            )
        return _pretrain(recipe, out, progress)


def _pretrain(recipe: Recipe, out: Path, progress: Progress) -> dict[str, Any]:
    import torch

    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    compute = Compute.of(recipe.device)
    untrained = recipe.model_copy(update={"model": recipe.model.model_copy(update={"weights": "none"})})
    brought = bring(untrained)
    source, model, splits, task = brought.source, brought.model, brought.data, brought.task
    compute.place(model)
    checkpoint = out / "checkpoint.pt"
    trained, aim = with_every_exit(model, task)
    done = train(
        trained, splits, recipe.train, compute, seed=recipe.seed, checkpoint=checkpoint,
        title=f"train {recipe.model.name}", progress=progress, task=aim,
    )  # fmt: skip
    test = evaluate(model.eval(), splits.test, compute, task=task)
    exits = exit_accuracies(model, splits.validation, compute) if task.metric is None and task.batch is None else []
    if exits:
        progress.say(f"its exits on the validation split: {', '.join(f'{accuracy:.2%}' for accuracy in exits)}")
    record = {
        "format": FORMAT,
        "model": source.to_json(),
        "data": splits.name,
        "train_pictures": len(splits.train),
        "schedule": recipe.train.model_dump(),
        "seed": recipe.seed,
        "seconds": done.seconds,
        "metric": task.metric_name,
        "measure_accuracies": done.accuracies,
        "measure_accuracy": done.best_accuracy,
        "exit_measure_accuracies": exits,  # of a network with exits of its own, the last one being the network
        "test_accuracy": test.accuracy,
        "test_interval_95": list(test.interval_95),
        "test_loss": test.loss,  # nats, as in amc.train.evaluation
        "compute": compute.name,
        "torch": torch.__version__,
    }
    if rank() == 0:
        save_network(out, model, source, splits.input_shape)
        write_json(out / "training.json", record)
        checkpoint.unlink(missing_ok=True)
    return record
