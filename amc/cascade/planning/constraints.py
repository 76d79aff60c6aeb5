"""What must hold of a cascade, as the user writes it: mean cost, worst cost, accuracy, drop, and how surely."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from amc.cost.budget import format_macs, parse_budget
from amc.system.errors import UsageError

NUMBER, PERCENT = re.compile(r"[0-9]*\.?[0-9]+"), re.compile(r"[0-9]*\.?[0-9]+%")
CONFIDENCE = 0.9


@dataclass(frozen=True)
class AbsoluteConstraints:
    """Constraints in absolute numbers; None where nothing is asked.

    Attributes:
        mean_cost: largest mean cost of an example, in multiply-adds; certified with the constraints' confidence.
        max_cost: largest cost of any example, in multiply-adds; holds always.
        accuracy: smallest mean accuracy, in 0..1; certified.
        drop: largest loss of mean accuracy against the dense network, in 0..1; certified.
        delta: how likely the certified constraints may fail to hold together.
    """

    mean_cost: float | None
    max_cost: float | None
    accuracy: float | None
    drop: float | None
    delta: float

    @property
    def wants_cheapest(self) -> bool:
        """Whether the plan is to be as cheap as possible; otherwise as accurate as possible."""
        return self.accuracy is not None or self.drop is not None


@dataclass(frozen=True)
class Constraints:
    """What was asked for; all of it holds at once.

    Attributes:
        budget: of the mean cost, e.g. "300MFLOPs" (1 FLOP is 1 multiply-add) or "30%" of the dense network.
        max_cost: of the worst case; shares above 100% are allowed, as a cascade may cost more than its last network.
        accuracy: least mean accuracy, in 0..1.
        max_drop: most loss of accuracy against the dense network, in 0..1.
        confidence: with which the certified constraints hold together.

    Raises:
        UsageError: nothing is asked for, a value is malformed or out of its range.
    """

    budget: str | None = None
    max_cost: str | None = None
    accuracy: float | None = None
    max_drop: float | None = None
    confidence: float = CONFIDENCE

    def __post_init__(self) -> None:
        if all(each is None for each in (self.budget, self.max_cost, self.accuracy, self.max_drop)):
            raise UsageError(
                "a cascade needs constraints, but none are given; give --budget 30%, --max-cost 1.2GFLOPs, "
                "--accuracy 0.92 or --max-drop 0.5%"
            )
        for flag, text in (("--budget", self.budget), ("--max-cost", self.max_cost)):
            if text is not None:
                _read_cost(flag, text)
        if not 0.5 <= self.confidence < 1:
            raise UsageError(f"--confidence must be from 0.5 to below 1, but is {self.confidence:g}; give e.g. 0.9")

    @classmethod
    def read(
        cls,
        budget: str | None,
        max_cost: str | None,
        accuracy: str | None,
        max_drop: str | None,
        confidence: float = CONFIDENCE,
    ) -> Constraints:
        """From the texts of the command line. Raises `UsageError`."""
        least = None if accuracy is None else read_share("--accuracy", accuracy, "0.92")
        most = None if max_drop is None else read_share("--max-drop", max_drop, "0.5%")
        return cls(budget, max_cost, least, most, confidence)

    def limits(self, dense_macs: float) -> AbsoluteConstraints:
        """The constraints for a dense network of so many multiply-adds."""
        mean, worst = (
            None if text is None else _read_cost(flag, text).of(dense_macs)
            for flag, text in (("--budget", self.budget), ("--max-cost", self.max_cost))
        )
        return AbsoluteConstraints(mean, worst, self.accuracy, self.max_drop, 1 - self.confidence)

    @property
    def name(self) -> str:
        """For a folder: `budget-30%-max-cost-1.2GFLOPs`."""
        asked = {key: value for key, value in self.to_json().items() if value is not None}
        if self.confidence == CONFIDENCE:
            del asked["confidence"]
        return "-".join(f"{key.replace('_', '-')}-{_short(value)}" for key, value in asked.items())

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        return dict(vars(self))

    def sentence(self, dense_macs: float) -> str:
        """What was asked for, in words."""
        limits = self.limits(dense_macs)
        parts = []
        if limits.mean_cost is not None:
            parts.append(f"mean cost at most {format_macs(limits.mean_cost)}")
        if limits.max_cost is not None:
            parts.append(f"no example above {format_macs(limits.max_cost)}")
        if limits.accuracy is not None:
            parts.append(f"accuracy at least {limits.accuracy:.2%}")
        if limits.drop is not None:
            parts.append(f"at most {limits.drop:.2%} below the dense network")
        return f"{', '.join(parts)}; confidence {self.confidence:.0%}"


@dataclass(frozen=True)
class _Cost:
    """A cost as written: in multiply-adds, or as a share of the dense network's."""

    value: float
    relative: bool

    def of(self, dense_macs: float) -> float:
        return self.value * dense_macs if self.relative else self.value


def _read_cost(flag: str, text: str) -> _Cost:
    compact = "".join(text.split())
    if PERCENT.fullmatch(compact) and float(compact[:-1]) > 0:  # of a worst case, more than 100% makes sense
        return _Cost(float(compact[:-1]) / 100, relative=True)
    try:
        budget = parse_budget(text)
    except UsageError:  # its advice is of units that a cascade is not planned in
        budget = None
    if budget is None or budget.unit != "macs":
        fix = f"{compact}% or {compact}MFLOPs" if NUMBER.fullmatch(compact) else "e.g. 30% or 300MFLOPs"
        raise UsageError(
            f"{flag} of a cascade must be a share of the dense network or multiply-adds, but is {text!r}; give {fix}"
        )
    return _Cost(budget.value, budget.relative)


def read_share(flag: str, text: str, example: str) -> float:
    """A percentage ("0.5%") or share ("0.005") -> 0.005. Raises `UsageError`."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise UsageError(f"{flag} must be a share from 0 to 1 or a percentage, but is {text!r}; e.g. {example}")
    return value


def _short(value: object) -> str:
    return f"{100 * value:g}%" if isinstance(value, float) else "".join(str(value).split())
