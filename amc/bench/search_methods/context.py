"""The one network, its caps and its measured policies: what all methods of a comparison share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from amc import Job, ModelError, UsageError, sensitivity_curves
from amc.bench.caps import reachable_caps
from amc.bench.deadline import Deadline
from amc.bench.search_methods.bench_recipe import BenchRecipe, Objective
from amc.bench.store import Store
from amc_search import Cap
from amc_search.baselines.problem import Curves

DEGENERATE = 1e-9  # the objective value of what could not be measured: all others are above 0
POLICY = "policy"  # the kind of a measured policy's record

Policy = NDArray[np.int64]


def objective_value(objective: Objective, accuracy: float, loss: float) -> float:
    """The number that a method sees, in (0, 1], from the accuracy and the calibrated loss (nats) of one trial."""
    return max(math.exp(-loss) if objective == "likelihood" else accuracy, DEGENERATE)


@dataclass(frozen=True)
class Measurement:
    """What measuring a policy gave.

    Attributes:
        accuracy: on the validation split.
        loss: calibrated cross-entropy there, nats.
        seconds: wall time of cut, recovery and evaluation.
        costs: unit -> exact cost.
        failure: why it could not be measured; accuracy is then 0 and loss infinite. Empty: it could.
    """

    accuracy: float
    loss: float
    seconds: float
    costs: Mapping[str, float] = field(default_factory=dict)
    failure: str = ""


@dataclass(frozen=True)
class Sensitivity:
    """What cutting each group alone does, and the wall time that measuring it took."""

    curves: Curves
    seconds: float


class Context:
    """Measures policies, each once for all methods.

    Attributes:
        caps: by name, in units of the network's costs.
        has_advanced: something was done that was not there before: until then known policies are given out past the
            deadline, so that every command comes further than the last, however long it takes to get there.
    """

    def __init__(self, recipe: BenchRecipe, job: Job, store: Store, deadline: Deadline) -> None:
        """Raises `BudgetUnreachable` for a cap that no policy meets."""
        self.recipe, self.job, self.store, self.deadline = recipe, job, store, deadline
        self.has_advanced = False
        self.caps: dict[str, tuple[Cap, ...]] = {
            name: reachable_caps(job, budgets) for name, budgets in recipe.all_caps.items()
        }

    @cached_property
    def reference(self) -> Measurement:
        """The dense network's own measurement.

        Raises:
            UsageError: objective values shall be likelihoods, but the task's metric gives no loss.
        """
        found = self.job.measure.evaluate(self.job.model)
        if self.recipe.objective == "likelihood" and self.job.task.metric is not None and found.loss == 0:
            raise UsageError(
                'objective = "likelihood" needs a loss, but this task\'s metric gives none; take "accuracy"'
            )
        return Measurement(found.accuracy, found.loss, found.seconds, self.job.trace.dense_costs())

    @property
    def dense_value(self) -> float:
        """The dense network's objective value."""
        return self.value_of(self.reference)

    def value_of(self, found: Measurement) -> float:
        """The number that a method sees for a measured policy."""
        return objective_value(self.recipe.objective, found.accuracy, found.loss)

    @cached_property
    def sensitivity(self) -> Sensitivity:
        """What cutting each group alone does."""
        start = perf_counter()
        return Sensitivity(sensitivity_curves(self.job.measure, self.job.recipe.search), perf_counter() - start)

    def measured(self, policy: Policy) -> Measurement:
        """What measuring a (d,) policy gives, from the store if it was measured before.

        Raises:
            Paused: the time is over; nothing was begun.
            StorageError: the result could not be kept.
        """
        known = self.store.get(POLICY, *policy.tolist())
        if known is None or self.has_advanced:
            self.deadline.check()
        if known is not None:
            return Measurement(**known)
        try:
            trial = self.job.measure(policy)
            found = Measurement(trial.accuracy, trial.loss, sum(trial.seconds.values()), dict(trial.costs))
        except ModelError as error:  # outputs that are not finite: the policy is at fault, and the worst there is
            found = Measurement(0.0, math.inf, 0.0, self.job.trace.costs_of(policy), str(error))
        self.store.put(POLICY, *policy.tolist(), value=asdict(found))
        self.has_advanced = True
        return found
