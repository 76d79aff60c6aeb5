"""Bayesian optimisation with a Gaussian process."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amc_search.baselines.extra import required
from amc_search.baselines.problem import Problem
from amc_search.baselines.projection import first_policies, projected, random_projected, unmeasured
from amc_search.design import distinct
from amc_search.repair import Reals
from amc_search.space import Policies

# Of the budget, what is drawn at random before the process is asked, at most.
STARTUP = 16
# Random policies and shaken copies of the best measured that the acquisition chooses from.
POOL = 192
# Local search from the best of the pool: rounds, policies improved side by side, neighbours of each.
ROUNDS, SIDE_BY_SIDE, NEIGHBOURS = 6, 4, 32
# Up to so many trials the hyperparameters are fitted anew with every trial, then with every fourth.
FIT_EVERY_TRIAL = 96


def gp_cei(problem: Problem) -> None:
    """A Gaussian process with expected improvement over feasible policies.

    Constrained expected improvement is the improvement times the probability of being feasible. Costs are exact and
    free here, so that probability is 1 on the caps and 0 over them: the acquisition, log expected improvement over the
    best posterior mean, is maximised over projected policies alone, in a pool and then by local search. The process is
    botorch's default: radial basis functions with a length scale for each group, priors scaled by their number.

    Source: Gardner et al., Bayesian Optimization with Inequality Constraints, ICML 2014; Ament et al., Unexpected
    Improvements to Expected Improvement, arXiv 2310.20708; Hvarfner et al., arXiv 2402.02229; Balandat et al.,
    BoTorch, arXiv 1910.06403.

    Raises:
        MissingExtra: botorch is not installed.
    """
    library = _Library.imported()
    rng = np.random.default_rng([problem.seed, 6])
    for policy in first_policies(problem, max(2, min(STARTUP, problem.trials // 4)), rng):
        new = unmeasured(problem, policy, rng)
        if new is None:
            return
        problem.measure(new)
    model = None
    while problem.left:
        count = len(problem.values)
        model = _fitted(library, problem, model, refit=count <= FIT_EVERY_TRIAL or count % 4 == 0)
        new = unmeasured(problem, _best_improvement(library, model, problem, rng), rng)
        if new is None:
            return
        problem.measure(new)


@dataclass(frozen=True)
class _Library:
    """What is used of botorch and gpytorch."""

    process: Any
    likelihood: Any
    fit: Any
    improvement: Any

    @classmethod
    def imported(cls) -> _Library:
        name = "gp-cei"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return cls(
                process=required("botorch.models", name).SingleTaskGP,
                likelihood=required("gpytorch.mlls", name).ExactMarginalLogLikelihood,
                fit=required("botorch.fit", name).fit_gpytorch_mll,
                improvement=required("botorch.acquisition", name).LogExpectedImprovement,
            )


def _inputs(policies: Policies, problem: Problem) -> Tensor:
    """Log fractions on one scale, within [0, 1]: on made-up worlds they halve what fractions leave to gain."""
    logs = problem.space.log_fractions(policies)
    return torch.as_tensor(1 - logs / problem.space.log_fractions(np.zeros_like(problem.space.low)).min())


def _fitted(library: _Library, problem: Problem, before: Any, refit: bool) -> Any:
    """The process given all values; its hyperparameters start from those of the process `before`."""
    values = torch.as_tensor(problem.values)[:, None]
    # Fitting may draw new starting points from the global generator, and warns where a first try fails.
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(problem.seed)
        model = library.process(_inputs(problem.policies, problem), values)
        if before is not None:
            for part in ("covar_module", "mean_module", "likelihood"):
                getattr(model, part).load_state_dict(getattr(before, part).state_dict())
        if refit:
            steps = 100 if before is None else 25
            library.fit(library.likelihood(model.likelihood, model), optimizer_kwargs={"options": {"maxiter": steps}})
    return model.eval()


def _best_improvement(library: _Library, model: Any, problem: Problem, rng: np.random.Generator) -> NDArray[np.int64]:
    """The policy on the caps, (d,), with the highest log expected improvement that a local search finds."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mean = model.posterior(_inputs(problem.policies, problem)).mean
        score = library.improvement(model, best_f=mean.max())

        def value(policies: Policies) -> Reals:
            values: Reals = score(_inputs(policies, problem)[:, None, :]).numpy()
            known = np.array([problem.is_known(policy) for policy in policies])
            return np.where(known, -np.inf, values)

        best = problem.policies[np.argsort(-problem.values, kind="stable")[:8]]
        shaken = _shaken(best, POOL // len(best), problem, rng)
        pool = distinct(np.concatenate([shaken, random_projected(problem, POOL, rng)]))
        values = value(pool)
        for _ in range(ROUNDS):
            top = np.argsort(-values, kind="stable")[:SIDE_BY_SIDE]
            near = _shaken(pool[top], NEIGHBOURS, problem, rng)
            pool = np.concatenate([pool[top], near])
            values = np.concatenate([values[top], value(near)])
            pool, first = np.unique(pool, axis=0, return_index=True)
            values = values[first]
    chosen: NDArray[np.int64] = pool[int(np.argmax(values))]
    return chosen


def _shaken(policies: Policies, copies: int, problem: Problem, rng: np.random.Generator) -> Policies:
    """Copies of every policy with one to a third of its groups moved, by little or much, and projected again."""
    space = problem.space
    counts = np.repeat(policies, copies, axis=0).astype(np.float64)
    share = rng.uniform(1 / len(space), max(1 / 3, 1 / len(space)), (len(counts), 1))
    moved = rng.random(counts.shape) < share
    moved[np.arange(len(counts)), rng.integers(len(space), size=len(counts))] = True
    reach = rng.choice((0.05, 0.15, 0.4), size=(len(counts), 1))
    counts = counts + moved * reach * rng.normal(size=counts.shape) * space.high
    return projected(counts, problem)
