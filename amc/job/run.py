"""The run folder: everything that one `amc compress` made, and what can be asked of it later.

recipe.toml          the resolved recipe: the same command finds its own folder again by it
study.db             all trials (unless the recipe names another storage)
dense.safetensors    groups, ranks and moments of the dense network
predictor.safetensors
policy.json          the policy released
model.safetensors, architecture.json, README.md    the release
metrics.json, report.html
retarget/BUDGET/     releases for other budgets
family/              networks, exits and records that cascades are made of
cascade/TERMS/       cascades
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import nn

from amc.cost.budget import Budget, parse_budgets
from amc.job.job import Brought, Job, open_job
from amc.job.recipe import Recipe, resolved_toml
from amc.job.run_folder import METRICS as METRICS
from amc.job.run_folder import POLICY as POLICY
from amc.job.run_folder import PREDICTOR as PREDICTOR
from amc.job.run_folder import RECIPE, RunFolder, read_json, read_recipe
from amc.release.archive import load_network, save_network
from amc.study.optimize import CANDIDATES, best_policy, fit_predictor, load_predictor
from amc.study.policy import Policy
from amc.study.trials import Study
from amc.system.errors import RunError, StorageError
from amc.system.files import explain_storage, write_json, write_text
from amc.system.progress import Progress
from amc_predictor import CalibratedPredictor

# Keys of a recipe that a run may be gone on with under other values: where and how it is made, not what.
TRIALS = "search.trials"  # may grow
MAY_DIFFER = ("out", "threads", "search.workers", "surgery.trace_seconds", "surgery.trace_gigabytes")


@contextmanager
def claimed(folder: Path, otherwise: str = "give --out") -> Iterator[None]:
    """Hold the run folder for this process; the system lets go when the process ends, however it ends.

    Args:
        otherwise: what can be done instead of waiting.

    Raises:
        RunError: another process holds it.
        StorageError: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(
            f"one process may work in a run folder, but another one is at work in {folder}; wait for it, or {otherwise}"
        ) from None
    except OSError as error:
        raise StorageError(explain_storage(folder, error)) from error
    try:
        yield
    finally:
        lock.release()


def open_folder(folder: Path, recipe: Recipe) -> None:
    """Write the recipe into a new run folder, or check that the folder is this recipe's.

    Raises:
        RunError: the folder holds the run of another recipe, or files that are no run.
    """
    path = folder / RECIPE
    begun = any(entry.name not in (".lock", RECIPE) for entry in folder.iterdir())
    if path.is_file() and begun:
        mine, theirs = (_leaves(each.model_dump()) for each in (recipe, read_recipe(folder)))
        different = [key for key in mine if mine[key] != theirs.get(key) and key not in MAY_DIFFER]
        if different == [TRIALS] and mine[TRIALS] > theirs[TRIALS]:
            write_text(path, resolved_toml(recipe))  # the search goes on from what it has
        elif different:
            key = different[0]
            raise RunError(
                f"a run folder holds one job, but {folder} was made with {key} = {theirs.get(key)!r} and this "
                f"is {mine[key]!r}; give another --out"
                + (", or `amc retarget` for another budget" if key == "budget" else "")
            )
        return
    if begun:
        stranger = next(entry.name for entry in folder.iterdir() if entry.name not in (".lock", RECIPE))
        raise RunError(f"a new run needs an empty folder, but {folder} holds {stranger!r}; give another --out")
    write_text(path, resolved_toml(recipe))


def has_finished(folder: Path) -> bool:
    """Whether the run in `folder` has released what its recipe asks for."""
    if not (folder / METRICS).is_file():
        return False
    metrics = read_json(folder / METRICS)  # runs of before there was `asked_trials` are known by what they measured
    return bool(metrics.get("asked_trials", metrics["trials"]) >= read_recipe(folder).search.trials)


def _leaves(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


@dataclass
class Run(RunFolder):
    """A finished run: what its files tell, its network, and what can be asked of it.

    Attributes:
        brought: network, data and task, where the run was made from objects.
    """

    brought: Brought | None = field(default=None, repr=False)

    @classmethod
    def open(cls, folder: str | Path, brought: Brought | None = None) -> Self:
        """Raises `RunError` when the folder is missing, holds no run, or the run has not finished."""
        run = super().open(folder)
        run.brought = brought
        return run

    @cached_property
    def model(self) -> nn.Module:
        """The released network, fine-tuned, in `eval` mode."""
        return load_network(self.folder, None if self.brought is None else self.brought.source.structure)

    @cached_property
    def job(self) -> Job:
        """The dense network, its groups, costs and data.

        Raises `RunError` when weights or data are no longer those of the run: its trials would not hold for them.
        """
        job = open_job(self.recipe, self.folder, brought=self.brought, store=False)
        for what, now in job.digests.items():
            if now != self.metrics["digests"][what]:
                raise RunError(
                    f"a run needs the {what} it was made with, but those of {self.folder} have changed since; "
                    "bring them back, or start a new run with another --out"
                )
        return job

    @cached_property
    def predictor(self) -> CalibratedPredictor:
        """The one that was kept, or, where that is lost or of another version, one that learns from the same trials."""
        name = self.recipe.search.predictor
        return load_predictor(self.folder / PREDICTOR, name) or fit_predictor(self.study, name).predictor

    @cached_property
    def study(self) -> Study:
        return self.job.study(self.folder)

    def retarget(self, *budgets: str | Budget, candidates: int = CANDIDATES) -> Retargeted:
        """The best policy for other budgets from what was measured: no new search.

        Args:
            budgets: caps that must all hold.
            candidates: how many of the best by prediction are measured, beside uniform ratios, before one is taken; 0
                takes the best by prediction as it is.

        Raises:
            BudgetUnreachable: no policy fits.
            UsageError: a budget is malformed.
        """
        parsed = parse_budgets(budgets)
        policy = best_policy(self.study, self.predictor, self.job.trace.caps(parsed), candidates)
        return Retargeted(self, parsed, policy)

    def save(self, folder: str | Path) -> None:
        """Copy the release (weights and record) to another folder."""
        save_release(Path(folder), self.model, self.job)


@dataclass
class Retargeted:
    """The answer to another budget."""

    run: Run
    budgets: tuple[Budget, ...]
    policy: Policy

    @property
    def costs(self) -> dict[str, float]:
        """Unit -> exact cost."""
        return dict(self.run.job.trace.costs_of(self.policy.array, self.budgets))

    @cached_property
    def model(self) -> nn.Module:
        """The network, cut and recovered, not fine-tuned."""
        return self.run.job.measure.realise(self.policy.array).eval()

    def finetune(self, progress: Progress | None = None) -> float:
        """Fine-tune `model` as the run's recipe says; returns its accuracy on the validation split."""
        job = self.run.job
        start = job.measure.evaluate_whole(self.model).accuracy
        return job.finetune(self.model, start=start, progress=progress).best_accuracy

    def save(self, folder: str | Path) -> None:
        """Write the release to `folder`: weights, record, policy, costs."""
        folder = Path(folder)
        save_release(folder, self.model, self.run.job)
        trial = self.policy.trial
        write_json(
            folder / POLICY,
            {
                "run": os.path.relpath(self.run.folder, folder),
                "policy": self.policy.kept,
                "costs": self.costs,
                "budgets": self.run.job.trace.held(self.budgets, self.policy.array),
                "predicted": {"mean": self.policy.mean, "std": self.policy.std},
                "measured": {"accuracy": trial.accuracy, "loss": trial.loss} if trial else None,
            },
        )


def save_release(folder: Path, model: nn.Module, job: Job) -> None:
    """Write weights and architecture record."""
    save_network(folder, model, job.source, job.data.input_shape, job.normalisation, job.trace.example)


def policy_table(space_names: Sequence[str], policy: NDArray[np.int64]) -> dict[str, int]:
    """Group name -> channels kept."""
    return dict(zip(space_names, policy.tolist(), strict=True))
