"""Bounds of what one cascade does, with a confidence, from held-out examples that had no part in making it.

The promise is about inputs drawn as the examples were. Under another distribution it says nothing: that is what
`amc.cascade.certificates.drift` watches for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from amc.cascade.certificates.mean_tests import SIGNED, Losses, Support, binomial_lower, binomial_upper
from amc.cascade.certificates.risk_control import RISKS
from amc.cascade.rules.stop_rule import Outcomes
from amc.cascade.stages.records import Records


def bounds_of(
    records: Records, outcomes: Outcomes, added: Sequence[float], reference: Tensor, is_reference: bool, delta: float
) -> dict[str, Any]:
    """One-sided bounds of a plan, each by itself with confidence 1 - delta; `max_cost` is no estimate.

    `accuracy` from below, `mean_cost` and `drop` (against the dense network) from above. All of them take the examples
    for independent draws, those of one of the `groups` (None: there are none) as well.
    """
    error, cost, gap = (
        RISKS[name].losses(records, outcomes, added, reference).upper(delta) for name in ("accuracy", "cost", "gap")
    )
    return {
        "examples": len(records),
        "groups": None if records.groups is None else len(set(records.groups.tolist())),
        "confidence": 1 - delta,
        "accuracy": 1 - error,
        "mean_cost": min(cost, sum(added)),
        "drop": 0.0 if is_reference else gap,
        "max_cost": sum(added),
    }


@dataclass(frozen=True)
class ExitReport:
    """Of the examples that stopped at one stage: the halting-time-conditional figures, arXiv 2402.00857.

    The intervals are two-sided, each with the report's confidence by itself; the whole range where no example stopped.

    Attributes:
        share: of all examples.
        gap: accuracy of the reference minus that of the cascade, on these examples; None if there are none.
    """

    stage: str
    count: int
    share: float
    accuracy: float | None
    accuracy_interval: tuple[float, float]
    gap: float | None
    gap_interval: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        intervals = {name: list(getattr(self, name)) for name in ("accuracy_interval", "gap_interval")}
        return {**asdict(self), **intervals}


def report_exits(
    records: Records, outcomes: Outcomes, delta: float, reference: Tensor | None = None
) -> tuple[ExitReport, ...]:
    """What the examples that stopped at each stage got: a good average can hide that the early ones lose."""
    gaps = RISKS["gap"].losses(records, outcomes, [0.0] * len(records.stages), reference).values
    return tuple(
        _exit(name, outcomes.right[here].double().numpy(), gaps[here.numpy()], len(records), delta)
        for name, here in ((name, outcomes.stop == stage) for stage, name in enumerate(records.stages))
    )


def _exit(stage: str, right: Any, gaps: Any, total: int, delta: float) -> ExitReport:
    count, hits = len(right), int(right.sum())
    gap = Losses(gaps, Support.of(*SIGNED))
    return ExitReport(
        stage,
        count,
        count / total,
        hits / count if count else None,
        (binomial_lower(hits, count, delta / 2), binomial_upper(hits, count, delta / 2)),
        gap.mean if count else None,
        (gap.lower(delta / 2), gap.upper(delta / 2)),
    )
