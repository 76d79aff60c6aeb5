"""Optuna's samplers, proposing policies that lie on the caps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from amc_search.baselines.problem import Problem
from amc_search.baselines.projection import first_policies, projected, unmeasured
from amc_search.sampler import search_space

# Trials drawn before TPE learns: its default.
STARTUP = 10
# Individuals of NSGA-II: an eighth of the trials, for eight generations of them, at most this many.
POPULATION = 32


def tpe(problem: Problem) -> None:
    """Optuna's multivariate TPE, every proposal projected onto the caps before it is measured.

    Optuna's own constraints tell TPE of violations afterwards. Here costs are exact and free, so that a projected
    proposal takes the place of the one over a cap: every trial that TPE knows is feasible and measured. That is the
    stronger of the two: informed of infeasible proposals, at no cost either, TPE models where the caps are.

    Source: Bergstra et al., Algorithms for Hyper-Parameter Optimization, NIPS 2011; Watanabe, arXiv 2304.11127;
    `optuna.samplers.TPESampler` at its defaults.
    """
    startup = max(2, min(STARTUP, problem.trials // 3))
    _optimize(problem, TPESampler(n_startup_trials=startup, seed=problem.seed), startup)


def nsga2(problem: Problem) -> None:
    """Optuna's NSGA-II on the value alone, every child projected onto the caps before it is measured.

    One objective: with the cost as a second, most of the population serves other caps than the one asked for.

    Source: Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II, IEEE TEVC 6, 2002;
    `optuna.samplers.NSGAIISampler` with a small population.
    """
    size = max(4, min(POPULATION, problem.trials // 8))
    _optimize(problem, NSGAIISampler(population_size=size, seed=problem.seed), size)


def _optimize(problem: Problem, sampler: BaseSampler, startup: int) -> None:
    """Ask, measure, tell until the trials are spent or no policy under the caps is left."""
    rng = np.random.default_rng([problem.seed, 3])
    first = iter(first_policies(problem, startup, rng))
    projection = ProjectedSampler(sampler, problem, lambda: next(first, None), rng)
    study = _silent_study(projection)
    while problem.left:
        trial = study.ask(projection.search_space)
        policy = np.array([trial.params[name] for name in problem.space.names], dtype=np.int64)
        if problem.is_known(policy):
            return
        study.tell(trial, problem.measure(policy))


def _silent_study(sampler: BaseSampler) -> Study:
    """A study in memory, without Optuna's line about it: a benchmark makes hundreds."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        return optuna.create_study(sampler=sampler, direction="maximize")
    finally:
        optuna.logging.set_verbosity(before)


class ProjectedSampler(BaseSampler):
    """Another sampler's proposals on the caps: what a trial's parameters say is what is measured.

    So the other one learns from feasible policies only, and does not see what it proposed itself.
    """

    def __init__(
        self,
        sampler: BaseSampler,
        problem: Problem,
        first: Callable[[], NDArray[np.int64] | None],
        rng: np.random.Generator,
    ) -> None:
        self.sampler, self.problem, self.first, self.rng = sampler, problem, first, rng
        self.search_space: dict[str, BaseDistribution] = dict(search_space(problem.space))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {name: choice for name, choice in self.search_space.items() if not choice.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A policy that is not measured yet, where there is one: `first` while it lasts, then what is proposed."""
        proposed = self.sampler.sample_relative(study, trial, search_space)  # also counts NSGA-II's generations
        policy = self.first()
        if policy is None:
            # NSGA-II leaves out what it mutates, to be drawn on its own.
            for name, choice in search_space.items():
                if name not in proposed:
                    proposed[name] = self.sampler.sample_independent(study, trial, name, choice)
            sizes = zip(self.problem.space.names, self.problem.space.sizes, strict=True)
            counts = np.array([float(proposed.get(name, size)) for name, size in sizes])
            policy = projected(counts[None], self.problem)[0]
        new = unmeasured(self.problem, policy, self.rng)
        chosen = zip(self.problem.space.names, policy if new is None else new, strict=True)
        return {name: int(count) for name, count in chosen if name in search_space}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.sampler.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.sampler.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self.sampler.after_trial(study, trial, state, values)
