"""Budgets of a job as caps that some policy meets."""

from __future__ import annotations

from collections.abc import Sequence

from amc import Budget, BudgetUnreachable, Job, format_cost
from amc_search import Cap, CapUnreachable
from amc_search.repair import check_reachable


def reachable_caps(job: Job, budgets: Sequence[Budget]) -> tuple[Cap, ...]:
    """The caps in absolute units. Raises `BudgetUnreachable` where no policy meets them all."""
    caps = job.trace.caps(budgets)
    try:
        check_reachable(job.space, caps)
    except CapUnreachable as error:
        limit, smallest = (format_cost(error.unit, cost) for cost in (error.limit, error.smallest))  # type: ignore[arg-type]
        raise BudgetUnreachable(
            f"a budget must be reachable, but {limit} is below the smallest policy's {smallest}; raise the budget"
        ) from None
    return caps
