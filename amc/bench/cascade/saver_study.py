"""Savers: do they rank as DeltaC says, do thresholds hold on new images, which networks save best, does ESN help?

TinySaver (arXiv 2403.17726) with the published rule beside sound ones, and its exit
sequence network beside the plain pair at equal mean cost.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from amc import load, save, train_network
from amc.bench.cascade.complementarity import complementarity
from amc.bench.cascade.study_context import StudyContext
from amc.bench.cascade.study_goals import Figures, StudyGoal
from amc.cascade import (
    RISKS,
    SCORERS,
    Component,
    Match,
    NetworkComponent,
    OperatingPoint,
    Records,
    Saver,
    Stage,
    StopRule,
    best_under,
    evaluate,
    learn_then_test,
    path_costs,
    published_match,
    rank_savers,
    saver_curve,
    saver_rule,
    sequence_of,
    simulate,
    sweep,
    threshold_ladder,
    whole_grid_match,
)

DROP, DELTA = 0.005, 0.1  # of the sound rules: points of accuracy, chance that they fail
SCRATCH, RELATIVE_COST = "twins", 0.25  # folder of a run; share of the base's cost at which relatives are compared
RECORD = "architecture.json"  # of a saved network, written last
GOALS = (
    StudyGoal("the saver chosen on held-out images is within 2 % of the best one on test",
         "regret of the choice", most=0.02),
    StudyGoal("the certified threshold loses at most half a point on test", "certified: drop on test", most=DROP),
    StudyGoal("the exit sequence beats saver and base at equal mean cost, at one budget at least",
         "exit sequence: best gain", least=0.0),
)  # fmt: skip


def measure(context: StudyContext) -> tuple[Figures, dict[str, Any]]:
    """The figures of one seed."""
    base = context.family.dense
    savers = [member for member in context.members if member.macs < base.macs]
    parts: list[Component] = [*savers, base]
    costs = [member.macs for member in [*savers, base]]
    calibration, holdout = context.in_a_row(parts, "validation").parted(context.seed)
    test, seen = context.in_a_row(parts, "test"), context.in_a_row(parts, "train")
    ranked, on_train, on_test = (rank_savers(each, costs, top=None) for each in (calibration, seen, test))
    figures, chosen = _ranking(ranked, on_train, on_test)
    index = [member.name for member in savers].index(chosen)
    pair = [index, len(savers)]
    added = [costs[index], costs[-1]]
    figures |= _rules(calibration.choose(pair), holdout.choose(pair), test.choose(pair), added)
    more = {"savers": [asdict(saver) for saver in ranked], "chosen": chosen}
    reported = _relatives(context, savers, base)
    figures |= reported[0]
    sequence, gains = _sequence(context, savers[index], base)
    return figures | sequence, more | {"complementarity": reported[1], "exit_sequence": gains}


def _ranking(ranked: Sequence[Saver], on_train: Sequence[Saver], on_test: Sequence[Saver]) -> tuple[Figures, str]:
    """What choosing on held-out and on train images costs against knowing the test split."""
    truth = {saver.name: saver.delta for saver in on_test}
    best, chosen = on_test[0].delta, ranked[0].name
    pairs = [(a, b) for i, a in enumerate(ranked) for b in ranked[i + 1 :]]
    agreeing = sum(truth[a.name] <= truth[b.name] for a, b in pairs)
    found = {
        "regret of the choice": truth[chosen] - best,
        "regret of the choice on train images": truth[on_train[0].name] - best,
        "relative cost of the best saver's pair": 1 + best,
        "pairs of savers in the right order": agreeing / max(1, len(pairs)),
    }
    return found, chosen


def _rules(calibration: Records, holdout: Records, test: Records, added: Sequence[float]) -> Figures:
    """Thresholds chosen by each rule, and what they do on test against the base."""
    confidence = SCORERS["confidence"](calibration)
    rules = {
        "published": saver_rule(published_match(calibration), confidence),
        "half a point on held-out": saver_rule(whole_grid_match(calibration, DROP), confidence),
        "certified": _certified(calibration, holdout, added),
    }
    found: Figures = {}
    for name, rule in rules.items():
        point = evaluate(test, rule, added)
        found[f"{name}: relative cost"] = point.mean_cost / added[1]
        found[f"{name}: drop on test"] = float(test.accuracies[1]) - point.accuracy
    read_off = _read_off(test)
    found["read off the test curve, as published: relative cost"] = added[0] / added[1] + 1 - read_off.share
    return found


def _certified(calibration: Records, holdout: Records, added: Sequence[float]) -> StopRule:
    """The most aggressive rule of the ladder certified to lose at most `DROP`; the base alone where none is."""
    rules = threshold_ladder(calibration, SCORERS["confidence"](calibration), 100)  # the first is the base itself
    losses = (RISKS["gap"].losses(holdout, simulate(holdout, rule, added), added) for rule in rules[1:])
    passed = learn_then_test((loss.p_value(DROP, DELTA) for loss in losses), DELTA)
    return rules[0 if passed is None else passed + 1]


def _read_off(test: Records) -> Match:
    """The largest share at which the test split itself shows a drop of at most half a point."""
    swept = saver_curve(test)
    lost = swept.base_right - swept.saver_right
    return swept.at(int((lost <= DROP).nonzero()[0]))


def _relatives(
    context: StudyContext, savers: Sequence[NetworkComponent], base: NetworkComponent
) -> tuple[Figures, dict[str, Any]]:
    """A pruned saver beside a network of the same shape that was trained from scratch: whose errors are the base's?"""
    pruned = min(savers, key=lambda member: abs(member.macs - RELATIVE_COST * base.macs))
    scratch = copy_from_scratch(context, pruned)
    found: Figures = {}
    reported: dict[str, Any] = {}
    for name, member in (("pruned", pruned), ("from scratch", scratch)):
        pair = context.in_a_row([member, base], "test")
        as_evaluation = complementarity(pair, context.seed)
        reported[name] = asdict(as_evaluation)
        # Not the published match: to lose nothing at all hangs on a few images, and costs follow them.
        match = whole_grid_match(context.in_a_row([member, base], "validation").parted(context.seed)[0], DROP)
        point = evaluate(pair, saver_rule(match, SCORERS["confidence"](pair)), [member.macs, base.macs])
        found[f"{name}: accuracy"] = float(pair.accuracies[0])
        found[f"{name}: correlation of errors with the base's"] = as_evaluation.phi
        found[f"{name}: only it is right"] = as_evaluation.saver_only
        found[f"{name}: pair, relative cost"] = point.mean_cost / base.macs
        found[f"{name}: pair, accuracy"] = point.accuracy
    return found, reported


def copy_from_scratch(context: StudyContext, member: NetworkComponent) -> NetworkComponent:
    """A network of a member's shape trained from scratch, without the dense network; kept in the run."""
    run = context.family.run
    dense, folder = run.job, run.folder / SCRATCH / member.name
    if not (folder / RECORD).is_file():
        model = copy.deepcopy(member.model)
        torch.manual_seed(run.recipe.seed + 1)
        for module in model.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        schedule = run.recipe.finetune
        train_network(
            model, context.family.splits, schedule, dense.compute, seed=run.recipe.seed + 1,
            title=f"train {member.name} from scratch", progress=context.progress, task=dense.task,
        )  # fmt: skip
        save(folder, model.eval(), dense.source, tuple(dense.data.input_shape), member.normalisation)
    model = dense.compute.place(load(folder))
    return NetworkComponent(
        f"{member.name} from scratch", model, member.macs, dense.source, member.input_shape, "external"
    )


def _sequence(
    context: StudyContext, saver: NetworkComponent, base: NetworkComponent
) -> tuple[Figures, dict[str, float]]:
    """The exit sequence over a pair against the pair itself, at each budget; the calibration split gives thresholds."""
    part = sequence_of(context.family, saver, base)
    sides = {}
    for name, parts in (("pair", [saver, base]), ("sequence", [part])):
        candidate = [stage for each in parts for stage in each.stages]
        added = _added(candidate)
        calibration = context.in_a_row(list(parts), "validation").parted(context.seed)[0]
        scorer = SCORERS["confidence"](calibration)
        sides[name] = (sweep(calibration, added, scorer), context.in_a_row(list(parts), "test"), added)
    gains: dict[str, float] = {}
    for budget, limit in zip(context.budgets, context.limits, strict=True):
        accuracies = {name: _on_test(points, test, added, limit) for name, (points, test, added) in sides.items()}
        if None not in accuracies.values():
            gains[str(budget)] = (accuracies["sequence"] or 0.0) - (accuracies["pair"] or 0.0)
    found = {f"exit sequence: gain at {budget}": gain for budget, gain in gains.items()}
    if gains:
        found["exit sequence: best gain"] = max(gains.values())
    return found, gains


def _on_test(points: Sequence[OperatingPoint], test: Records, added: Sequence[float], limit: float) -> float | None:
    if all(point.mean_cost > limit for point in points):
        return None
    return evaluate(test, best_under(points, limit).rule, added).accuracy


def _added(stages: Sequence[Stage]) -> list[float]:
    return path_costs([stage.cost for stage in stages], range(len(stages)))
