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
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import nn

from amc.cost.budget import Budget, parse_budgets
from amc.job.dense import Dense, prepare
from amc.job.folder import METRICS as METRICS
from amc.job.folder import POLICY as POLICY
from amc.job.folder import PREDICTOR as PREDICTOR
from amc.job.folder import RECIPE, RunFolder, read_recipe
from amc.job.recipe import Recipe, resolved_toml
from amc.release.archive import load_network, save_network
from amc.study.selection import best_candidates, best_of, fit_predictor, load_predictor
from amc.study.sensitivity import sensitivity_of
from amc.study.trial import Trial
from amc.study.trials import Study
from amc.system.errors import RunError, StorageError
from amc.system.files import explain_storage, write_json, write_text
from amc.system.progress import Progress
from amc_predictor import EnsemblePredictor
from amc_search import Candidates, uniform

# Keys of a recipe that a run may be gone on with under other values: where and how it is made, not what.
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
        mine, theirs = recipe.model_dump(), read_recipe(folder).model_dump()
        different = [key for key in _leaves(mine) if _leaves(mine)[key] != _leaves(theirs).get(key)]
        different = [key for key in different if key not in MAY_DIFFER]
        if different:
            key = different[0]
            raise RunError(
                f"a run folder holds one job, but {folder} was made with {key} = {_leaves(theirs).get(key)!r} and this "
                f"is {_leaves(mine)[key]!r}; give another --out"
                + (", or `amc retarget` for another budget" if key == "budget" else "")
            )
        return
    if begun:
        stranger = next(entry.name for entry in folder.iterdir() if entry.name not in (".lock", RECIPE))
        raise RunError(f"a new run needs an empty folder, but {folder} holds {stranger!r}; give another --out")
    write_text(path, resolved_toml(recipe))


def _leaves(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


@dataclass
class Run(RunFolder):
    """A finished run: what its files tell, its network, and what can be asked of it."""

    @cached_property
    def model(self) -> nn.Module:
        """The released network, fine-tuned, in `eval` mode."""
        return load_network(self.folder)

    @cached_property
    def dense(self) -> Dense:
        """The dense network, its groups, costs and data.

        Raises `RunError` when weights or data are no longer those of the run: its trials would not hold for them.
        """
        dense = prepare(self.recipe, self.folder, store=False)
        for what, now in dense.digests.items():
            if now != self.metrics["digests"][what]:
                raise RunError(
                    f"a run needs the {what} it was made with, but those of {self.folder} have changed since; "
                    "bring them back, or start a new run with another --out"
                )
        return dense

    @cached_property
    def predictor(self) -> EnsemblePredictor:
        """The one that was kept, or, where that is lost or of another version, one that learns from the same trials."""
        return load_predictor(self.folder / PREDICTOR) or fit_predictor(
            self.dense.space,
            self.trials,
            self.metrics["dense"]["measure_accuracy"],
            self.recipe.seed,
            sensitivity_of(self.dense, self.study),
        )

    @cached_property
    def study(self) -> Study:
        return Study(self.recipe.search.study, self.folder, self.dense.protocol(), self.dense.space)

    @cached_property
    def trials(self) -> list[Trial]:
        """All trials as they were when first asked for."""
        return self.study.trials

    def retarget(self, *budgets: str | Budget) -> Retargeted:
        """The best policy for other budgets, by the predictor alone: no measurement, no search.

        Raises:
            BudgetUnreachable: no policy fits.
            UsageError: a budget is malformed.
        """
        texts = [str(budget) for budget in budgets]
        parsed = parse_budgets(texts)
        found = best_candidates(
            self.predictor, self.dense.space, self.dense.caps(parsed), self.trials, self.recipe.seed
        )
        return Retargeted(self, parsed, found)

    def save(self, folder: str | Path) -> None:
        """Copy the release (weights and record) to another folder."""
        save_release(Path(folder), self.model, self.dense)


@dataclass
class Retargeted:
    """The answer to another budget.

    Attributes:
        budgets: what was asked.
        candidates: best first by prediction; `policy` is the first unless `measure` was called.
    """

    run: Run
    budgets: tuple[Budget, ...]
    candidates: Candidates
    trial: Trial | None = None

    @property
    def policy(self) -> NDArray[np.int64]:
        """(d,) keep-counts."""
        return np.array(self.trial.policy, dtype=np.int64) if self.trial else self.candidates.policies[0]

    @property
    def named_policy(self) -> dict[str, int]:
        return dict(zip(self.run.dense.space.names, self.policy.tolist(), strict=True))

    @property
    def costs(self) -> dict[str, float]:
        """Unit -> exact cost."""
        return self.run.dense.costs_of(self.policy, self.budgets)

    def measure(self, number: int = 3) -> Trial:
        """Measure the best `number` candidates and uniform ratios; the best trial under the budgets is taken."""
        study, dense = self.run.study, self.run.dense
        caps = dense.caps(self.budgets)
        rivals = [*self.candidates.policies[:number], uniform(dense.space, caps)]  # far from the trials it may be best
        if not study.measure_all(rivals, dense.measure):
            raise RunError("no candidate could be measured; see the study's failed trials")
        self.trial = best_of(study.trials, caps)
        self.__dict__.pop("model", None)
        return self.trial

    @cached_property
    def model(self) -> nn.Module:
        """The recovered network, not fine-tuned, in `eval` mode."""
        return self.run.dense.measure.realise(self.policy).eval()

    def finetune(self, progress: Progress | None = None) -> float:
        """Fine-tune `model` as the run's recipe says; returns its accuracy on the validation split."""
        from amc.train.training import train

        dense, recipe = self.run.dense, self.run.recipe
        start = dense.evaluate(self.model, dense.splits.validation).accuracy
        done = train(
            self.model, dense.splits, recipe.finetune, dense.compute,
            seed=recipe.seed, teacher=dense.model, title="fine-tune", progress=progress,
            task=dense.task, start=start,
        )  # fmt: skip
        return done.best_accuracy

    def save(self, folder: str | Path) -> None:
        """Write the release to `folder`: weights, record, policy, costs."""
        folder = Path(folder)
        save_release(folder, self.model, self.run.dense)
        dense = self.run.dense.dense_costs(self.budgets)
        caps = [
            {"budget": str(b), "unit": b.unit, "limit": b.limit(dense), "used": self.costs[b.unit]}
            for b in self.budgets
        ]
        measured = {"accuracy": self.trial.accuracy, "loss": self.trial.loss} if self.trial else None
        write_json(
            folder / POLICY,
            {
                "run": os.path.relpath(self.run.folder, folder),
                "policy": self.named_policy,
                "costs": self.costs,
                "budgets": caps,
                "predicted": {"mean": float(self.candidates.mean[0]), "std": float(self.candidates.std[0])},
                "measured": measured,
            },
        )


def save_release(folder: Path, model: nn.Module, dense: Dense) -> None:
    """Write weights and architecture record."""
    mean, std = getattr(dense.splits.validation, "mean", None), getattr(dense.splits.validation, "std", None)
    normalisation = {"mean": list(mean), "std": list(std)} if mean and std else None
    save_network(folder, model, dense.source, dense.splits.input_shape, normalisation)


def policy_table(space_names: Sequence[str], policy: NDArray[np.int64]) -> dict[str, int]:
    """Group name -> channels kept."""
    return dict(zip(space_names, policy.tolist(), strict=True))
