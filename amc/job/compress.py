"""The main flow: from a trained network to a released one under a cap."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from amc.job.dense import Dense, prepare
from amc.job.metrics import Contest, Standing, run_metrics
from amc.job.recipe import Recipe
from amc.job.rounding import settle_rounding
from amc.job.run import METRICS, POLICY, PREDICTOR, Run, claimed, open_folder, policy_table, save_release
from amc.release.publish import publish
from amc.study.search import search
from amc.study.selection import fit_predictor, save_predictor, select, unreachable, warn_if_poor
from amc.study.sensitivity import sensitivity_of
from amc.study.trial import Trial
from amc.study.trials import Study
from amc.system.files import write_json
from amc.system.progress import Progress, Silent
from amc.train import distributed
from amc.train.evaluation import Evaluation
from amc.train.training import train
from amc_predictor import EnsemblePredictor
from amc_search import Cap, CapUnreachable, uniform


@dataclass
class Stopwatch:
    """Wall seconds of each stage of the flow."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + perf_counter() - start


def compress(recipe: Recipe, progress: Progress | None = None) -> Run:
    """Compress the recipe's network under its budgets; the run folder is `recipe.out`, or `runs/NAME`.

    A folder with the same recipe is resumed: finished trials are read, never measured again; a finished run is
    returned as it is.

    Raises:
        AmcError: any of `amc.system.errors`, each one line with the mend. What was measured is kept.
    """
    folder = Path(recipe.out or f"runs/{recipe.name}")
    progress = progress or Silent()
    if distributed.rank() > 0:
        _assist(recipe)
        return Run(folder)
    recipe.budgets  # noqa: B018 - a recipe without a budget is told so before anything is written
    with claimed(folder):
        recipe = settle_rounding(recipe, folder, progress)
        open_folder(folder, recipe)
        finished = (folder / METRICS).is_file()
        distributed.from_leader(1, lambda: np.array([finished], dtype=np.int64))
        if finished:
            progress.say(f"{folder} has finished already; nothing was done")
            return Run.open(folder)
        _compress(recipe, folder, progress)
    distributed.wait_for_all()
    return Run.open(folder)


def _compress(recipe: Recipe, folder: Path, progress: Progress) -> None:
    clock = Stopwatch()
    with clock("prepare"):
        dense = prepare(recipe, folder, progress)
        caps = dense.caps(recipe.budgets)
        baseline = _uniform(dense, caps)
        reference = dense.evaluate(dense.model, dense.splits.validation)
    said = f"{dense.task.metric_name} {reference.accuracy:.2%} on {len(dense.splits.validation):,} examples"
    progress.say(f"dense network: {said}")
    with clock("search"):
        study = search(dense, caps, reference.accuracy, folder, progress)
    with clock("select"):
        predictor = _learn(dense, study, reference.accuracy, folder, progress)
        chosen = select(
            study, dense.measure, predictor, caps, recipe.search.candidates, recipe.seed, reference.accuracy
        )
        policy = distributed.from_leader(len(dense.space), lambda: chosen.policy)
        uniform_trial = study.measure_one(baseline, dense.measure)
    ours = _Contender(dense, policy, folder, chosen.trial)
    theirs = _Contender(dense, baseline, folder, uniform_trial)
    with clock("finetune"):
        ours.finetune("fine-tune", progress)
    with clock("finetune_uniform"):
        if recipe.finetune.uniform:
            theirs.finetune("fine-tune the uniform baseline", progress)
    with clock("test"):
        test = _evaluate_all(dense, ours, theirs, progress)
    contest = Contest(dense, reference, chosen, uniform_trial, ours.standing, theirs.standing, test)
    with clock("release"):
        save_release(folder, ours.model, dense)
        kept, sizes = (policy_table(dense.space.names, counts) for counts in (policy, dense.space.high))
        write_json(folder / POLICY, {"policy": kept, "sizes": sizes})
        metrics = run_metrics(recipe, study, predictor, contest, clock.seconds)
        publish(folder, dense, study, predictor, metrics)
    write_json(folder / METRICS, metrics)  # last: its presence says that the run has finished
    for checkpoint in folder.glob("checkpoint-*.pt"):
        checkpoint.unlink()


def _learn(dense: Dense, study: Study, accuracy: float, folder: Path, progress: Progress) -> EnsemblePredictor:
    """Fit the predictor, keep it, and tell how well it orders policies it has not seen."""
    sensitivity = sensitivity_of(dense, study)
    predictor = fit_predictor(dense.space, study.trials, accuracy, dense.recipe.seed, sensitivity)
    save_predictor(folder / PREDICTOR, predictor)
    ranks = predictor.ranks
    progress.say(
        f"predictor, cross-validated: Kendall {ranks.kendall:.2f}, Spearman {ranks.spearman:.2f}, "
        f"error {ranks.rmse:.2%}, 90 % intervals hold {ranks.coverage_90:.0%}"
    )
    if warning := warn_if_poor(predictor):
        progress.say(warning)
    return predictor


def _uniform(dense: Dense, caps: tuple[Cap, ...]) -> NDArray[np.int64]:
    """The same ratio for every group, as close under the caps as the grid allows.

    Raises:
        BudgetUnreachable: even the smallest policy is over a cap.
    """
    try:
        return uniform(dense.space, caps)
    except CapUnreachable as error:
        raise unreachable(error) from None


class _Contender:
    """One policy on its way to a release: recovered, then fine-tuned."""

    def __init__(
        self, dense: Dense, policy: NDArray[np.int64], folder: Path | None = None, trial: Trial | None = None
    ) -> None:
        self.dense, self.policy, self.folder, self.trial = dense, policy, folder, trial
        self.recovered: nn.Module = dense.measure.realise(policy)
        self.model: nn.Module = copy.deepcopy(self.recovered)
        self.accuracy: float | None = None  # on the validation split, after fine-tuning

    @cached_property
    def before(self) -> float:
        """Accuracy on the whole validation split before fine-tuning: that of the trial, if it saw all of it."""
        whole = self.dense.splits.validation
        if self.trial is not None and self.trial.images == len(whole):
            return self.trial.accuracy
        return self.dense.evaluate(self.recovered, whole).accuracy

    @property
    def standing(self) -> Standing:
        return Standing(self.before, self.accuracy)

    def finetune(self, title: str, progress: Progress) -> None:
        recipe = self.dense.recipe
        name = hashlib.sha256(self.policy.tobytes()).hexdigest()[:12]
        done = train(
            self.model,
            self.dense.splits,
            recipe.finetune,
            self.dense.compute,
            seed=recipe.seed,
            teacher=self.dense.model,
            checkpoint=self.folder / f"checkpoint-{name}.pt" if self.folder else None,
            title=title,
            progress=progress,
            task=self.dense.task,
            start=self.before,
        )
        if done.accuracies:
            self.accuracy = done.best_accuracy


def _evaluate_all(dense: Dense, ours: _Contender, theirs: _Contender, progress: Progress) -> dict[str, Evaluation]:
    """The one look at the test split: every network that the report compares, once."""
    networks: dict[str, Any] = {
        "dense": dense.model,
        "released": ours.model,
        "released_before_finetune": ours.recovered,
        "uniform_before_finetune": theirs.recovered,
    }
    if theirs.accuracy is not None:
        networks["uniform"] = theirs.model
    stage = progress.stage("measure on the test split, once", len(networks))
    found = {}
    for name, model in networks.items():
        found[name] = dense.evaluate(model, dense.splits.test)
        stage.advance()
    return found


def _assist(recipe: Recipe) -> None:
    """What the other processes of `torchrun` do: wait for each policy, then fine-tune it together with the first."""
    recipe = settle_rounding(recipe, None, Silent())
    if distributed.from_leader(1, lambda: np.zeros(1, dtype=np.int64))[0]:
        return
    dense = prepare(recipe)
    baseline = _uniform(dense, dense.caps(recipe.budgets))
    policy = distributed.from_leader(len(dense.space), lambda: baseline)
    _Contender(dense, policy).finetune("", Silent())
    if recipe.finetune.uniform:
        _Contender(dense, baseline).finetune("", Silent())
    distributed.wait_for_all()
