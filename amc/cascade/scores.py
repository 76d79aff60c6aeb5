"""How good an answer is thought to be: shown by the outputs themselves, or learned on policy-fit records.

| name       | score                                                                 | fitted |
|------------|-----------------------------------------------------------------------|--------|
| confidence | largest probability                                                   | no     |
| margin     | its lead over the second                                              | no     |
| certainty  | one minus the normalised entropy                                      | no     |
| patience   | visited stages in a row, up to this one, that gave this answer        | no     |
| bins       | accuracy of held-out answers in the same bin of confidence (PCEE)     | yes    |
| window     | accuracy of the held-out answers nearest in confidence (PCEE-WS)      | yes    |
| isotonic   | the same, never falling as confidence grows                           | yes    |
| rightness  | chance that this answer is right, from all features                   | yes    |
| deferral   | minus the gain of going on: P(this right) - P(last stage right)       | yes    |

Those from `bins` to `rightness` are accuracies, so that a threshold is a target accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from amc.cascade.policy import Scorer
from amc.cascade.records import FEATURES, Records
from amc.cascade.reliability import ESTIMATORS, NEVER_STOPS, Reliability, reliability_from_json
from amc.cascade.rightness import chance, fit_chance
from amc.system.errors import DataError

ACCURACIES = (*ESTIMATORS, "rightness")  # kinds of scores that are accuracies
CONFIDENCE = FEATURES.index("confidence")
SHOWN = {"confidence": "confidence", "margin": "margin", "certainty": "certainty", "patience": "streak"}


@dataclass(frozen=True, eq=False)
class Shown:
    """A feature as it is; nothing is fitted. `kind` is a key of `SHOWN`."""

    kind: str

    def score(self, stage: int, features: Tensor) -> Tensor:
        column = features[:, FEATURES.index(SHOWN[self.kind])]
        return (column * (stage + 1)).round() if self.kind == "patience" else column

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind}


@dataclass(frozen=True, eq=False)
class Reliable:
    """The accuracy that held-out answers of this confidence had at this stage; `kind` is a key of `ESTIMATORS`."""

    kind: str
    stages: tuple[Reliability, ...]

    def score(self, stage: int, features: Tensor) -> Tensor:
        return self.stages[stage].at(features[:, CONFIDENCE])

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "stages": [stage.to_json() for stage in self.stages]}


@dataclass(frozen=True, eq=False)
class Rightness:
    """The chance that this stage's answer is right.

    Attributes:
        this: one row of weights for each stage (`amc.cascade.rightness.chance`).
    """

    this: Tensor
    kind: str = "rightness"

    def score(self, stage: int, features: Tensor) -> Tensor:
        return chance(features, self.this[stage])

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "this": self.this.tolist()}


@dataclass(frozen=True, eq=False)
class Deferral:
    """What is lost by going on to the last stage: P(this answer right) - P(the last stage's right), at most 1.

    An example stops where the gain of going on is no longer worth its price (2307.02764). Both chances are learned from
    what is seen here, so an easy example and one that no stage gets right both score near 0, and the one that only
    the last stage gets right scores lowest. The last stage scores 0.

    Attributes:
        this, last: one row of weights for each stage.
    """

    this: Tensor
    last: Tensor
    kind: str = "deferral"

    def score(self, stage: int, features: Tensor) -> Tensor:
        return chance(features, self.this[stage]) - chance(features, self.last[stage])

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "this": self.this.tolist(), "last": self.last.tolist()}


def fit_reliable(
    records: Records, kind: str, thresholds: Sequence[float] | None = None, alpha: float | None = None
) -> Reliable:
    """Each stage's reliability on policy-fit records.

    Args:
        kind: a key of `ESTIMATORS`.
        thresholds: S - 1 of the policy that will be used, where it is known: each stage is then fitted only to the
            examples that reach it. Without them, to all.
        alpha: take lower bounds at this level instead of means (`amc.cascade.reliability.lower_bound`).
    """
    reached = torch.ones(_some(records), dtype=torch.bool)
    stages: list[Reliability] = []
    for stage in range(len(records.stages)):
        confidence = records.features[stage, :, CONFIDENCE]
        if not bool(reached.any()):
            stages.append(Reliability(torch.zeros(0).double(), torch.tensor([NEVER_STOPS]).double()))
            continue
        stages.append(ESTIMATORS[kind](confidence[reached], records.right[stage][reached], alpha))
        if thresholds is not None and stage < len(thresholds):
            reached &= stages[stage].at(confidence) < thresholds[stage]
    return Reliable(kind, tuple(stages))


def fit_rightness(records: Records) -> Rightness:
    """Fitted to each stage's own outcomes on policy-fit records."""
    _some(records)
    return Rightness(_fit(records, records.right))


def fit_deferral(records: Records) -> Deferral:
    """Fitted to each stage's outcomes and the last stage's, on policy-fit records."""
    _some(records)
    return Deferral(_fit(records, records.right), _fit(records, records.right[-1:].expand_as(records.right)))


SCORERS: dict[str, Callable[[Records], Scorer]] = {
    "confidence": lambda records: Shown("confidence"),
    "margin": lambda records: Shown("margin"),
    "certainty": lambda records: Shown("certainty"),
    "patience": lambda records: Shown("patience"),
    "bins": lambda records: fit_reliable(records, "bins"),
    "window": lambda records: fit_reliable(records, "window"),
    "isotonic": lambda records: fit_reliable(records, "isotonic"),
    "rightness": fit_rightness,
    "deferral": fit_deferral,
}


def features_read(scorer: Scorer) -> tuple[str, ...]:
    """Which of `FEATURES` a scorer looks at: all, unless it is known."""
    if isinstance(scorer, Shown):
        return (SHOWN[scorer.kind],)
    return ("confidence",) if isinstance(scorer, Reliable) else FEATURES


def scorer_from_json(record: dict[str, Any]) -> Scorer:
    """The scorer that `to_json` described, giving the same scores.

    Raises:
        DataError: the kind is unknown, or what belongs to it is missing.
    """
    kind = record.get("kind")
    try:
        if kind in SHOWN:
            return Shown(kind)
        if kind in ESTIMATORS:
            return Reliable(kind, tuple(reliability_from_json(stage) for stage in record["stages"]))
        if kind == "rightness":
            return Rightness(_weights(record["this"]))
        if kind == "deferral":
            return Deferral(_weights(record["this"]), _weights(record["last"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"a {kind} scorer must hold all that it was fitted to, but {error!r}; plan it anew") from error
    raise DataError(f"a scorer's kind must be one of {', '.join(SCORERS)}, but is {kind!r}; plan it anew")


def _fit(records: Records, right: Tensor) -> Tensor:
    return torch.stack([fit_chance(records.features[stage], right[stage]) for stage in range(len(records.stages))])


def _some(records: Records) -> int:
    if not len(records):
        raise DataError("a scorer is fitted to policy-fit examples, but there are 0; use a larger validation split")
    return len(records)


def _weights(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)
