"""What can be promised of a cascade from held-out examples that had no part in making it, and with what confidence.

The promise is about inputs drawn as the examples were. Under another distribution it says nothing: that is what
`amc.cascade.monitor` watches for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from amc.cascade.means import SIGNED, Losses, Support, binomial_lower, binomial_upper
from amc.cascade.policy import Policy, Walk, walk
from amc.cascade.records import Records
from amc.cascade.risk import RISKS, learn_then_test, risk_named
from amc.cost.budget import format_macs
from amc.system.errors import UsageError


@dataclass(frozen=True)
class Term:
    """What must hold: the expected loss of `risk`, one of `RISKS`, is at most `most`."""

    risk: str
    most: float

    def __post_init__(self) -> None:
        support = risk_named(self.risk).support
        if not math.isfinite(self.most) or self.most < (0 if support is None else support.low):
            raise UsageError(
                f"the bound of a {self.risk} risk must be a loss that can be, but is {self.most}; raise it"
            )

    def says(self, loss: float) -> str:
        """The claim that the expected loss is at most `loss`, in words."""
        return {
            "gap": f"loses at most {100 * loss:.2f} points of accuracy against the full network",
            "consistency": f"answers otherwise than the full network on at most {loss:.2%} of inputs",
            "accuracy": f"is right on at least {1 - loss:.2%} of inputs",
            "brier": f"has a Brier score at most {loss:.4f} above the full network's",
            "cost": f"costs at most {format_macs(loss)} on average",
        }[self.risk]


@dataclass(frozen=True)
class Finding:
    """One term on the examples tested: the mean seen and the bound that holds with the certificate's confidence."""

    term: Term
    seen: float
    bound: float


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


@dataclass(frozen=True)
class Certificate:
    """Whether some policy of a ladder holds the terms, and which is the boldest known to.

    Attributes:
        chosen: its place in the ladder; None if nothing is certified.
        policy: that policy.
        delta: probability, over draws of the examples, that a policy is chosen which breaks a term.
        count: examples tested.
        offered: policies in the ladder.
        findings: of the chosen policy, or of the first if none is chosen. The bounds hold together at `delta`: the
            terms themselves after a choice among policies, or of several terms, where nothing tighter holds; otherwise
            the policy's own upper bounds.
        exits: of that policy.
    """

    chosen: int | None
    policy: Policy | None
    delta: float
    count: int
    offered: int
    findings: tuple[Finding, ...]
    exits: tuple[ExitReport, ...]

    @property
    def bound(self) -> float:
        """Of the first term."""
        return self.findings[0].bound

    @property
    def sentence(self) -> str:
        """What holds, and how surely; or that nothing could be certified, and what could have been."""
        confidence = f"{100 * (1 - self.delta):.4g}% confidence"
        if self.chosen is not None:
            claims = " and ".join(finding.term.says(finding.bound) for finding in self.findings)
            return f"With {confidence}, on inputs like the {self.count:,} tested, the cascade {claims}."
        wanted = " and ".join(finding.term.says(finding.term.most) for finding in self.findings)
        reached = " and ".join(finding.term.says(finding.bound) for finding in self.findings)
        subject = "the policy" if self.offered == 1 else f"even the most careful of {self.offered} policies"
        return (
            f"Nothing is certified: from {self.count:,} examples it cannot be said with {confidence} that {subject} "
            f"{wanted}. What can be said of it: it {reached}. {self._mend}"
        )

    @property
    def _mend(self) -> str:
        if any(finding.seen > finding.term.most for finding in self.findings):
            return "It breaks the terms on the very examples tested: allow more."
        return "It keeps them on the examples tested: test on more examples, ask for less confidence, or allow more."

    def to_json(self) -> dict[str, Any]:
        """All but the policy, with the sentence."""
        plain = {name: getattr(self, name) for name in ("chosen", "delta", "count", "offered")}
        lists = {name: [asdict(each) for each in getattr(self, name)] for name in ("findings", "exits")}
        return {"sentence": self.sentence, **plain, **lists}


def certify(
    records: Records,
    added: Sequence[float],
    policies: Sequence[Policy],
    risk: str,
    epsilon: float,
    delta: float,
    *,
    besides: Sequence[Term] = (),
    reference: Tensor | None = None,
) -> Certificate:
    """Find the boldest policy for which the expected loss is at most `epsilon`: P(it is more) is at most `delta`.

    Fixed-sequence testing (`learn_then_test`): the policies are tried in the order given, up to the first that fails.
    Any order fixed without `records` is valid; from the safest to the boldest gets furthest. For `risk="cost"` the
    cheapest is the safest. One pre-chosen policy is a ladder of one.

    Several terms need no correction: a policy passes only if it passes each at `delta`, so a broken one is passed with
    probability `delta` at most.

    Args:
        records: risk-test records, of examples on which nothing was trained, fitted or chosen.
        added: S costs, what visiting each stage adds.
        besides: further terms that must hold at once.
        reference: (n, classes) logits of the full network on the same examples; None is the last stage.

    Raises:
        UsageError: no policy, no example, delta outside (0, 1), or a bound that no loss can keep to.
    """
    if not policies or len(records) == 0 or not 0 < delta < 1:
        raise UsageError(
            "a certificate needs a policy, an example and a delta between 0 and 1, but there are "
            f"{len(policies)} policies, {len(records)} examples and delta {delta}; give more"
        )
    terms = (Term(risk, epsilon), *besides)

    def losses(walked: Walk) -> list[Losses]:
        return [RISKS[term.risk].losses(records, walked, added, reference) for term in terms]

    def p_values() -> Iterator[float]:
        for policy in policies:
            tested = losses(walk(records, policy, added))
            yield max(loss.p_value(term.most, delta) for term, loss in zip(terms, tested, strict=True))

    chosen = learn_then_test(p_values(), delta)
    walked = walk(records, policies[chosen or 0], added)
    alone = len(policies) == len(terms) == 1

    def bound(term: Term, loss: Losses) -> float:
        if chosen is None:
            return loss.upper(delta / len(terms))
        return min(term.most, loss.upper(delta)) if alone else term.most

    findings = tuple(
        Finding(term, loss.mean, bound(term, loss)) for term, loss in zip(terms, losses(walked), strict=True)
    )
    exits = report_exits(records, walked, delta, reference)
    return Certificate(
        chosen, None if chosen is None else policies[chosen], delta, len(records), len(policies), findings, exits
    )


@dataclass(frozen=True)
class Bounds:
    """Of one policy that was chosen without these examples: each bound holds with confidence 1 - delta by itself.

    Attributes:
        gap: accuracy of the reference minus that of the cascade.
        mean_cost, max_cost: multiply-adds; the largest cost holds always.
    """

    delta: float
    count: int
    accuracy: float
    accuracy_low: float
    gap: float
    gap_high: float
    mean_cost: float
    mean_cost_high: float
    max_cost: float


def bounds(
    records: Records, added: Sequence[float], policy: Policy, delta: float, reference: Tensor | None = None
) -> Bounds:
    """Accuracy, accuracy lost and mean cost of one pre-chosen policy, on records of the examples kept for it."""
    walked = walk(records, policy, added)
    error, gap, cost = (RISKS[name].losses(records, walked, added, reference) for name in ("accuracy", "gap", "cost"))
    return Bounds(
        delta=delta,
        count=len(records),
        accuracy=1 - error.mean,
        accuracy_low=1 - error.upper(delta),
        gap=gap.mean,
        gap_high=gap.upper(delta),
        mean_cost=cost.mean,
        mean_cost_high=cost.upper(delta),
        max_cost=sum(added),
    )


def report_exits(
    records: Records, walked: Walk, delta: float, reference: Tensor | None = None
) -> tuple[ExitReport, ...]:
    """What the examples that stopped at each stage got: control on average can hide harm done to the early ones."""
    gaps = RISKS["gap"].losses(records, walked, [0.0] * len(records.stages), reference).values
    return tuple(
        _exit(name, walked.right[here].double().numpy(), gaps[here.numpy()], len(records), delta)
        for name, here in ((name, walked.stop == stage) for stage, name in enumerate(records.stages))
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
