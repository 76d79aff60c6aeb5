"""Exits: does accuracy track the target where plain confidence does not, and does a large network with exits beat a
smaller one run whole? The two tests of PCEE (arXiv 2412.19325)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from amc.bench.cascade.exit_calibration import exit_reports, oracle
from amc.bench.cascade.study_context import StudyContext
from amc.bench.cascade.study_goals import Figures, StudyGoal
from amc.cascade import (
    SCORERS,
    Candidate,
    OperatingPoint,
    Records,
    Scorer,
    StopRule,
    best_under,
    evaluate,
    exits_of,
    path_costs,
    simulate,
    sweep,
)

TARGETS, HIGHEST = 9, 0.99  # how many; below what the first exit reaches alone there is nothing to keep to
ESTIMATORS = ("bins", "window", "isotonic")
SIZES = (200, 1000)  # calibration images, beside all
FEWEST = 50  # images that leave at an exit, for its accuracy to be reported
SCORERS_TRIED = ("confidence", "isotonic", "deferral")
GOALS = (
    StudyGoal("answers given early are right at least as often as asked, on average over targets, to half a point",
         "isotonic: shortfall of early answers", most=0.005),
    StudyGoal("accuracy is nearer to the target than a plain confidence threshold's",
         "isotonic nearer to the target than confidence by", least=0.0),
    StudyGoal("the dense network with exits beats smaller ones run whole, at equal mean cost, on average over budgets",
         "exits against smaller networks: mean gain", least=0.0),
)  # fmt: skip


@dataclass(frozen=True)
class Tracking:
    """What one threshold for all exits does on test.

    Attributes:
        early: accuracy of the answers given before the last stage; None where there are none.
        exits: accuracy of each exit's answers; None where few leave there.
    """

    target: float
    early: float | None
    accuracy: float
    relative_cost: float
    exits: tuple[float | None, ...]


def measure(context: StudyContext, joint: bool = False) -> tuple[Figures, dict[str, Any]]:
    """The figures of one seed; `joint`: of the dense network trained on with its exits."""
    family = context.family
    part = exits_of(family, family.dense, joint)
    whole = Candidate("pcee", part.stages, *context.halves(part), ("confidence",), (part,))
    test = context.records(part, "test")
    figures: Figures = {f"accuracy of {name}": float(test.accuracies[i]) for i, name in enumerate(test.stages)}
    targets = _targets(whole.calibration)
    tracks = {
        name: track(SCORERS[name](whole.calibration), test, whole.added, family.dense.macs, targets)
        for name in ("confidence", *ESTIMATORS)
    }
    for name, found in tracks.items():
        figures |= {f"{name}: {key}": value for key, value in misses(found).items()}
    plain, ours = (figures[f"{name}: distance from the target"] for name in ("confidence", "isotonic"))
    figures["isotonic nearer to the target than confidence by"] = plain - ours
    figures |= _by_size(context, whole, test)
    points = [
        point
        for name in SCORERS_TRIED
        for point in sweep(whole.calibration, whole.added, SCORERS[name](whole.calibration))
    ]
    gains, curves = _against_smaller(context, whole, points, test)
    figures |= _against_its_exits(whole, points, test)
    best = oracle(test, whole.added)
    figures |= {"oracle: accuracy": best.accuracy, "oracle: relative cost": best.mean_cost / family.dense.macs}
    report = exit_reports(
        test, StopRule(SCORERS["isotonic"](whole.calibration), (0.95,) * (len(whole.added) - 1)), whole.added
    )
    reported = {name: [asdict(each) for each in found] for name, found in tracks.items()}
    return figures | gains, {"tracks": reported, "curves": curves, "exits_at_95": [asdict(each) for each in report]}


def _targets(calibration: Records) -> list[float]:
    """Accuracies between what the first exit reaches on all examples and `HIGHEST`."""
    least = float(calibration.accuracies[0])
    return [least + (HIGHEST - least) * step / TARGETS for step in range(1, TARGETS + 1)]


def track(
    scorer: Scorer, test: Records, added: Sequence[float], dense: float, targets: Sequence[float]
) -> list[Tracking]:
    """One threshold for all exits, at each of the targets; `dense` is the whole network's cost."""
    found = []
    for target in targets:
        outcomes = simulate(test, StopRule(scorer, (target,) * (len(added) - 1)), added)
        early = outcomes.stop < len(added) - 1
        by_exit = [outcomes.right[outcomes.stop == stage] for stage in range(len(added) - 1)]
        found.append(
            Tracking(
                target,
                float(outcomes.right[early].double().mean()) if int(early.sum()) >= FEWEST else None,
                outcomes.accuracy,
                outcomes.mean_cost / dense,
                tuple(float(right.double().mean()) if len(right) >= FEWEST else None for right in by_exit),
            )
        )
    return found


def misses(tracks: Sequence[Tracking]) -> Figures:
    """How far from the targets: of all answers given early, and of each exit's; shares of accuracy."""
    early = [(each.early, each.target) for each in tracks if each.early is not None]
    exits = [(accuracy, each.target) for each in tracks for accuracy in each.exits if accuracy is not None]
    overall = [abs(each.accuracy - each.target) for each in tracks]
    return {
        "distance from the target": _mean([abs(got - asked) for got, asked in early]),
        "shortfall of early answers": _mean([max(0.0, asked - got) for got, asked in early]),
        "distance of single exits": _mean([abs(got - asked) for got, asked in exits]),
        "largest shortfall of a single exit": max((asked - got for got, asked in exits), default=0.0),
        "distance of all answers": _mean(overall),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def _by_size(context: StudyContext, whole: Candidate, test: Records) -> Figures:
    """The estimators fitted to few images."""
    found: Figures = {}
    for size in SIZES:
        order = torch.randperm(len(whole.calibration), generator=torch.Generator().manual_seed(context.seed))
        few = whole.calibration.take(order[:size])
        for name in ESTIMATORS:
            tracks = track(
                SCORERS[name](few), test, whole.added, context.family.dense.macs, _targets(whole.calibration)
            )
            found[f"{name} of {size}: distance from the target"] = misses(tracks)["distance from the target"]
    return found


def _against_its_exits(whole: Candidate, points: Sequence[OperatingPoint], test: Records) -> Figures:
    """The network with exits at the mean cost of every image leaving at one of them, from the second on."""
    costs = [stage.cost for stage in whole.stages]
    gains: Figures = {}
    for index, stage in list(enumerate(whole.stages))[1:]:
        alone = sum(path_costs(costs, [index]))
        gained = evaluate(test, best_under(points, alone).rule, whole.added).accuracy - float(test.accuracies[index])
        gains[f"exits against {stage.name} for every image: gain"] = gained
    return gains | {"exits against one of them for every image: mean gain": _mean(list(gains.values()))}


def _against_smaller(
    context: StudyContext, whole: Candidate, points: Sequence[OperatingPoint], test: Records
) -> tuple[Figures, dict[str, Any]]:
    """The dense network with exits at the mean cost of each smaller network, by a rule of the calibration split."""
    gains: dict[str, float] = {}
    rows = []
    for member in context.members:
        if member.macs >= context.family.dense.macs or all(point.mean_cost > member.macs for point in points):
            continue
        point = evaluate(test, best_under(points, member.macs).rule, whole.added)
        alone = float(context.records(member, "test").accuracies[0])
        gains[member.name] = point.accuracy - alone
        rows.append({"network": member.name, "macs": member.macs, "alone": alone, "exits": point.accuracy,
                     "mean_cost": point.mean_cost, "max_cost": point.max_cost})  # fmt: skip
    found = {f"exits against {name}: gain": gain for name, gain in gains.items()}
    if gains:
        found["exits against smaller networks: mean gain"] = _mean(list(gains.values()))
    return found, {"against_smaller": rows}
