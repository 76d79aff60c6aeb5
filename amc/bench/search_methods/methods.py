"""The methods compared: ours, ours with one part taken out, the baselines, and other pruning tools.

Ours is what `amc compress` does, by the same parts: the groups' sensitivity, the sampler on an Optuna study (here in
memory), the ensemble predictor, and the closing rounds of ascents whose best policies are measured. Every trial counts
against the budget, and the sensitivity as many trials as pass as many images.

Other tools run by themselves on the dense network. Each is asked for its own pruned network under the caps; the widths
it leaves are read as a policy of ours, which is measured as every other method's: the policy is theirs, the channels
kept inside a group, recovery and evaluation are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import optuna
import torch
from numpy.typing import NDArray

from amc import Job
from amc.bench.search_methods.fastnas import FastNAS
from amc.bench.search_methods.magnitude import TorchPruning
from amc_predictor import EnsemblePredictor, SeerNetPredictor, SensitivityCurves
from amc_predictor.networks import Training
from amc_search import ACQUISITIONS, EvolutionarySampler, Learned, Parts, exploit
from amc_search.baselines import METHODS as BASELINES
from amc_search.baselines.problem import Curves, Method, Problem
from amc_search.baselines.seernet import seernet

# Of the trials, what the closing rounds get; the sampler gets the rest.
CLOSING = 0.125
ACQUISITION = ACQUISITIONS["informative"]

Make = Callable[[], EnsemblePredictor]


@dataclass(frozen=True)
class Switches:
    """What of ours is at work.

    Attributes:
        ensemble: networks on what the predictor's process leaves over.
        sensitivity: groups are cut alone first, and the predictor uses what that showed.
        acquisition: functions of the sampler, name -> share.
        closing: parts of the closing rounds.
    """

    ensemble: bool = True
    sensitivity: bool = True
    acquisition: Mapping[str, float] = field(default_factory=lambda: dict(ACQUISITION))
    closing: Parts = field(default_factory=Parts)

    def maker(self, problem: Problem) -> Make:
        """What makes predictors not yet fitted; for the sensitivity the problem is paid."""
        return self.informed(problem.seed, problem.sensitivity_curves() if self.sensitivity else None)

    def informed(self, seed: int, curves: Curves | None) -> Make:
        """What makes predictors not yet fitted, with sensitivity curves where they are known."""
        # networks say nothing before they are trained
        training = Training() if self.ensemble else Training(steps=0)
        sensitivity = SensitivityCurves.of(curves) if curves else None
        return partial(EnsemblePredictor, seed=seed, training=training, sensitivity=sensitivity)

    @staticmethod
    def fitted(make: Make, problem: Problem) -> EnsemblePredictor:
        """A predictor of all that is known."""
        policies, values = problem.known
        predictor = make()
        predictor.fit(problem.space.fractions(policies), torch.as_tensor(values).float())
        return predictor


def amc(problem: Problem, switches: Switches) -> None:
    """Ours: informative trials by the evolutionary sampler, then rounds of ascents, as `amc compress` does.

    Source: this project; after Wang et al., arXiv 2304.06393 (predict accuracy from policy, sample actively, ascend).
    """
    make = switches.maker(problem)
    sampler = EvolutionarySampler(
        problem.space, problem.caps, make, seed=problem.seed, shares=switches.acquisition,
        dense_accuracy=problem.dense_value, is_informed=make().sensitivity is not None,
    )  # fmt: skip
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    closing = max(1, round(CLOSING * problem.trials))
    while problem.left > closing:
        before = problem.left
        trial = study.ask(sampler.search_space)
        study.tell(trial, problem.measure(_policy_of(trial.params, problem)))
        if problem.left == before:  # only repetitions are left
            return
    exploit(
        problem.space, problem.caps, problem.left, lambda: Learned(*problem.known, switches.fitted(make, problem)),
        problem.measure_all, seed=problem.seed, parts=switches.closing,
    )  # fmt: skip


def _policy_of(params: dict[str, Any], problem: Problem) -> NDArray[np.int64]:
    return np.array([params[name] for name in problem.space.names], dtype=np.int64)


def _without(function: str) -> dict[str, float]:
    return {name: share for name, share in ACQUISITION.items() if name != function}


def _published(problem: Problem) -> None:
    """SeerNet with its own predictor."""
    seernet(problem, partial(SeerNetPredictor, seed=problem.seed))


_published.__doc__ = seernet.__doc__

OURS = Switches()
ABLATIONS: dict[str, Switches] = {
    "amc-no-ensemble": replace(OURS, ensemble=False),
    "amc-no-sensitivity": replace(OURS, sensitivity=False),
    **{f"amc-no-{function}": replace(OURS, acquisition=_without(function)) for function in ("improvement", "random")},
    "amc-merit": replace(OURS, acquisition={**_without("improvement"), "posterior_mean": ACQUISITION["improvement"]}),
    "amc-exploring": replace(OURS, acquisition=ACQUISITIONS["exploring"]),
    "amc-no-barrier": replace(OURS, closing=Parts(barrier=False)),
    "amc-no-repair": replace(OURS, closing=Parts(polish=False)),
}
METHODS: dict[str, Method] = {
    **BASELINES,
    "seernet": _published,
    "amc": partial(amc, switches=OURS),
    **{name: partial(amc, switches=switches) for name, switches in ABLATIONS.items()},
}


def all_methods(job: Job) -> dict[str, Method]:
    """All methods by name; each other tool raises `widths.PeerFailed` where it does not run on this network."""
    return {
        **METHODS,
        "tp-magnitude": TorchPruning(job),
        "tp-isomorphic": TorchPruning(job, isomorphic=True),
        "modelopt-fastnas": FastNAS(job),
    }
