"""Students: B-DISTIL's prefixes against other ensembles and single networks of the same multiply-adds, on test.

Reuse on and off, a teacher scaled inside the students' range and one that fills it, and the
certificate, which `amc.cascade.methods.bdistil.hedge` checks after every round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch

from amc.bench.cascade.student_baselines import AccuracyCurve, compare
from amc.bench.cascade.study_context import StudyContext
from amc.bench.cascade.study_goals import Figures, StudyGoal
from amc.cascade import Distilled, GameSettings, distil, split_in_two, teacher_outputs_of

ROUNDS = 4
SEEN = 50_000  # examples that a student is trained on
OURS = "B-DISTIL"
BASELINES = ("uniform average", "RESCHED", "residual boosting", "single, from scratch", "NO-RESCHED")
TOLERANCE = 0.005  # by which a longer prefix may be worse on test
GOALS = (
    StudyGoal("no prefix is worse on test than a shorter one by more than half a point",
              "largest fall", most=TOLERANCE),
    *(StudyGoal(f"prefixes beat {rival} at equal multiply-adds, on average", f"gain over {rival}", least=0.0)
      for rival in BASELINES[:-1]),
    StudyGoal("the whole ensemble is within a point of one distilled network of its size",
              "behind NO-RESCHED", most=0.01),
)  # fmt: skip


def measure(context: StudyContext) -> tuple[Figures, dict[str, Any]]:
    """The figures of one seed."""
    family = context.family
    dense, teacher = family.run.job, family.dense
    measured = dense.data.validation
    held_out = split_in_two(len(measured), context.seed, groups=getattr(measured, "groups", None))[0]
    rules = GameSettings(rounds=ROUNDS)
    pool = teacher_outputs_of(teacher.model, dense.data, dense.compute, rules, context.seed)
    rules = replace(rules, passes=SEEN / len(pool))
    settings: dict[str, Any] = {"held_out": held_out, "seed": context.seed, "progress": context.progress}
    found, curves = compare(teacher.model, dense.data, dense.compute, rules=rules, pool=pool, **settings)
    by_name = {curve.method: curve for curve in curves}
    ours = by_name[OURS]
    taught = context.records(teacher, "test")
    figures: Figures = {"the teacher: accuracy": float(taught.accuracies[0])}
    for number, (macs, accuracy) in enumerate(zip(ours.macs, ours.accuracies, strict=True), start=1):
        figures[f"prefix {number}: relative cost"] = macs / teacher.macs
        figures[f"prefix {number}: accuracy"] = accuracy
    figures["largest fall"] = max(
        (a - b for a, b in zip(ours.accuracies, ours.accuracies[1:], strict=False)), default=0
    )
    for rival in BASELINES:
        figures[f"gain over {rival}"] = _gain(ours, by_name[rival])
    for without in ("plain average", "no reuse"):
        figures[f"gain over itself, {without}"] = _gain(ours, by_name[f"{OURS}, {without}"])
    figures["behind NO-RESCHED"] = by_name["NO-RESCHED"].accuracies[-1] - ours.accuracies[-1]
    figures |= _certified(found)
    saturated = distil(teacher.model, dense.data, dense.compute, rules=replace(rules, share=1.0), **settings)
    figures["held-out loss"] = found.loss
    figures["held-out loss of a teacher that fills the range"] = saturated.loss
    reported = {curve.method: {"macs": curve.macs, "accuracies": curve.accuracies} for curve in curves}
    return figures, {"curves": reported, "rounds": [each.to_json() for each in found.rounds], "ended": found.why}


def _gain(ours: AccuracyCurve, theirs: AccuracyCurve) -> float:
    """Mean over prefixes of ours minus what theirs has at the same multiply-adds."""
    return float(
        torch.tensor([a - _at(theirs, macs) for macs, a in zip(ours.macs, ours.accuracies, strict=True)]).mean()
    )


def _at(curve: AccuracyCurve, macs: float) -> float:
    """Accuracy at a cost, in a straight line between its points; the nearest end outside of them."""
    points = sorted(zip(curve.macs, curve.accuracies, strict=True))
    return _interpolated(points, macs)


def _interpolated(points: Sequence[tuple[float, float]], at: float) -> float:
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= at <= x1:
            return y0 + (y1 - y0) * (at - x0) / max(x1 - x0, 1e-9)
    return points[0][1] if at < points[0][0] else points[-1][1]


def _certified(found: Distilled) -> Figures:
    """How tight the certificate of the last round is, and how many students had an edge."""
    kept = [each for each in found.rounds if each.certificate is not None]
    last = kept[-1].certificate
    assert last is not None
    return {
        "certificate: largest error": last.error,
        "certificate: bound": last.bound,
        "students kept": float(len(kept)),
        "of them with an edge": float(sum(each.edge > 0 for each in kept[1:])),
    }
