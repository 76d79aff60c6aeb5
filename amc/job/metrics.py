"""`metrics.json`: the figures of a run, in one schema that pipelines may rely on (`amc-metrics/1`, METRICS below).

Accuracies are shares in 0..1. Costs are of one image; `macs` are multiply-adds, `flops_2x` the same counted 2 each.
Keys may be added within one schema number; none is removed or changes its meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from amc.job.job import Job
from amc.release.sentences import removed_groups
from amc.study.optimize import Fit, Selection, warn_if_poor
from amc.study.trial import Trial
from amc.study.trials import Study
from amc.train.evaluation import Evaluation, paired_difference

FORMAT = "amc-metrics/1"

METRICS = {
    "format": "amc-metrics/1",
    "recipe, model, weights, data": "what was asked for",
    "metric": "what every *_accuracy is: accuracy, or the name of the user's metric; always a mean of scores in 0..1",
    "tested_on": "the split that every test_* is of: test, or, where none was given, validation",
    "budgets": "list of {budget, unit, limit, used}: `used` is the released network's exact cost, never above `limit`",
    "trials, failed_trials": "measured policies, those stopped early included; policies that could not be measured",
    "asked_trials": "how many policies the search was asked to measure",
    "stopped": "how many of `trials` were stopped early: their accuracy is of the images seen until then",
    "seconds": "wall time of the command that finished the run; stage_seconds: its parts",
    "predictor": "cross-validated: kendall, spearman, rmse, coverage_90; warning: a sentence, or null",
    "dense, released, uniform": "macs, flops_2x, params, bytes, measure_accuracy, test_accuracy, test_interval_95, "
    "test_loss (mean calibrated cross-entropy, nats; 0 where the metric gives no losses); the last two also "
    "*_before_finetune of the accuracies",
    "released.removed": "names of the groups that keep 0 channels: the branches they stand in are gone",
    "comparison": "released minus uniform on the test images, in pairs: before_finetune and after_finetune, each "
    "{difference, low, high} (95 %); after_finetune is null where uniform was not fine-tuned",
    "certificate": "what a model that adds up what each group is worth says, in the search's labels: explained "
    "(cross-validated R^2 of the better half of the trials), near (whether that is enough to trust it), seconds; and "
    "only where it is near: optimum (its best policy's label), bound (no policy under the caps has a higher one), "
    "proven (the two agree), released (the released policy's), gap (bound less released); null where there is none",
    "protocol, digests": "the study's name; hashes of the dense weights and of the data",
}


@dataclass(frozen=True)
class Standing:
    """A network's accuracy on the whole validation split before and after fine-tuning; None where there was none."""

    before: float
    after: float | None


@dataclass(frozen=True)
class Comparison:
    """All that was measured of the networks compared.

    Attributes:
        reference: the dense network on the validation split.
        chosen: the policy released, measured before fine-tuning.
        uniform_trial: the uniform baseline, likewise.
        released, uniform: how they stand.
        test: "dense", "released", "released_before_finetune", "uniform_before_finetune", and "uniform" if fine-tuned.
    """

    reference: Evaluation
    chosen: Selection
    uniform_trial: Trial
    released: Standing
    uniform: Standing
    test: dict[str, Evaluation]


def run_metrics(job: Job, study: Study, fit: Fit, compared: Comparison, seconds: dict[str, float]) -> dict[str, Any]:
    """The content of `metrics.json`."""
    recipe, test, ranks, trials = job.recipe, compared.test, fit.predictor.ranks, study.trials
    costs = job.trace.costs_of(compared.chosen.policy, job.budgets)
    pairs = {
        "before_finetune": _pair(test["released_before_finetune"], test["uniform_before_finetune"]),
        "after_finetune": _pair(test["released"], test["uniform"]) if "uniform" in test else None,
    }
    return {
        "format": FORMAT,
        "recipe": recipe.name,
        "model": recipe.model.name,
        "weights": recipe.model.weights,
        "data": recipe.data.name,
        "metric": job.task.metric_name,
        "tested_on": "test" if job.data.has_test else "validation",
        "budgets": job.trace.held(job.budgets, compared.chosen.policy),
        "trials": len(trials),
        "asked_trials": recipe.search.trials,
        "stopped": sum(trial.stopped for trial in trials),
        "failed_trials": len(study.failures),
        "seconds": sum(seconds.values()),
        "stage_seconds": seconds,
        "predictor": {
            "kendall": ranks.kendall,
            "spearman": ranks.spearman,
            "rmse": ranks.rmse,
            "coverage_90": ranks.coverage_90,
            "warning": warn_if_poor(fit.predictor),
        },
        "dense": _network(job.trace.dense_costs(job.budgets), compared.reference.accuracy, test["dense"]),
        "released": {
            **_contender(costs, compared.released, test, "released"),
            "removed": removed_groups(dict(zip(job.space.names, compared.chosen.trial.policy, strict=True))),
        },
        "uniform": _contender(dict(compared.uniform_trial.costs), compared.uniform, test, "uniform"),
        "comparison": pairs,
        "certificate": _certificate(compared.chosen),
        "protocol": study.protocol.digest,
        "digests": job.digests,
    }


def _contender(
    costs: Mapping[Any, float], standing: Standing, test: dict[str, Evaluation], name: str
) -> dict[str, Any]:
    before = test[f"{name}_before_finetune"]
    measured = standing.before if standing.after is None else standing.after
    return {
        **_network(costs, measured, test.get(name, before)),
        "measure_accuracy_before_finetune": standing.before,
        "test_accuracy_before_finetune": before.accuracy,
    }


def _network(costs: Mapping[Any, float], measure_accuracy: float, test: Evaluation) -> dict[str, Any]:
    return {
        **{unit: round(cost) for unit, cost in costs.items()},
        "flops_2x": 2 * round(costs["macs"]),
        "measure_accuracy": measure_accuracy,
        "test_accuracy": test.accuracy,
        "test_interval_95": list(test.interval_95),
        "test_loss": test.loss,
    }


def _certificate(chosen: Selection) -> dict[str, Any] | None:
    certificate = chosen.certificate
    if certificate is None:
        return None
    found = {
        "explained": certificate.model.explained,
        "near": certificate.model.is_near,
        "seconds": certificate.seconds,
    }
    if not certificate.model.is_near:
        return found
    return {
        **found,
        "optimum": certificate.value,
        "bound": certificate.bound,
        "proven": certificate.is_proven,
        "released": certificate.model(chosen.policy),
        "gap": certificate.gap(chosen.policy),
    }


def _pair(ours: Evaluation, theirs: Evaluation) -> dict[str, float]:
    difference, low, high = paired_difference(ours, theirs)
    return {"difference": difference, "low": low, "high": high}
