"""Speed: how much of the saving in multiply-adds a clock sees, for exits of one network and for a saver and its base.

`method-dynamic` 5.7: gathered, masked and singly, at batch 1 to 256, by torch and by ONNX Runtime.
"""

from __future__ import annotations

from typing import Any

import torch

from amc.bench.cascade.ground import Ground
from amc.bench.cascade.speed import BATCHES, bench_speed, speed_text
from amc.bench.cascade.verdict import Figures, Goal
from amc.dynamic import trained
from amc.dynamic.candidate import Candidate, in_a_row
from amc.dynamic.part import Member
from amc.dynamic.points import cheapest_at, sweep
from amc.dynamic.runtime import Cascade
from amc.dynamic.scores import SCORERS
from amc.dynamic.stage import NetworkStage

INPUTS = 1024
LOSS = 0.005  # of the dense network's accuracy on the policy-fit half: fixes the plan that is timed
GOALS = tuple(
    Goal(f"{engine}, {kind}: at batch {batch} at least {share:.0%} of the speed-up in multiply-adds",
         f"{kind}, {engine}, batch {batch}: share of the MACs speed-up", least=share)
    for kind in ("pair", "exits") for engine in ("torch", "onnx") for batch, share in ((64, 0.8), (1, 0.9))
)  # fmt: skip


def measure(ground: Ground) -> tuple[Figures, dict[str, Any]]:
    """The figures of one seed."""
    family = ground.family
    compute, dense = family.run.dense.compute, family.dense
    (base,) = dense.stages
    assert isinstance(base, NetworkStage)
    inputs = torch.cat([part for part, _ in ground.split("measure").batches(256, limit=INPUTS)]).to(compute.device)
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
        for engine in ("torch", "onnx"):
            for row in found[engine]["batches"]:
                name = f"{kind}, {engine}, batch {row['batch']}"
                figures[f"{name}: speed-up"] = row["speedup"]
                figures[f"{name}: share of the MACs speed-up"] = row["share_of_macs"]
        figures[f"{kind}: speed-up in multiply-adds"] = found["torch"]["batches"][-1]["macs_speedup"]
    return figures, told


def _pair(ground: Ground, dense: Member) -> Candidate:
    """The saver of about a quarter of the base's cost, and the base."""
    savers = [member for member in ground.members if member.macs < dense.macs]
    saver = min(savers, key=lambda member: abs(member.macs - dense.macs / 4))
    return in_a_row("tinysaver", [ground.single(saver), ground.single(dense)], ("confidence",))


def _exits(ground: Ground, dense: Member) -> Candidate:
    part = trained.exits_of(ground.family, dense)
    return Candidate("pcee", part.stages, *ground.halves(part), ("confidence",), (part,))
