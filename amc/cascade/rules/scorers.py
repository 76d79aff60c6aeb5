"""How good an answer is thought to be: shown by the outputs themselves, or learned on calibration records.

| name       | score                                                                 | fitted |
|------------|-----------------------------------------------------------------------|--------|
| confidence | largest probability                                                   | no     |
| margin     | its lead over the second                                              | no     |
| certainty  | one minus the normalised entropy                                      | no     |
| patience   | visited stages in a row, up to this one, that gave this answer        | no     |
| bins       | accuracy of held-out answers in the same bin of confidence (PCEE)     | yes    |
| window     | accuracy of the held-out answers nearest in confidence (PCEE-WS)      | yes    |
| isotonic   | the same, never falling as confidence grows                           | yes    |
| P(correct)  | chance that this answer is right, from all features                   | yes    |
| deferral   | minus the gain of going on: P(this right) - P(last stage right)       | yes    |

Those from `bins` to `P(correct)` are accuracies, so that a threshold is a target accuracy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from amc.cascade.rules.correctness import fit_probability, probability
from amc.cascade.rules.reliability import ESTIMATORS, Reliability, reliability_from_json
from amc.cascade.rules.stop_rule import Scorer
from amc.cascade.stages.records import FEATURES, Records
from amc.system.errors import DataError

ACCURACIES = (*ESTIMATORS, "rightness")  # kinds of scores that are accuracies
CONFIDENCE = FEATURES.index("confidence")
FEATURE_SCORERS = {"confidence": "confidence", "margin": "margin", "certainty": "certainty", "patience": "streak"}


@dataclass(frozen=True, eq=False)
class FeatureScorer:
    """A feature as it is; nothing is fitted. `kind` is a key of `FEATURE_SCORERS`."""

    kind: str

    def score(self, stage: int, features: Tensor) -> Tensor:
        column = features[:, FEATURES.index(FEATURE_SCORERS[self.kind])]
        return (column * (stage + 1)).round() if self.kind == "patience" else column

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind}


@dataclass(frozen=True, eq=False)
class AccuracyScorer:
    """The accuracy that held-out answers of this confidence had at this stage; `kind` is a key of `ESTIMATORS`."""

    kind: str
    stages: tuple[Reliability, ...]

    def score(self, stage: int, features: Tensor) -> Tensor:
        return self.stages[stage].at(features[:, CONFIDENCE])

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "stages": [stage.to_json() for stage in self.stages]}


@dataclass(frozen=True, eq=False)
class CorrectnessScorer:
    """The chance that this stage's answer is right.

    Attributes:
        this: one row of weights for each stage (`amc.cascade.rules.correctness.chance`).
    """

    this: Tensor
    kind: str = "rightness"

    def score(self, stage: int, features: Tensor) -> Tensor:
        return probability(features, self.this[stage])

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "this": self.this.tolist()}


@dataclass(frozen=True, eq=False)
class DeferralScorer:
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
        return probability(features, self.this[stage]) - probability(features, self.last[stage])

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "this": self.this.tolist(), "last": self.last.tolist()}


def fit_accuracy(records: Records, kind: str) -> AccuracyScorer:
    """Each stage's reliability on calibration records; `kind` is a key of `ESTIMATORS`."""
    _some(records)
    fit = ESTIMATORS[kind]
    return AccuracyScorer(kind, tuple(map(fit, records.features[:, :, CONFIDENCE], records.right)))


def fit_correctness(records: Records) -> CorrectnessScorer:
    """Fitted to each stage's own outcomes on calibration records."""
    _some(records)
    return CorrectnessScorer(_fit(records, records.right))


def fit_deferral(records: Records) -> DeferralScorer:
    """Fitted to each stage's outcomes and the last stage's, on calibration records."""
    _some(records)
    return DeferralScorer(_fit(records, records.right), _fit(records, records.right[-1:].expand_as(records.right)))


SCORERS: dict[str, Callable[[Records], Scorer]] = {
    "confidence": lambda records: FeatureScorer("confidence"),
    "margin": lambda records: FeatureScorer("margin"),
    "certainty": lambda records: FeatureScorer("certainty"),
    "patience": lambda records: FeatureScorer("patience"),
    "bins": lambda records: fit_accuracy(records, "bins"),
    "window": lambda records: fit_accuracy(records, "window"),
    "isotonic": lambda records: fit_accuracy(records, "isotonic"),
    "rightness": fit_correctness,
    "deferral": fit_deferral,
}


def features_read(scorer: Scorer) -> tuple[str, ...]:
    """Which of `FEATURES` a scorer looks at: all, unless it is known."""
    if isinstance(scorer, FeatureScorer):
        return (FEATURE_SCORERS[scorer.kind],)
    return ("confidence",) if isinstance(scorer, AccuracyScorer) else FEATURES


def scorer_from_json(record: dict[str, Any]) -> Scorer:
    """The scorer that `to_json` described, giving the same scores.

    Raises:
        DataError: the kind is unknown, or what belongs to it is missing.
    """
    kind = record.get("kind")
    try:
        if kind in FEATURE_SCORERS:
            return FeatureScorer(kind)
        if kind in ESTIMATORS:
            return AccuracyScorer(kind, tuple(reliability_from_json(stage) for stage in record["stages"]))
        if kind == "rightness":
            return CorrectnessScorer(_weights(record["this"]))
        if kind == "deferral":
            return DeferralScorer(_weights(record["this"]), _weights(record["last"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"a {kind} scorer must hold all that it was fitted to, but {error!r}; plan it anew") from error
    raise DataError(f"a scorer's kind must be one of {', '.join(SCORERS)}, but is {kind!r}; plan it anew")


def _fit(records: Records, right: Tensor) -> Tensor:
    return torch.stack([fit_probability(records.features[stage], right[stage]) for stage in range(len(records.stages))])


def _some(records: Records) -> int:
    if not len(records):
        raise DataError("a scorer is fitted to calibration examples, but there are 0; use a larger validation split")
    return len(records)


def _weights(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)
