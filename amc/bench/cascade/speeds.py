"""Speed: how much of the saving in multiply-adds a clock sees, for exits of one network and for a saver and its base.

`method-dynamic` 5.7: gathered, masked and singly, at batch 1 to 256, by torch and by ONNX Runtime. Beside the ground's
own network a larger one of random weights, with exits at which as many inputs are made to stop: for its seconds alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from amc.bench.cascade.ground import Ground
from amc.bench.cascade.speed import BATCHES, bench_speed, speed_text
from amc.bench.cascade.verdict import Figures, Goal
from amc.cascade import trained
from amc.cascade.candidate import Candidate, in_a_row
from amc.cascade.exits import exit_network
from amc.cascade.part import Member
from amc.cascade.points import cheapest_at, sweep
from amc.cascade.policy import NEVER, Policy
from amc.cascade.runtime import Cascade
from amc.cascade.scores import SCORERS, Shown
from amc.cascade.stage import NetworkStage, StageCost
from amc.cascade.survivors import Survivors
from amc.system.device import Compute
from amc.zoo.networks.source import build_model

INPUTS = 1024
LARGE, SIDE, TIMED = "torchvision:resnet18", 64, 128  # pictures of SIDE x SIDE, so many of them
LOSS = 0.005  # of the dense network's accuracy on the policy-fit half: fixes the plan that is timed
GOALS = tuple(
    Goal(f"{engine}, {kind}: at batch {batch} at least {share:.0%} of the speed-up in multiply-adds",
         f"{kind}, {engine}, batch {batch}: share of the MACs speed-up", least=share)
    for kind, engine in (("pair", "torch"), ("pair", "onnx"), ("exits", "torch"), ("exits", "onnx"), ("large", "torch"))
    for batch, share in ((64, 0.8), (1, 0.9))
)  # fmt: skip


def measure(ground: Ground) -> tuple[Figures, dict[str, Any]]:
    """The figures of one seed."""
    family = ground.family
    compute, dense = family.run.job.compute, family.dense
    (base,) = dense.stages
    assert isinstance(base, NetworkStage)
    inputs = torch.cat([part for part, _ in ground.split("validation").batches(256, limit=INPUTS)]).to(compute.device)
    figures: Figures = {}
    told = {}
    for kind, candidate in (("pair", _pair(ground, dense)), ("exits", _exits(ground, dense))):
        scorer = SCORERS["confidence"](candidate.fit)
        least = float(candidate.fit.accuracies[-1]) - LOSS
        policy = cheapest_at(sweep(candidate.fit, candidate.added, scorer), least).policy
        cascade = Cascade(candidate.stages, policy, compute)
        batches = [size for size in BATCHES if size <= len(inputs)]
        found = told[kind] = bench_speed(cascade, base, inputs, batches)
        ground.progress.say(speed_text(found))
        figures |= _figures(kind, found)
        figures[f"{kind}: speed-up in multiply-adds"] = found["torch"]["batches"][-1]["macs_speedup"]
    cascade, base, noise = _large(compute, told["exits"]["torch"]["shares"])
    told["large"] = bench_speed(cascade, base, noise, (1, 64), onnx=False)
    ground.progress.say(speed_text(told["large"]))
    return figures | _figures("large", told["large"]), told


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
    stages, scorer = network.stages(), Shown("confidence")
    group, left, thresholds = Survivors(torch.arange(TIMED), noise, {}), torch.ones(TIMED, dtype=torch.bool), []
    for stage, share in zip(stages[:-1], shares, strict=False):
        group = group.visit(stage, scorer, compute)
        sure = group.scores[-1].masked_fill(~left, -1).sort(descending=True).values
        leaving = round(share * TIMED)
        thresholds.append(float(sure[leaving - 1 : leaving + 1].mean()) if leaving else NEVER)
        left &= group.scores[-1] < thresholds[-1]
    macs = sum(stage.cost.body for stage in stages)
    base = NetworkStage("resnet18", model, StageCost("whole", macs))
    return Cascade(stages, Policy(scorer, tuple(thresholds)), compute), base, noise


def _pair(ground: Ground, dense: Member) -> Candidate:
    """The saver of about a quarter of the base's cost, and the base."""
    savers = [member for member in ground.members if member.macs < dense.macs]
    saver = min(savers, key=lambda member: abs(member.macs - dense.macs / 4))
    return in_a_row("tinysaver", [ground.single(saver), ground.single(dense)], ("confidence",))


def _exits(ground: Ground, dense: Member) -> Candidate:
    part = trained.exits_of(ground.family, dense)
    return Candidate("pcee", part.stages, *ground.halves(part), ("confidence",), (part,))
