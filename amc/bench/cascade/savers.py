"""Savers: do they rank as DeltaC says, do thresholds hold on new pictures, which networks save best, does ESN help?

`method-dynamic` 5.2 in short: TinySaver (arXiv 2403.17726) with the published rule beside sound ones, and its exit
sequence network beside the plain pair at equal mean cost.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from amc.bench.cascade.ground import Ground
from amc.bench.cascade.verdict import Figures, Goal
from amc.cascade import trained
from amc.cascade.certify import certify
from amc.cascade.complementarity import complementarity
from amc.cascade.part import Member, Part
from amc.cascade.points import Point, best_under, evaluate, sweep
from amc.cascade.policy import Policy
from amc.cascade.records import Records
from amc.cascade.scores import SCORERS
from amc.cascade.stage import Stage, path_costs
from amc.cascade.tinysaver import (
    Match,
    Saver,
    curve,
    ladder,
    policy_of,
    published_match,
    rank_savers,
    whole_grid_match,
)
from amc.release.archive import WEIGHTS, load_network, save_network
from amc.train.training import train

DROP, DELTA = 0.005, 0.1  # of the sound rules: points of accuracy, chance that they fail
TWINS, TWIN = "twins", 0.25  # folder of a run; share of the base's cost at which relatives are compared
GOALS = (
    Goal("the saver chosen on held-out pictures is within 2 % of the best one on test",
         "regret of the choice", most=0.02),
    Goal("the certified threshold loses at most half a point on test", "certified: drop on test", most=DROP),
    Goal("the exit sequence beats saver and base at equal mean cost, at one budget at least",
         "exit sequence: best gain", least=0.0),
)  # fmt: skip


def measure(ground: Ground) -> tuple[Figures, dict[str, Any]]:
    """The figures of one seed."""
    base = ground.family.dense
    savers = [member for member in ground.members if member.macs < base.macs]
    parts: list[Part] = [*savers, base]
    costs = [member.macs for member in [*savers, base]]
    fit, risk = ground.in_a_row(parts, "validation").parted(ground.seed)
    test, seen = ground.in_a_row(parts, "test"), ground.in_a_row(parts, "train")
    ranked = rank_savers(fit, costs, seen, top=None)
    figures, chosen = _ranking(ranked, rank_savers(test, costs, top=None))
    index = [member.name for member in savers].index(chosen)
    pair = [index, len(savers)]
    added = [costs[index], costs[-1]]
    figures |= _rules(fit.choose(pair), risk.choose(pair), test.choose(pair), added)
    more = {"savers": [asdict(saver) for saver in ranked], "chosen": chosen}
    told = _relatives(ground, savers, base)
    figures |= told[0]
    sequence, gains = _sequence(ground, savers[index], base)
    return figures | sequence, more | {"complementarity": told[1], "exit_sequence": gains}


def _ranking(ranked: Sequence[Saver], on_test: Sequence[Saver]) -> tuple[Figures, str]:
    """What choosing on held-out and on train pictures costs against knowing the test split."""
    truth = {saver.name: saver.delta for saver in on_test}
    by_train = min(ranked, key=lambda saver: saver.train_delta if saver.train_delta is not None else saver.delta)
    best, chosen = on_test[0].delta, ranked[0].name
    pairs = [(a, b) for i, a in enumerate(ranked) for b in ranked[i + 1 :]]
    agreeing = sum(truth[a.name] <= truth[b.name] for a, b in pairs)
    found = {
        "regret of the choice": truth[chosen] - best,
        "regret of the choice on train pictures": truth[by_train.name] - best,
        "relative cost of the best saver's pair": 1 + best,
        "pairs of savers in the right order": agreeing / max(1, len(pairs)),
    }
    return found, chosen


def _rules(fit: Records, risk: Records, test: Records, added: Sequence[float]) -> Figures:
    """Thresholds chosen by each rule, and what they do on test against the base."""
    confidence = SCORERS["confidence"](fit)
    policies = {
        "published": policy_of(published_match(fit), confidence),
        "half a point on held-out": policy_of(whole_grid_match(fit, DROP), confidence),
        "certified": _certified(fit, risk, added),
    }
    found: Figures = {}
    for name, policy in policies.items():
        point = evaluate(test, policy, added)
        found[f"{name}: relative cost"] = point.mean_cost / added[1]
        found[f"{name}: drop on test"] = float(test.accuracies[1]) - point.accuracy
    read_off = _read_off(test)
    found["read off the test curve, as published: relative cost"] = added[0] / added[1] + 1 - read_off.share
    return found


def _certified(fit: Records, risk: Records, added: Sequence[float]) -> Policy:
    """The boldest policy of the ladder known to lose at most `DROP`; the base alone where none is."""
    steps = ladder(fit, SCORERS["confidence"](fit))
    return certify(risk, added, steps[1:], "gap", DROP, DELTA).policy or steps[0]  # the first is the base itself


def _read_off(test: Records) -> Match:
    """The largest share at which the test split itself shows a drop of at most half a point."""
    swept = curve(test)
    lost = swept.base_right - swept.saver_right
    return swept.at(int((lost <= DROP).nonzero()[0]))


def _relatives(ground: Ground, savers: Sequence[Member], base: Member) -> tuple[Figures, dict[str, Any]]:
    """A pruned saver beside a network of the same shape that was trained from scratch: whose errors are the base's?"""
    pruned = min(savers, key=lambda member: abs(member.macs - TWIN * base.macs))
    twin = twin_of(ground, pruned)
    found: Figures = {}
    told: dict[str, Any] = {}
    for name, member in (("pruned", pruned), ("from scratch", twin)):
        pair = ground.in_a_row([member, base], "test")
        judged = complementarity(pair, ground.seed)
        told[name] = asdict(judged)
        # Not the published match: to lose nothing at all hangs on a few pictures, and costs follow them.
        match = whole_grid_match(ground.in_a_row([member, base], "validation").parted(ground.seed)[0], DROP)
        point = evaluate(pair, policy_of(match, SCORERS["confidence"](pair)), [member.macs, base.macs])
        found[f"{name}: accuracy"] = float(pair.accuracies[0])
        found[f"{name}: correlation of errors with the base's"] = judged.phi
        found[f"{name}: only it is right"] = judged.saver_only
        found[f"{name}: pair, relative cost"] = point.mean_cost / base.macs
        found[f"{name}: pair, accuracy"] = point.accuracy
    return found, told


def twin_of(ground: Ground, member: Member) -> Member:
    """A network of a member's shape trained from scratch, without the dense network; kept in the run."""
    run = ground.family.run
    dense, folder = run.job, run.folder / TWINS / member.name
    if not (folder / WEIGHTS).is_file():
        model = copy.deepcopy(member.model)
        torch.manual_seed(run.recipe.seed + 1)
        for module in model.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        schedule = run.recipe.finetune
        train(model, ground.family.splits, schedule, dense.compute, seed=run.recipe.seed + 1,
              title=f"train {member.name} from scratch", progress=ground.progress, task=dense.task)  # fmt: skip
        save_network(folder, model.eval(), dense.source, tuple(dense.data.input_shape), member.normalisation)
    model = dense.compute.place(load_network(folder))
    return Member(f"{member.name} from scratch", model, member.macs, dense.source, member.input_shape, "stranger")


def _sequence(ground: Ground, saver: Member, base: Member) -> tuple[Figures, dict[str, float]]:
    """The exit sequence over a pair against the pair itself, at each budget; thresholds are of the policy-fit half."""
    part = trained.sequence_of(ground.family, saver, base)
    sides = {}
    for name, parts in (("pair", [saver, base]), ("sequence", [part])):
        candidate = [stage for each in parts for stage in each.stages]
        added = _added(candidate)
        fit = ground.in_a_row(list(parts), "validation").parted(ground.seed)[0]
        scorer = SCORERS["confidence"](fit)
        sides[name] = (sweep(fit, added, scorer), ground.in_a_row(list(parts), "test"), added)
    gains: dict[str, float] = {}
    for budget, limit in zip(ground.budgets, ground.limits, strict=True):
        accuracies = {name: _on_test(points, test, added, limit) for name, (points, test, added) in sides.items()}
        if None not in accuracies.values():
            gains[str(budget)] = (accuracies["sequence"] or 0.0) - (accuracies["pair"] or 0.0)
    found = {f"exit sequence: gain at {budget}": gain for budget, gain in gains.items()}
    if gains:
        found["exit sequence: best gain"] = max(gains.values())
    return found, gains


def _on_test(points: Sequence[Point], test: Records, added: Sequence[float], limit: float) -> float | None:
    if all(point.mean_cost > limit for point in points):
        return None
    return evaluate(test, best_under(points, limit).policy, added).accuracy


def _added(stages: Sequence[Stage]) -> list[float]:
    return path_costs([stage.cost for stage in stages], range(len(stages)))
