"""The one network, its caps and its labels: what all methods of a contest share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter

from amc.bench.deadline import Deadline
from amc.bench.search_methods.bench_recipe import BenchRecipe, Label
from amc.bench.search_methods.store import Labelled, LabelStore, Policy
from amc.job.dense import Dense
from amc.study.selection import unreachable
from amc.study.sensitivity import Curves, measure_curves
from amc.system.errors import ModelError, UsageError
from amc_search import Cap, CapUnreachable
from amc_search.repair import check_reachable

WRECKED = 1e-9  # the label of what could not be measured: labels are above 0


def label_of(kind: Label, accuracy: float, loss: float) -> float:
    """The number that a method sees, in (0, 1], from the accuracy and the calibrated loss (nats) of one trial."""
    return max(math.exp(-loss) if kind == "likelihood" else accuracy, WRECKED)


@dataclass(frozen=True)
class Sounding:
    """What each group's cut alone does (`amc.study.sensitivity`), and the wall time that measuring it took."""

    curves: Curves
    seconds: float


class Arena:
    """Measures policies, each once for all methods.

    Attributes:
        caps: by name, in units of the network's costs.
        has_advanced: something was done that was not there before: until then known labels are given out past the
            deadline, so that every command comes further than the last, however long it takes to get there.
    """

    def __init__(self, recipe: BenchRecipe, dense: Dense, store: LabelStore, deadline: Deadline) -> None:
        """Raises `BudgetUnreachable` for a cap that no policy meets."""
        self.recipe, self.dense, self.store, self.deadline = recipe, dense, store, deadline
        self.has_advanced = False
        self.caps: dict[str, tuple[Cap, ...]] = {name: dense.caps(budgets) for name, budgets in recipe.all_caps.items()}
        try:
            for caps in self.caps.values():
                check_reachable(dense.space, caps)
        except CapUnreachable as error:
            raise unreachable(error) from None

    @cached_property
    def reference(self) -> Labelled:
        """The dense network's own measurement.

        Raises:
            UsageError: labels shall be likelihoods, but the task's metric gives no loss.
        """
        found = self.dense.measure.evaluate(self.dense.model)
        if self.recipe.label == "likelihood" and self.dense.task.metric is not None and found.loss == 0:
            raise UsageError('label = "likelihood" needs a loss, but this task\'s metric gives none; take "accuracy"')
        return Labelled(found.accuracy, found.loss, found.seconds, self.dense.dense_costs())

    @property
    def dense_label(self) -> float:
        return self.label_of(self.reference)

    def label_of(self, found: Labelled) -> float:
        """The number that a method sees for a measured policy."""
        return label_of(self.recipe.label, found.accuracy, found.loss)

    @cached_property
    def sounding(self) -> Sounding:
        """What each group's cut alone does."""
        start = perf_counter()
        return Sounding(measure_curves(self.dense), perf_counter() - start)

    def measured(self, policy: Policy) -> Labelled:
        """What measuring a (d,) policy gives, from the store if it was measured before.

        Raises:
            Paused: the time is over; nothing was begun.
            StorageError: the result could not be kept.
        """
        known = self.store.label(policy)
        if known is None or self.has_advanced:
            self.deadline.check()
        if known is not None:
            return known
        try:
            trial = self.dense.measure(policy)
            found = Labelled(trial.accuracy, trial.loss, sum(trial.seconds.values()), dict(trial.costs))
        except ModelError as error:  # outputs that are not finite: the policy is at fault, and the worst there is
            found = Labelled(0.0, math.inf, 0.0, self.dense.costs_of(policy), str(error))
        self.store.keep(policy, found)
        self.has_advanced = True
        return found
