"""One target for all exits: performance control by accuracy instead of confidence (PCEE, arXiv 2412.19325).

The same rule with confidence, certainty or patience for a score is the baseline that PCEE is compared with; the oracle
is what no rule can beat. A reconstruction from the paper's description; `mean`, `gap`, isotonic accuracy and lower
bounds are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

import torch

from amc.cascade.policy import Policy, Scorer, Walk, scores_of, walk
from amc.cascade.records import Records
from amc.cascade.reliability import ESTIMATORS, NEVER_STOPS, calibration_error
from amc.cascade.scores import ACCURACIES, CONFIDENCE, fit_reliable
from amc.cascade.thresholds import Board
from amc.system.errors import BudgetUnreachable, UsageError

Kind = Literal["floor", "mean", "gap"]


@dataclass(frozen=True)
class ExitReport:
    """What one exit of a policy does on records, which should not be those that it was fitted to.

    Attributes:
        reached, share: of the examples, how many visited the stage, and how many stopped there.
        accuracy: of those that stopped there; None where there are none.
        estimated: their mean score, where scores are accuracies.
        confidence_error, estimate_error: expected calibration errors over all examples, of the confidence and of the
            score (None where scores are no accuracies).
    """

    stage: str
    reached: float
    share: float
    accuracy: float | None
    estimated: float | None
    confidence_error: float
    estimate_error: float | None


def pcee(
    records: Records,
    added: Sequence[float],
    target: float,
    kind: Kind = "floor",
    estimator: str = "isotonic",
    alpha: float | None = None,
    survivors: bool = False,
) -> Policy:
    """Stop where the accuracy of held-out answers of about this confidence is high enough.

    Args:
        records: of the policy-fit half.
        target, kind: as in `aimed`.
        estimator: bins, window (PCEE-WS) or isotonic.
        alpha: use lower bounds at this level for accuracies, so that few examples do not pass for good ones.
        survivors: fit each stage to the examples that reach it only; for `floor`, whose threshold is known.

    Raises:
        BudgetUnreachable: as in `aimed`.
        UsageError: an option is unknown, or does not go with another.
    """
    if estimator not in ESTIMATORS:
        raise UsageError(f"an estimator must be one of {', '.join(ESTIMATORS)}, but is {estimator!r}; choose one")
    if survivors and kind != "floor":
        raise UsageError(
            f"fitting to survivors needs the threshold of target kind 'floor', but it is {kind!r}; use that"
        )
    thresholds = (target,) * (len(added) - 1) if survivors else None
    return aimed(records, added, fit_reliable(records, estimator, thresholds, alpha), target, kind)


def aimed(records: Records, added: Sequence[float], scorer: Scorer, target: float, kind: Kind = "floor") -> Policy:
    """The policy of one threshold for all stages that meets a target on these records.

    Args:
        scorer: with `floor`, its scores are taken for accuracies; with the others any will do.
        target: an accuracy; with `gap`, the accuracy that may be lost against the last stage. Shares, not percent.
        kind: `floor`: every answer before the last stage is thought to be right with at least that chance (the paper's
            rule: mean accuracy overshoots where exits are good, and falls short where the last stage is bad on what is
            left to it). `mean` and `gap`: the cheapest threshold that meets it on average.

    Raises:
        BudgetUnreachable: no threshold meets it; the message tells what can be reached. Never a silent shortfall:
            a floor above what the last stage and the policy itself reach is refused too.
        UsageError: the kind is unknown, or the target not a share.
    """
    _check(target, kind)
    scores = scores_of(records, scorer)
    last = float(records.accuracies[-1])
    if kind == "floor":
        policy = Policy(scorer, (target,) * (len(added) - 1))
        if max(last, walk(records, policy, added, scores).accuracy) >= target:
            return policy
    needed = last - target if kind == "gap" else target
    found = Board(records, added, scores).common()
    enough = found.hits / len(records) >= needed - 1e-12
    if kind == "floor" or not bool(enough.any()):
        raise BudgetUnreachable(_out_of_reach(needed, float(found.hits.max()) / len(records), last, kind))
    cheapest = found.take(enough).by_cost().thresholds[0]
    return Policy(scorer, tuple(cheapest.tolist()))


def oracle(records: Records, added: Sequence[float]) -> Walk:
    """Stopping at the first stage that is right, which only the labels tell; at the last where none is."""
    stages = len(records.stages)
    first = records.right.to(torch.int8).argmax(0)
    stop = torch.where(records.right.any(0), first, stages - 1)
    predictions = records.predictions.gather(0, stop[None])[0]
    cost = torch.tensor(list(accumulate(added)), dtype=torch.float64)[stop]
    return Walk(stop, stop, predictions, predictions == records.labels, cost)


def exit_reports(records: Records, policy: Policy, added: Sequence[float]) -> tuple[ExitReport, ...]:
    """One report for each stage."""
    scores = scores_of(records, policy.scorer)
    stop = walk(records, policy, added, scores).stop
    accuracies = policy.scorer.kind in ACCURACIES
    reports = []
    for stage, name in enumerate(records.stages):
        here = stop == stage
        right, some = records.right[stage], bool(here.any())
        known = here & (scores[stage] != NEVER_STOPS)
        reports.append(
            ExitReport(
                stage=name,
                reached=float((stop >= stage).double().mean()),
                share=float(here.double().mean()),
                accuracy=float(right[here].double().mean()) if some else None,
                estimated=float(scores[stage][known].mean()) if accuracies and bool(known.any()) else None,
                confidence_error=calibration_error(records.features[stage, :, CONFIDENCE], right),
                estimate_error=calibration_error(scores[stage], right) if accuracies else None,
            )
        )
    return tuple(reports)


def _check(target: float, kind: str) -> None:
    if kind not in get_args(Kind):
        raise UsageError(f"a target must be one of {', '.join(get_args(Kind))}, but is {kind!r}; choose one")
    if not 0 <= target <= 1:
        raise UsageError(f"a target must be a share between 0 and 1, but is {target:g}; for 90% write 0.9")


def _out_of_reach(needed: float, most: float, last: float, kind: Kind) -> str:
    reachable = f"one threshold for all stages reaches {most:.2%} at best, and the last stage alone {last:.2%}"
    if kind == "gap":
        return f"the accuracy must stay at {needed:.2%} or above, but {reachable}; allow a larger gap"
    return f"the target accuracy must be within reach, but is {needed:.2%}: {reachable}; lower it or add a better stage"
