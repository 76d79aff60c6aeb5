"""Plans: at equal mean cost and at equal measured latency, is the best cascade better than the best static network of
the same family? `method-dynamic` 5.8, over several budgets; and what the dense network's own accuracy costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from amc.bench.cascade.ground import Ground
from amc.bench.cascade.verdict import Figures, Goal
from amc.cascade.candidate import Candidate
from amc.cascade.figures import judged
from amc.cascade.inference import for_inference
from amc.cascade.latency import batch_seconds
from amc.cascade.latency import measure as measure_latency
from amc.cascade.methods import candidates_of
from amc.cascade.options import Goal as Wanted
from amc.cascade.options import Option, static_option
from amc.cascade.part import joined
from amc.cascade.plan import Plan, make_plan
from amc.cascade.points import cheapest_at, sweep
from amc.cascade.policy import Policy, Walk, walk
from amc.cascade.records import Records
from amc.cascade.scores import SCORERS
from amc.cascade.stage import Stage
from amc.cascade.terms import Limits
from amc.system.errors import BudgetUnreachable
from amc.train.evaluation import paired_difference

DELTA, DROP = 0.1, 0.005  # of the certified plans: chance that the terms are broken; accuracy that may be lost
BATCH = 64
QUARTER = "25%"
SCORERS_TRIED = ("confidence", "isotonic")
GOALS = (
    Goal("never worse than the best static network within the same mean cost, to a quarter of a point",
         "least gain", least=-0.0025),
    Goal("at a quarter of the dense multiply-adds, at least a point better", f"gain at {QUARTER}", least=0.01),
    Goal("the dense network's own accuracy at no more than half its mean cost",
         "the dense accuracy: relative cost", most=0.5),
    Goal("at equal measured latency never worse than the best static network, to a quarter of a point",
         "least gain at equal latency", least=-0.0025),
    Goal("no certified term is broken on test by more than the test split can tell",
         "certified terms broken", most=0.0),
)  # fmt: skip


def measure(ground: Ground) -> tuple[Figures, dict[str, Any]]:
    """The figures of one seed."""
    singles = [ground.single(member) for member in ground.members]
    whole = next(each for each in singles if each.parts[0] is ground.family.dense)
    figures: Figures = {"the dense network: accuracy": float(_test(ground, whole).accuracies[0])}
    seconds = {each.name: _seconds(ground, each.stages, None, torch.zeros(1).long()) for each in singles}
    rows, gains, equal, broken = [], [], [], 0
    candidates: list[Candidate] = []
    for budget, limit in zip(ground.budgets, ground.limits, strict=True):
        limits = Limits(limit, None, None, None, DELTA)
        candidates = candidates_of("auto", ground.family, singles, limits, ground.progress)
        row = _row(ground, make_plan([*singles, *candidates], Wanted(limits, whole)), singles, seconds)
        rows.append({"budget": str(budget), "limit": limit, **row})
        figures[f"plan at {budget}: accuracy"] = row["accuracy"]
        figures[f"gain at {budget}"] = row["gain"]
        gains.append(row["gain"])
        equal.append(row["gain_at_equal_latency"])
        broken += row["lowest_mean_cost"] > limit
    figures |= {"least gain": min(gains), "mean gain": sum(gains) / len(gains)}
    figures |= {"least gain at equal latency": min(equal), "mean gain at equal latency": sum(equal) / len(equal)}
    figures |= _dense_accuracy(ground, [*singles, *candidates], whole)
    told, failed = _certified_drop(ground, [*singles, *candidates], whole)
    return figures | told | {"certified terms broken": float(broken + failed)}, {"budgets": rows}


def _test(ground: Ground, candidate: Candidate) -> Records:
    """What a candidate's stages say of the test split."""
    found = joined([ground.records(part, "test") for part in candidate.parts])
    return found.choose(candidate.used) if candidate.used else found


def _on_test(ground: Ground, option: Option) -> Walk:
    return walk(_test(ground, option.candidate), option.policy, option.candidate.added)


def _row(ground: Ground, plan: Plan, singles: Sequence[Candidate], seconds: dict[str, float]) -> dict[str, Any]:
    """One budget: the plan beside the best static network within it, and beside the best that is as fast."""
    assert plan.static is not None  # the networks run whole keep to any budget that some plan keeps to
    ours, theirs = _on_test(ground, plan.option), _on_test(ground, plan.static)
    gain, low, high = paired_difference(judged(ours), judged(theirs))
    taken = _seconds(ground, plan.option.candidate.stages, plan.option.policy, ours.stop)
    as_fast = [each for each in singles if seconds[each.name] <= taken * 1.001]
    rival = max(as_fast, key=lambda each: float(each.fit.accuracies[0]), default=plan.static.candidate)
    spread = 1.96 * float(ours.cost.std()) / len(ours.cost) ** 0.5
    return {
        "plan": plan.option.name, "why_static": plan.why, "static": plan.static.name, "accuracy": ours.accuracy,
        "static_accuracy": theirs.accuracy, "gain": gain, "gain_95": [low, high],
        "mean_cost": ours.mean_cost, "lowest_mean_cost": ours.mean_cost - spread,
        "static_cost": theirs.mean_cost, "max_cost": float(ours.cost.max()),
        "ms": 1e3 * taken, "static_ms": 1e3 * seconds[plan.static.candidate.name],
        "as_fast": rival.name, "gain_at_equal_latency": ours.accuracy - float(_test(ground, rival).accuracies[0]),
    }  # fmt: skip


def _seconds(ground: Ground, stages: Sequence[Stage], policy: Policy | None, stop: torch.Tensor) -> float:
    """Measured seconds of an example in batches of `BATCH`, mean over random batches of examples that stop as told."""
    compute = ground.family.run.job.compute
    inputs = next(iter(ground.split("validation").batches(BATCH)))[0].to(compute.device)
    scorer = policy.scorer if policy is not None and len(stages) > 1 else None
    ready = for_inference(stages, inputs, compute)
    curves = measure_latency(ready, scorer, inputs, compute, batches=(4, 16, BATCH), rounds=7)
    return float(batch_seconds(curves, stop, BATCH, seed=ground.seed).mean()) / BATCH


def _dense_accuracy(ground: Ground, candidates: Sequence[Candidate], whole: Candidate) -> Figures:
    """The cheapest policy that is as accurate as the dense network on the policy-fit half, on test."""
    least = float(whole.fit.accuracies[0])
    best: tuple[float, Candidate, Policy] | None = None
    for each in candidates:
        for name in SCORERS_TRIED if len(each.stages) > 1 else SCORERS_TRIED[:1]:
            try:
                point = cheapest_at(sweep(each.fit, each.added, SCORERS[name](each.fit)), least)
            except BudgetUnreachable:
                continue
            if best is None or point.mean_cost < best[0]:
                best = point.mean_cost, each, point.policy
    assert best is not None  # the dense network itself is among them
    walked = walk(_test(ground, best[1]), best[2], best[1].added)
    dense = float(_test(ground, whole).accuracies[0])
    return {
        "the dense accuracy: relative cost": walked.mean_cost / whole.max_cost,
        "the dense accuracy: drop on test": dense - walked.accuracy,
    }


def _certified_drop(ground: Ground, candidates: Sequence[Candidate], whole: Candidate) -> tuple[Figures, int]:
    """The cheapest plan that is certified to lose at most `DROP`; whether test shows that it loses more."""
    plan = make_plan(candidates, Wanted(Limits(None, None, None, DROP, DELTA), whole))
    ours, theirs = _on_test(ground, plan.option), _on_test(ground, static_option(whole))
    gain, _, high = paired_difference(judged(ours), judged(theirs))
    name = f"certified to lose at most {DROP:.1%}"
    return {
        f"{name}: relative cost": ours.mean_cost / whole.max_cost,
        f"{name}: drop on test": -gain,
    }, int(high < -DROP)
