"""Plans: at equal mean cost and at equal measured latency, is the best cascade better than the best static network of
the same family? over several budgets; and what the dense network's own accuracy costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from amc import BudgetUnreachable, paired_difference
from amc.bench.cascade.study_context import StudyContext
from amc.bench.cascade.study_goals import Figures, StudyGoal
from amc.cascade import (
    SCORERS,
    AbsoluteConstraints,
    Candidate,
    Option,
    Outcomes,
    Plan,
    PlanProblem,
    Records,
    Stage,
    StopRule,
    as_evaluation,
    batch_seconds,
    candidates_of,
    cheapest_at,
    for_inference,
    join_stages,
    make_plan,
    measure_latency,
    simulate,
    static_option,
    sweep,
)

DELTA, DROP = 0.1, 0.005  # of the certified plans: chance that the constraints are broken; accuracy that may be lost
BATCH = 64
QUARTER = "25%"
SCORERS_TRIED = ("confidence", "isotonic")
GOALS = (
    StudyGoal("never worse than the best static network within the same mean cost, to a quarter of a point",
         "least gain", least=-0.0025),
    StudyGoal("at a quarter of the dense multiply-adds, at least a point better", f"gain at {QUARTER}", least=0.01),
    StudyGoal("the dense network's own accuracy at no more than half its mean cost",
         "the dense accuracy: relative cost", most=0.5),
    StudyGoal("at equal measured latency never worse than the best static network, to a quarter of a point",
         "least gain at equal latency", least=-0.0025),
    StudyGoal("no certified constraint is broken on test by more than the test split can tell",
         "certified constraints broken", most=0.0),
)  # fmt: skip


def measure(context: StudyContext) -> tuple[Figures, dict[str, Any]]:
    """The figures of one seed."""
    singles = [context.single(member) for member in context.members]
    whole = next(each for each in singles if each.components[0] is context.family.dense)
    figures: Figures = {"the dense network: accuracy": float(_test(context, whole).accuracies[0])}
    seconds = {each.name: _seconds(context, each.stages, None, torch.zeros(1).long()) for each in singles}
    rows, gains, equal, broken = [], [], [], 0
    candidates: list[Candidate] = []
    for budget, limit in zip(context.budgets, context.limits, strict=True):
        limits = AbsoluteConstraints(limit, None, None, None, DELTA)
        candidates = candidates_of("auto", context.family, singles, limits, context.progress)
        row = _row(context, make_plan([*singles, *candidates], PlanProblem(limits, whole)), singles, seconds)
        rows.append({"budget": str(budget), "limit": limit, **row})
        figures[f"plan at {budget}: accuracy"] = row["accuracy"]
        figures[f"gain at {budget}"] = row["gain"]
        gains.append(row["gain"])
        equal.append(row["gain_at_equal_latency"])
        broken += row["lowest_mean_cost"] > limit
    figures |= {"least gain": min(gains), "mean gain": sum(gains) / len(gains)}
    figures |= {"least gain at equal latency": min(equal), "mean gain at equal latency": sum(equal) / len(equal)}
    figures |= _dense_accuracy(context, [*singles, *candidates], whole)
    reported, failed = _certified_drop(context, [*singles, *candidates], whole)
    return figures | reported | {"certified constraints broken": float(broken + failed)}, {"budgets": rows}


def _test(context: StudyContext, candidate: Candidate) -> Records:
    """What a candidate's stages say of the test split."""
    found = join_stages([context.records(part, "test") for part in candidate.components])
    return found.choose(candidate.used) if candidate.used else found


def _on_test(context: StudyContext, option: Option) -> Outcomes:
    return simulate(_test(context, option.candidate), option.rule, option.candidate.added)


def _row(context: StudyContext, plan: Plan, singles: Sequence[Candidate], seconds: dict[str, float]) -> dict[str, Any]:
    """One budget: the plan beside the best static network within it, and beside the best that is as fast."""
    assert plan.static is not None  # the networks run whole keep to any budget that some plan keeps to
    ours, theirs = _on_test(context, plan.option), _on_test(context, plan.static)
    gain, low, high = paired_difference(as_evaluation(ours), as_evaluation(theirs))
    taken = _seconds(context, plan.option.candidate.stages, plan.option.rule, ours.stop)
    as_fast = [each for each in singles if seconds[each.name] <= taken * 1.001]
    rival = max(as_fast, key=lambda each: float(each.calibration.accuracies[0]), default=plan.static.candidate)
    spread = 1.96 * float(ours.cost.std()) / len(ours.cost) ** 0.5
    return {
        "plan": plan.option.name, "why_static": plan.why, "static": plan.static.name, "accuracy": ours.accuracy,
        "static_accuracy": theirs.accuracy, "gain": gain, "gain_95": [low, high],
        "mean_cost": ours.mean_cost, "lowest_mean_cost": ours.mean_cost - spread,
        "static_cost": theirs.mean_cost, "max_cost": float(ours.cost.max()),
        "ms": 1e3 * taken, "static_ms": 1e3 * seconds[plan.static.candidate.name],
        "as_fast": rival.name, "gain_at_equal_latency": ours.accuracy - float(_test(context, rival).accuracies[0]),
    }  # fmt: skip


def _seconds(context: StudyContext, stages: Sequence[Stage], rule: StopRule | None, stop: torch.Tensor) -> float:
    """Measured seconds of an example in batches of `BATCH`, mean over random batches of examples that stop so."""
    compute = context.family.run.job.compute
    inputs = next(iter(context.split("validation").batches(BATCH)))[0].to(compute.device)
    scorer = rule.scorer if rule is not None and len(stages) > 1 else None
    ready = for_inference(stages, inputs, compute)
    curves = measure_latency(ready, scorer, inputs, compute, batches=(4, 16, BATCH), rounds=7)
    return float(batch_seconds(curves, stop, BATCH, seed=context.seed).mean()) / BATCH


def _dense_accuracy(context: StudyContext, candidates: Sequence[Candidate], whole: Candidate) -> Figures:
    """The cheapest stop rule that is as accurate as the dense network on the calibration split, on test."""
    least = float(whole.calibration.accuracies[0])
    best: tuple[float, Candidate, StopRule] | None = None
    for each in candidates:
        for name in SCORERS_TRIED if len(each.stages) > 1 else SCORERS_TRIED[:1]:
            try:
                point = cheapest_at(sweep(each.calibration, each.added, SCORERS[name](each.calibration)), least)
            except BudgetUnreachable:
                continue
            if best is None or point.mean_cost < best[0]:
                best = point.mean_cost, each, point.rule
    assert best is not None  # the dense network itself is among them
    outcomes = simulate(_test(context, best[1]), best[2], best[1].added)
    dense = float(_test(context, whole).accuracies[0])
    return {
        "the dense accuracy: relative cost": outcomes.mean_cost / whole.max_cost,
        "the dense accuracy: drop on test": dense - outcomes.accuracy,
    }


def _certified_drop(context: StudyContext, candidates: Sequence[Candidate], whole: Candidate) -> tuple[Figures, int]:
    """The cheapest plan that is certified to lose at most `DROP`; whether test shows that it loses more."""
    plan = make_plan(candidates, PlanProblem(AbsoluteConstraints(None, None, None, DROP, DELTA), whole))
    ours, theirs = _on_test(context, plan.option), _on_test(context, static_option(whole))
    gain, _, high = paired_difference(as_evaluation(ours), as_evaluation(theirs))
    name = f"certified to lose at most {DROP:.1%}"
    return {
        f"{name}: relative cost": ours.mean_cost / whole.max_cost,
        f"{name}: drop on test": -gain,
    }, int(high < -DROP)
