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

import numpy as np
from numpy.typing import NDArray
from torch import nn

from amc.job.job import Brought, Job, open_job
from amc.job.metrics import Comparison, Standing, run_metrics
from amc.job.recipe import Recipe, resolved_toml, shareable
from amc.job.rounding import settle_rounding
from amc.job.run import METRICS, POLICY, PREDICTOR, Run, claimed, has_finished, open_folder, policy_table, save_release
from amc.job.workers import search_with_workers
from amc.release.publish import publish
from amc.release.report_inputs import ReportInputs
from amc.study.optimize import Fit, fit_predictor, save_predictor, select, warn_if_poor
from amc.study.search import uniform_policy
from amc.study.trial import Trial
from amc.study.trials import Study
from amc.system.files import write_json
from amc.system.progress import Progress, Silent
from amc.train import distributed
from amc.train.evaluation import Evaluation


@dataclass
class Stopwatch:
    """Wall seconds of each stage of the flow."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + perf_counter() - start


def compress(recipe: Recipe, progress: Progress | None = None, brought: Brought | None = None) -> Run:
    """Compress the recipe's network under its budgets; the run folder is `recipe.out`, or `runs/NAME`.

    A folder with the same recipe is resumed: finished trials are read, never measured again; a finished run is
    returned as it is, unless more trials are asked for.

    Args:
        recipe: what is asked for.
        progress: where it is shown; None shows nothing.
        brought: network, data and task as objects, in place of what the recipe names.

    Raises:
        AmcError: any of `amc.system.errors`, each one line with the fix. What was measured is kept.
    """
    folder = Path(recipe.out or f"runs/{recipe.name}")
    progress = progress or Silent()
    if distributed.rank() > 0:
        _assist(recipe, brought)
        return Run(folder)
    recipe.budgets  # noqa: B018 - a recipe without a budget is refused before anything is written
    with claimed(folder):
        recipe = settle_rounding(recipe, folder, progress, brought)
        open_folder(folder, recipe)
        finished = has_finished(folder)
        distributed.from_leader(1, lambda: np.array([finished], dtype=np.int64))
        if finished:
            progress.say(f"{folder} has finished already; nothing was done")
            return Run.open(folder, brought)
        _compress(recipe, folder, progress, brought)
    distributed.wait_for_all()
    return Run.open(folder, brought)


def _compress(recipe: Recipe, folder: Path, progress: Progress, brought: Brought | None) -> None:
    clock = Stopwatch()
    with clock("prepare"):
        job = open_job(recipe, folder, progress, brought=brought)
        reference = job.measure.evaluate_whole(job.model)
    said = f"{job.task.metric_name} {reference.accuracy:.2%} on {len(job.data.validation):,} examples"
    progress.say(f"dense network: {said}")
    classes = job.data.num_classes
    if job.task.metric is None and classes and reference.interval_95[0] <= 1 / classes:
        progress.say(
            f"warning: the dense network is no better than a guess among {classes} classes; check weights and data"
        )
    with clock("search"):
        study = job.study(folder, alone=True)
        baseline = uniform_policy(job.space, job.caps)
        study.describe(resolved_toml(shareable(recipe)), reference.accuracy)
        search_with_workers(job, study, folder, progress)
    with clock("select"):
        fit = _learn(study, recipe.search.predictor, folder, progress)
        chosen = select(study, fit.predictor, job.caps, recipe.search.candidates)
        policy = distributed.from_leader(len(job.space), lambda: chosen.policy)
        uniform_trial = study.measure_one(baseline, job.measure)
    ours = _Contender(job, policy, folder, chosen.trial)
    theirs = _Contender(job, baseline, folder, uniform_trial)
    with clock("finetune"):
        ours.finetune("fine-tune", progress)
    with clock("finetune_uniform"):
        if recipe.finetune.uniform:
            theirs.finetune("fine-tune the uniform baseline", progress)
    with clock("test"):
        test = _evaluate_all(job, ours, theirs, progress)
    compared = Comparison(reference, chosen, uniform_trial, ours.standing, theirs.standing, test)
    with clock("release"):
        save_release(folder, ours.model, job)
        kept, sizes = (policy_table(job.space.names, counts) for counts in (policy, job.space.high))
        write_json(folder / POLICY, {"policy": kept, "sizes": sizes})
        metrics = run_metrics(job, study, fit, compared, clock.seconds)
        publish(folder, ReportInputs(job.measure, job.data, study, fit, metrics, kept, resolved_toml(recipe)))
    write_json(folder / METRICS, metrics)  # last: its presence says that the run has finished
    for checkpoint in folder.glob("checkpoint-*.pt"):
        checkpoint.unlink()


def _learn(study: Study, predictor: str, folder: Path, progress: Progress) -> Fit:
    """Fit the predictor, keep it, and say how well it orders policies it has not seen."""
    fit = fit_predictor(study, predictor)
    save_predictor(folder / PREDICTOR, fit.predictor)
    ranks = fit.predictor.ranks
    progress.say(
        f"predictor, cross-validated: Kendall {ranks.kendall:.2f}, Spearman {ranks.spearman:.2f}, "
        f"error {ranks.rmse:.2%}, 90 % intervals hold {ranks.coverage_90:.0%}"
    )
    if warning := warn_if_poor(fit.predictor):
        progress.say(warning)
    return fit


class _Contender:
    """One policy on its way to a release: recovered, then fine-tuned."""

    def __init__(
        self, job: Job, policy: NDArray[np.int64], folder: Path | None = None, trial: Trial | None = None
    ) -> None:
        self.job, self.policy, self.folder, self.trial = job, policy, folder, trial
        self.recovered: nn.Module = job.measure.realise(policy)
        self.model: nn.Module = copy.deepcopy(self.recovered)
        self.accuracy: float | None = None  # on the validation split, after fine-tuning

    @cached_property
    def before(self) -> float:
        """Accuracy on the whole validation split before fine-tuning: that of the trial, if it saw all of it."""
        if self.trial is not None and self.trial.images == len(self.job.data.validation):
            return self.trial.accuracy
        return self.job.measure.evaluate_whole(self.recovered).accuracy

    @property
    def standing(self) -> Standing:
        return Standing(self.before, self.accuracy)

    def finetune(self, title: str, progress: Progress) -> None:
        name = hashlib.sha256(self.policy.tobytes()).hexdigest()[:12]
        checkpoint = self.folder / f"checkpoint-{name}.pt" if self.folder else None
        done = self.job.finetune(self.model, start=self.before, checkpoint=checkpoint, title=title, progress=progress)
        if done.accuracies:
            self.accuracy = done.best_accuracy


def _evaluate_all(job: Job, ours: _Contender, theirs: _Contender, progress: Progress) -> dict[str, Evaluation]:
    """The one look at the test split: every network that the report compares, once."""
    networks: dict[str, nn.Module] = {
        "dense": job.model,
        "released": ours.model,
        "released_before_finetune": ours.recovered,
        "uniform_before_finetune": theirs.recovered,
    }
    if theirs.accuracy is not None:
        networks["uniform"] = theirs.model
    stage = progress.stage("measure on the test split, once", len(networks))
    found = {}
    for name, model in networks.items():
        found[name] = job.measure.evaluate_whole(model, job.data.test)
        stage.advance()
    return found


def _assist(recipe: Recipe, brought: Brought | None) -> None:
    """What the other processes of `torchrun` do: wait for each policy, then fine-tune it together with the first."""
    recipe = settle_rounding(recipe, None, Silent(), brought)
    if distributed.from_leader(1, lambda: np.zeros(1, dtype=np.int64))[0]:
        return
    job = open_job(recipe, brought=brought)
    baseline = uniform_policy(job.space, job.caps)
    policy = distributed.from_leader(len(job.space), lambda: baseline)
    _Contender(job, policy).finetune("", Silent())
    if recipe.finetune.uniform:
        _Contender(job, baseline).finetune("", Silent())
    distributed.wait_for_all()
