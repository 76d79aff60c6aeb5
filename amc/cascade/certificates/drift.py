"""Whether what a cascade sees in service is still like what its certificate was made on; if not, the safe plan.

Labels are not needed: a shift that matters moves where inputs leave or how confident the answers are. Counts of both
are compared, window by window, with those of the held-out examples: exits by a chi-square test of two samples,
confidences by Kolmogorov and Smirnov's on a histogram (coarser than the samples, so its level still holds), which sees
a move to one side first, and by chi-square on the same histogram, which sees a change of shape. The safe plan stops no
input early, so it is the full network that answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import kolmogorov
from scipy.stats import chi2_contingency
from torch import Tensor

from amc.cascade.certificates.risk_control import answered_logits
from amc.cascade.rules.stop_rule import NEVER, StopRule, simulate
from amc.cascade.stages.records import Records
from amc.system.errors import UsageError

Counts = NDArray[np.int64]
BINS = 20  # of the histogram of confidences, equally full on the reference
LEAST_EXPECTED = 10  # in a cell of the chi-square test, below which it joins its neighbour


def safe_rule(rule: StopRule) -> StopRule:
    """Stops nowhere early and answers with the last stage."""
    return replace(rule, thresholds=(NEVER,) * len(rule.thresholds), best=False)


def confidence_of(logits: Tensor) -> Tensor:
    """Largest probability (n,) float64 of logits (n, classes)."""
    return logits.double().softmax(1).amax(1)


@dataclass(frozen=True)
class Profile:
    """How many examples stopped at each of S stages, and how confident their answers were.

    Attributes:
        exits: S counts.
        edges: B - 1 confidences between the bins, rising; a confidence on an edge is in the upper bin.
        confidences: B counts.
    """

    exits: tuple[int, ...]
    edges: tuple[float, ...]
    confidences: tuple[int, ...]

    @classmethod
    def of(cls, records: Records, rule: StopRule) -> Profile:
        """What `rule` does on records."""
        outcomes = simulate(records, rule, [0.0] * len(records.stages))
        return cls.counted(outcomes.stop, confidence_of(answered_logits(records, outcomes)), len(records.stages))

    @classmethod
    def counted(cls, stop: Tensor, confidence: Tensor, stages: int) -> Profile:
        """Of examples by where each stopped (n,) and its answer's confidence (n,).

        The bins are equally full as far as equal confidences allow.
        """
        inner = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)[1:-1]
        edges = tuple(dict.fromkeys(confidence.double().quantile(inner).tolist()))
        return cls((0,) * stages, edges, (0,) * (len(edges) + 1)).plus(stop, confidence)

    @property
    def count(self) -> int:
        return sum(self.exits)

    @property
    def emptied(self) -> Profile:
        """The same stages and bins, of no examples."""
        return Profile((0,) * len(self.exits), self.edges, (0,) * len(self.confidences))

    def plus(self, stop: Tensor, confidence: Tensor) -> Profile:
        """With further examples: where each stopped (n,) and its answer's confidence (n,)."""
        exits = torch.bincount(stop.cpu(), minlength=len(self.exits))
        bins = np.searchsorted(np.array(self.edges), confidence.double().cpu().numpy(), side="right")
        filled = np.bincount(bins, minlength=len(self.confidences))
        return self._added(exits.tolist(), filled.tolist())

    def joined(self, other: Profile) -> Profile:
        """The examples of both, which share stages and bins."""
        return self._added(other.exits, other.confidences)

    def _added(self, exits: Sequence[int], confidences: Sequence[int]) -> Profile:
        return Profile(
            tuple(a + b for a, b in zip(self.exits, exits, strict=True)),
            self.edges,
            tuple(a + b for a, b in zip(self.confidences, confidences, strict=True)),
        )

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Profile:
        return cls(**{name: tuple(values) for name, values in record.items()})


@dataclass(frozen=True)
class Drift:
    """One window of `count` inputs against the reference: p-values of "no change"."""

    count: int
    exits_p: float
    confidence_p: float


@dataclass(frozen=True)
class DriftVerdict:
    """After a window.

    Attributes:
        window: its number, from 1.
        recent: of this window.
        lasting: of the last several windows together, where they are complete.
        drifted: whether either shows a change.
        safe: whether the safe plan is to run from now on.
    """

    window: int
    recent: Drift
    lasting: Drift | None
    drifted: bool
    safe: bool

    @property
    def sentence(self) -> str:
        """For a log."""
        found = "differs from" if self.drifted else "is like"
        plan = "the safe plan answers" if self.safe else "inputs may leave early"
        return (
            f"Window {self.window}, {self.recent.count} inputs, {found} the examples of the certificate (exits p="
            f"{self.recent.exits_p:.2g}, confidence p={self.recent.confidence_p:.2g}); {plan}."
        )


class DriftMonitor:
    """Watches a cascade's answers; `rule` is the one to run now.

    Feed it only answers that the stop rule alone decided: those cut short by a deadline or a cap look like drift.
    """

    def __init__(
        self,
        rule: StopRule,
        reference: Profile,
        safe_reference: Profile,
        window: int = 500,
        lasting: int = 10,
        false_alarm: float = 0.001,
        recovery: int | None = None,
    ) -> None:
        """Start with the stop rule itself.

        Args:
            reference: of the stop rule, on held-out examples on which it was not fitted.
            safe_reference: of `safe_rule(stop rule)`, on the same examples.
            window: inputs between verdicts.
            lasting: windows that are also looked at together, for a drift too small to show in one.
            false_alarm: how likely at most a verdict is "drifted" while nothing changed, over references and windows.
            recovery: windows without drift in a row after which the stop rule runs again; None waits for `reset`. Under
                the safe plan only the last stage's confidence is seen, so that a shift may pass for gone.
        """
        if window < 1 or lasting < 1 or not 0 < false_alarm < 1 or (recovery is not None and recovery < 1):
            raise UsageError(
                "a monitor needs windows of one input or more and a false alarm rate between 0 and 1, but was given "
                f"window={window}, lasting={lasting}, recovery={recovery}, false_alarm={false_alarm}; change these"
            )
        self._fast, self._references = rule, (reference, safe_reference)
        self.window, self.lasting, self.false_alarm, self.recovery = window, lasting, false_alarm, recovery
        self.windows, self._calm, self.safe = 0, 0, False
        self._recent = self._together = reference.emptied

    @classmethod
    def on(cls, records: Records, rule: StopRule, **settings: Any) -> DriftMonitor:
        """Against what the stop rule does on held-out records; `settings` as of the constructor."""
        return cls(rule, Profile.of(records, rule), Profile.of(records, safe_rule(rule)), **settings)

    @property
    def rule(self) -> StopRule:
        """To run now: the one watched, or the safe plan."""
        return safe_rule(self._fast) if self.safe else self._fast

    def reset(self) -> None:
        """Back to the stop rule watched, with empty windows."""
        self._enter(safe=False)

    def observe(self, stop: Tensor, confidence: Tensor) -> list[DriftVerdict]:
        """Take in answers of `rule` in the order in which they were given; a verdict for each window that they fill.

        Args:
            stop: (n,) the stage at which each input stopped.
            confidence: (n,) largest probability of each answer.
        """
        verdicts = []
        while len(stop):
            room = self.window - self._recent.count
            self._recent = self._recent.plus(stop[:room], confidence[:room])
            stop, confidence = stop[room:], confidence[room:]
            if self._recent.count == self.window:
                before = self.safe
                verdicts.append(self._judge())
                if self.safe != before:  # the rest was answered by the plan that is no longer in force
                    break
        return verdicts

    def _judge(self) -> DriftVerdict:
        reference = self._references[self.safe]
        self.windows += 1
        self._together = self._together.joined(self._recent)
        full = self._together.count >= self.lasting * self.window
        recent = compare(reference, self._recent)
        lasting = compare(reference, self._together) if full and self.lasting > 1 else None
        level = self.false_alarm / (2 if self.lasting == 1 else 4)  # Bonferroni over all tests at one verdict
        drifts = [recent] if lasting is None else [recent, lasting]
        drifted = any(min(drift.exits_p, drift.confidence_p) <= level for drift in drifts)
        self._calm = 0 if drifted else self._calm + 1
        self._recent = self._recent.emptied
        if full:
            self._together = self._together.emptied
        if drifted and not self.safe:
            self._enter(safe=True)
        elif self.safe and self.recovery is not None and self._calm >= self.recovery:
            self._enter(safe=False)
        return DriftVerdict(self.windows, recent, lasting, drifted, self.safe)

    def _enter(self, safe: bool) -> None:
        self.safe, self._calm = safe, 0
        self._recent = self._together = self._references[safe].emptied

    def to_json(self) -> dict[str, Any]:
        """Settings and references, not the windows."""
        settings = {name: getattr(self, name) for name in ("window", "lasting", "false_alarm", "recovery")}
        reference, safe_reference = (vars(profile) for profile in self._references)
        return {"reference": dict(reference), "safe_reference": dict(safe_reference), **settings}

    @classmethod
    def from_json(cls, record: Mapping[str, Any], rule: StopRule) -> DriftMonitor:
        """A monitor of `rule` as `to_json` kept it, with empty windows."""
        profiles = {name: Profile.from_json(record[name]) for name in ("reference", "safe_reference")}
        return cls(rule, **{**record, **profiles})


def compare(reference: Profile, seen: Profile) -> Drift:
    """Of two profiles with the same stages and bins, both of at least one example."""
    exits, bins = (
        (np.array(getattr(reference, name)), np.array(getattr(seen, name))) for name in ("exits", "confidences")
    )
    confidence_p = min(1.0, 2 * min(kolmogorov_smirnov_p(*bins), chi_square_p(*bins)))  # Bonferroni
    return Drift(seen.count, chi_square_p(*exits), confidence_p)


def chi_square_p(first: Counts, second: Counts) -> float:
    """That two rows of counts come from one distribution; cells expected to hold few join the next one."""
    cells = _filled(np.stack([first, second]))
    if cells.shape[1] < 2:
        return 1.0
    return float(chi2_contingency(cells, correction=False).pvalue)


def _filled(rows: Counts) -> Counts:
    """(2, k) counts with neighbouring cells joined until each is expected to hold LEAST_EXPECTED in either row."""
    least = float(rows.sum(1).min() / rows.sum())
    joined, held = [], np.zeros(2, dtype=np.int64)
    for cell in rows.T:
        held = held + cell
        if held.sum() * least >= LEAST_EXPECTED:
            joined.append(held)
            held = np.zeros(2, dtype=np.int64)
    if joined:
        joined[-1] = joined[-1] + held
    return np.array(joined or [held]).T


def kolmogorov_smirnov_p(first: Counts, second: Counts) -> float:
    """That two histograms over the same bins come from one distribution (`scipy.stats.ks_2samp` takes samples only)."""
    distance = np.abs(np.cumsum(first) / first.sum() - np.cumsum(second) / second.sum()).max()
    size = first.sum() * second.sum() / (first.sum() + second.sum())
    return float(kolmogorov(np.sqrt(size) * distance))
