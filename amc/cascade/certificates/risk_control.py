"""Losses of a cascade against the full network, and how to pick the most aggressive stop rule that keeps to a bound.

A ladder is a sequence of stop rules from the most careful to the most aggressive, fixed before the examples are seen
that decide how far down one may go. Four rules:

- learn-then-test (arXiv 2110.01052) with fixed-sequence testing: go down while each stop rule's p-value is at most
  delta,
  stop at the first failure, take the last that passed. P(risk > epsilon) <= delta whatever the losses are like.
- conformal risk control (arXiv 2208.02814): the expected risk is at most epsilon, over calibrations, not for this one.
  It needs losses that never fall down the ladder; those of early exits do, so their running maximum is controlled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from amc.cascade.certificates.mean_tests import Losses, Support
from amc.cascade.rules.stop_rule import NEVER, Outcomes, Scorer, StopRule, scores_of
from amc.cascade.stages.records import Records


@dataclass(frozen=True)
class Risk:
    """A loss of each example, whose mean is to stay small.

    Attributes:
        name: its key in `RISKS`.
        loss: what (n,) examples lose: records, a walk over them, and the reference's logits (n, classes).
        support: what one loss can be; None for costs, where it follows from the stages.
    """

    name: str
    loss: Callable[[Records, Outcomes, Tensor], Tensor]
    support: Support | None

    def losses(
        self, records: Records, outcomes: Outcomes, added: Sequence[float], reference: Tensor | None = None
    ) -> Losses:
        """Of every example.

        Args:
            added: S costs, what visiting each stage adds.
            reference: (n, classes) logits of the network compared with, on the same examples; None is the last stage.
        """
        reference = records.logits[-1] if reference is None else reference
        support = Support.of(*accumulate(added)) if self.support is None else self.support
        return Losses(self.loss(records, outcomes, reference).double().numpy(), support)


def _gap(records: Records, outcomes: Outcomes, reference: Tensor) -> Tensor:
    return (reference.argmax(1) == records.labels).double() - outcomes.right.double()


def _inconsistency(records: Records, outcomes: Outcomes, reference: Tensor) -> Tensor:
    return outcomes.predictions != reference.argmax(1)


def _error(records: Records, outcomes: Outcomes, reference: Tensor) -> Tensor:
    return ~outcomes.right


def _brier_gap(records: Records, outcomes: Outcomes, reference: Tensor) -> Tensor:
    return _brier(answered_logits(records, outcomes), records.labels) - _brier(reference, records.labels)


def _brier(logits: Tensor, labels: Tensor) -> Tensor:
    """(n,) in [0, 2]: squared distance of the probabilities from the label's corner."""
    probabilities = logits.double().softmax(1)
    truth = torch.nn.functional.one_hot(labels, logits.shape[1])
    return (probabilities - truth).square().sum(1)


def _cost(records: Records, outcomes: Outcomes, reference: Tensor) -> Tensor:
    return outcomes.cost


def answered_logits(records: Records, outcomes: Outcomes) -> Tensor:
    """(n, classes) of the stage whose answer was taken."""
    return records.logits[outcomes.answered, torch.arange(len(records))]


RISKS: dict[str, Risk] = {
    risk.name: risk
    for risk in (
        Risk("gap", _gap, Support.of(-1, 0, 1)),  # accuracy of the reference minus that of the cascade
        Risk("consistency", _inconsistency, Support.of(0, 1)),  # answers that differ from the reference's
        Risk("accuracy", _error, Support.of(0, 1)),  # wrong answers: epsilon is one minus the accuracy wanted
        Risk("brier", _brier_gap, Support(-2, 2)),  # Brier score of the cascade minus that of the reference
        Risk("cost", _cost, None),  # multiply-adds: epsilon is the budget of the mean
    )
}


def threshold_ladder(records: Records, scorer: Scorer, steps: int = 50, best: bool = False) -> list[StopRule]:
    """Stop rules with one threshold for all stages, from never leaving early to always: about `steps` of them.

    The thresholds are quantiles of the scores on `records`, which must not be those that later decide.
    """
    stages = len(records.stages)
    scores = scores_of(records, scorer)[:-1].flatten()
    scores = scores[scores.isfinite()]
    rungs = [NEVER]
    if len(scores):
        quantiles: list[float] = scores.quantile(torch.linspace(1, 0, steps, dtype=torch.float64)).tolist()
        rungs += dict.fromkeys(quantiles)
    return [StopRule(scorer, (rung,) * (stages - 1), best) for rung in rungs]


def learn_then_test(p_values: Iterable[float], delta: float) -> int | None:
    """The last of a ladder's stop rules before the first whose p-value is above `delta`; None if the first one's is.

    Nothing is asked of `p_values` after that one, so they may be computed as they are asked for.
    """
    passed = None
    for index, p_value in enumerate(p_values):
        if p_value > delta:
            break
        passed = index
    return passed


def conformal_risk_control(losses: Tensor, epsilon: float, high: float) -> int | None:
    """The last rule of a ladder whose expected loss, over calibrations, is at most `epsilon`; None if none is.

    Args:
        losses: (m, n) of m stop rules; their running maxima over the stop rules are what is controlled.
        high: the largest loss that an example can have.
    """
    count = losses.shape[1]
    means = losses.cummax(0).values.double().mean(1)
    return last_that_holds(means <= ((count + 1) * epsilon - high) / count)


def last_that_holds(holds: Tensor) -> int | None:
    """The last place at which `holds` (m,) is true; None if none is."""
    places = holds.nonzero()[:, 0]
    return int(places[-1]) if len(places) else None
