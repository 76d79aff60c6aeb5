"""Speed: how much of the saving in multiply-adds a clock sees, for exits of one network and for a saver and its base.

Gathered, masked and singly, at batch 1 to 256, by torch and by ONNX Runtime. Beside the context's
own network a larger one of random weights, with exits at which as many inputs are made to stop: for its seconds alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from amc import Compute, build_model
from amc.bench.cascade.study_context import StudyContext
from amc.bench.cascade.study_goals import Figures, StudyGoal
from amc.bench.cascade.timing import BATCHES, bench_speed, speed_text
from amc.cascade import (
    NEVER,
    SCORERS,
    ActiveExamples,
    Candidate,
    Cascade,
    FeatureScorer,
    NetworkComponent,
    NetworkStage,
    StageCost,
    StopRule,
    cheapest_at,
    exit_network,
    exits_of,
    in_a_row,
    sweep,
)

INPUTS = 1024
LARGE, SIDE, TIMED = "torchvision:resnet18", 64, 128  # images of SIDE x SIDE, so many of them
LOSS = 0.005  # of the dense network's accuracy on the calibration split: fixes the plan that is timed
GOALS = tuple(
    StudyGoal(f"{engine}, {kind}: at batch {batch} at least {share:.0%} of the speed-up in multiply-adds",
         f"{kind}, {engine}, batch {batch}: share of the MACs speed-up", least=share)
    for kind, engine in (("pair", "torch"), ("pair", "onnx"), ("exits", "torch"), ("exits", "onnx"), ("large", "torch"))
    for batch, share in ((64, 0.8), (1, 0.9))
)  # fmt: skip


def measure(context: StudyContext) -> tuple[Figures, dict[str, Any]]:
    """The figures of one seed."""
    family = context.family
    compute, dense = family.run.job.compute, family.dense
    (base,) = dense.stages
    assert isinstance(base, NetworkStage)
    inputs = torch.cat([part for part, _ in context.split("validation").batches(256, limit=INPUTS)]).to(compute.device)
    figures: Figures = {}
    reported = {}
    for kind, candidate in (("pair", _pair(context, dense)), ("exits", _exits(context, dense))):
        scorer = SCORERS["confidence"](candidate.calibration)
        least = float(candidate.calibration.accuracies[-1]) - LOSS
        rule = cheapest_at(sweep(candidate.calibration, candidate.added, scorer), least).rule
        cascade = Cascade(candidate.stages, rule, compute)
        batches = [size for size in BATCHES if size <= len(inputs)]
        found = reported[kind] = bench_speed(cascade, base, inputs, batches)
        context.progress.say(speed_text(found))
        figures |= _figures(kind, found)
        figures[f"{kind}: speed-up in multiply-adds"] = found["torch"]["batches"][-1]["macs_speedup"]
    cascade, base, noise = _large(compute, reported["exits"]["torch"]["shares"])
    reported["large"] = bench_speed(cascade, base, noise, (1, 64), onnx=False)
    context.progress.say(speed_text(reported["large"]))
    return figures | _figures("large", reported["large"]), reported


def _figures(kind: str, found: dict[str, Any]) -> Figures:
    """Speed-ups and their shares of that in multiply-adds, by engine and batch size."""
    figures: Figures = {}
    for engine in ("torch", "onnx"):
        for row in found[engine]["batches"] if engine in found else ():
            name = f"{kind}, {engine}, batch {row['batch']}"
            figures[f"{name}: speed-up"] = row["speedup"]
            figures[f"{name}: share of the MACs speed-up"] = row["share_of_macs"]
            figures |= {f"{name}: kept by the {part}": share for part, share in row["kept"].items()}
    return figures


@torch.no_grad()
def _large(compute: Compute, shares: Sequence[float]) -> tuple[Cascade, NetworkStage, torch.Tensor]:
    """A network of random weights, with exits at which `shares` of its inputs stop; it alone; the inputs, noise."""
    noise = torch.randn(TIMED, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(compute.device)
    model = compute.place(build_model(LARGE, num_classes=10)).eval()
    network = compute.place(exit_network(model, noise[:1], len(shares) - 1, chain="resnet18"))
    stages, scorer = network.stages(), FeatureScorer("confidence")
    group, left, thresholds = ActiveExamples(torch.arange(TIMED), noise, {}), torch.ones(TIMED, dtype=torch.bool), []
    for stage, share in zip(stages[:-1], shares, strict=False):
        group = group.visit(stage, scorer, compute)
        sure = group.scores[-1].masked_fill(~left, -1).sort(descending=True).values
        leaving = round(share * TIMED)
        thresholds.append(float(sure[leaving - 1 : leaving + 1].mean()) if leaving else NEVER)
        left &= group.scores[-1] < thresholds[-1]
    macs = sum(stage.cost.body for stage in stages)
    base = NetworkStage("resnet18", model, StageCost("whole", macs))
    return Cascade(stages, StopRule(scorer, tuple(thresholds)), compute), base, noise


def _pair(context: StudyContext, dense: NetworkComponent) -> Candidate:
    """The saver of about a quarter of the base's cost, and the base."""
    savers = [member for member in context.members if member.macs < dense.macs]
    saver = min(savers, key=lambda member: abs(member.macs - dense.macs / 4))
    return in_a_row("tinysaver", [context.single(saver), context.single(dense)], ("confidence",))


def _exits(context: StudyContext, dense: NetworkComponent) -> Candidate:
    part = exits_of(context.family, dense)
    return Candidate("pcee", part.stages, *context.halves(part), ("confidence",), (part,))
