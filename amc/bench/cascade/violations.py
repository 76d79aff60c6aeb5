"""How often each method of choosing a stop rule breaks its promise, and what a shift of the inputs does.

The records given are the population: calibration sets are drawn from them with replacement, so that the examples are
independent and the true risk of each stop rule is known exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import bdtr, xlogy
from torch import Tensor

from amc.cascade import (
    RISKS,
    DriftMonitor,
    Losses,
    Profile,
    Records,
    StopRule,
    Support,
    betting_p_value,
    binomial_lower,
    binomial_upper,
    confidence_of,
    conformal_risk_control,
    last_that_holds,
    learn_then_test,
    scores_of,
    simulate,
)

LEVEL = 0.05  # of the intervals of shares, two-sided
RESAMPLES = 400
WINDOWS = 10  # that the monitor sees, at most
Rule = Callable[[Tensor, Support, float, float], int | None]  # losses (m, n), support, epsilon, delta -> place
FLAGGED = f"{'flagged: once':>15}{'in time':>9}"
OURS, NAIVE = "learn-then-test, last passing", "naive"


def _p_values(losses: Tensor, support: Support, epsilon: float, delta: float) -> Iterator[float]:
    return (Losses(row, support).p_value(epsilon, delta) for row in losses.numpy())


def _first_failing(losses: Tensor, support: Support, epsilon: float, delta: float) -> int:
    """What released code does that returns the step at which the test stopped; nothing was shown of that one."""
    passed = learn_then_test(_p_values(losses, support, epsilon, delta), delta)
    return min(0 if passed is None else passed + 1, len(losses) - 1)


def naive(losses: Tensor, epsilon: float) -> int | None:
    """The most aggressive stop rule whose mean loss (m, n) is at most `epsilon`; None if there is none."""
    return last_that_holds(losses.double().mean(1) <= epsilon)


def hoeffding_bentkus_p_value(losses: Any, mean: float) -> float:
    """The same hypothesis by Hoeffding's and Bentkus's inequalities (arXiv 2110.01052): blind to a small variance."""
    count, seen = len(losses), float(losses.mean())
    if seen >= mean:
        return 1.0
    divergence = xlogy(seen, seen / mean) + xlogy(1 - seen, (1 - seen) / (1 - mean)) if mean < 1 else math.inf
    return min(1.0, math.exp(-count * divergence), math.e * float(bdtr(math.ceil(count * seen), count, mean)))


def _tested_by(p_value: Callable[[Any, float, float], float]) -> Rule:
    """Learn-then-test by a test of losses in [0, 1]."""

    def rule(losses: Tensor, support: Support, epsilon: float, delta: float) -> int | None:
        width = support.high - support.low
        units = ((losses - support.low) / width).numpy()
        return learn_then_test((p_value(row, (epsilon - support.low) / width, delta) for row in units), delta)

    return rule


RULES: dict[str, Rule] = {
    NAIVE: lambda losses, support, epsilon, delta: naive(losses, epsilon),
    "conformal risk control": lambda losses, support, epsilon, delta: conformal_risk_control(
        losses, epsilon, support.high
    ),
    "learn-then-test, first failing": _first_failing,
    OURS: lambda losses, support, epsilon, delta: learn_then_test(_p_values(losses, support, epsilon, delta), delta),
    "the same by betting": _tested_by(betting_p_value),
    "the same by Hoeffding-Bentkus": _tested_by(lambda row, mean, delta: hoeffding_bentkus_p_value(row, mean)),
}


@dataclass(frozen=True, eq=False)
class Rungs:
    """Every stop rule of a ladder on every example of a population.

    Attributes:
        losses: risk -> (m, n) float64.
        supports: risk -> what a loss can be.
        stops: (m, n) int64.
        confidences: (m, n) float64.
        costs: (m,) mean costs.
    """

    losses: dict[str, Tensor]
    supports: dict[str, Support]
    stops: Tensor
    confidences: Tensor
    costs: Tensor


def rungs(records: Records, added: Sequence[float], rules: Sequence[StopRule], risks: Iterable[str]) -> Rungs:
    """Each stop rule planned on the records; the reference is the last stage."""
    known = {scorer: scores_of(records, scorer) for scorer in dict.fromkeys(rule.scorer for rule in rules)}
    walks = [simulate(records, rule, added, known[rule.scorer]) for rule in rules]
    sure = torch.stack([confidence_of(logits) for logits in records.logits])
    losses = {risk: [RISKS[risk].losses(records, outcomes, added) for outcomes in walks] for risk in risks}
    return Rungs(
        {risk: torch.from_numpy(np.stack([loss.values for loss in each])) for risk, each in losses.items()},
        {risk: each[0].support for risk, each in losses.items()},
        torch.stack([outcomes.stop for outcomes in walks]),
        torch.stack([sure.gather(0, outcomes.answered[None])[0] for outcomes in walks]),
        torch.tensor([outcomes.mean_cost for outcomes in walks], dtype=torch.float64),
    )


def default_epsilons(records: Records) -> dict[str, float]:
    """A point lost, 3 % answered otherwise, an error a point above the last stage's."""
    return {"gap": 0.01, "consistency": 0.03, "accuracy": 1 - float(records.accuracies[-1]) + 0.01}


def risk_study(
    records: Records,
    added: Sequence[float],
    rules: Sequence[StopRule],
    *,
    epsilons: Mapping[str, float] | None = None,
    delta: float = 0.1,
    count: int = 1000,
    resamples: int = RESAMPLES,
    shifted: Mapping[str, Records] | None = None,
    window: int = 500,
    seed: int = 0,
) -> dict[str, Any]:
    """Choose a stop rule on each of many calibration sets by each of `RULES`, and look at its true risk.

    Args:
        records: the population; no stop rule may have been fitted to it.
        added: S costs, what visiting each stage adds.
        rules: from the most careful to the most aggressive (`amc.cascade.certificates.risk_control.ladder`).
        epsilons: risk -> the largest allowed; None is `default_epsilons`.
        count: examples in a calibration set.
        shifted: what is done to the inputs -> records of the same stages on such inputs (`amc.bench.cascade.shift`).
        window: inputs between the verdicts of the monitor, one for each calibration set's own choice.

    Returns:
        JSON-able; `risk_text` tells it.
    """
    draw = torch.Generator().manual_seed(seed)
    chosen = [torch.randint(0, len(records), (count,), generator=draw) for _ in range(resamples)]
    epsilons = epsilons or default_epsilons(records)
    clean = rungs(records, added, rules, epsilons)
    shifts = {name: rungs(each, added, rules, epsilons) for name, each in (shifted or {}).items()}
    found: dict[str, Any] = {}
    for risk, epsilon in epsilons.items():
        losses, support, risks = clean.losses[risk], clean.supports[risk], clean.losses[risk].mean(1)
        picks: dict[str, list[int | None]] = {name: [] for name in RULES}
        for index in chosen:
            drawn = losses[:, index]
            for name, rule in RULES.items():
                picks[name].append(rule(drawn, support, epsilon, delta))
        certified = [
            (place, _monitor(clean, rules, place, index, window))
            for place, index in zip(picks[OURS], chosen, strict=True)
            if place is not None
        ]
        found[risk] = {
            "epsilon": epsilon,
            "boldest": float(risks[-1]),
            "rules": {name: _kept(places, risks, clean.costs, epsilon) for name, places in picks.items()},
            "shifts": {
                name: _under(each, each.losses[risk].mean(1), epsilon, certified, resamples, draw)
                for name, each in {"none": clean, **shifts}.items()
            },
        }
    return {
        "examples": len(records),
        "calibration": count,
        "resamples": resamples,
        "policies": len(rules),
        "delta": delta,
        "window": window,
        "windows": WINDOWS,
        "risks": found,
    }


def _kept(places: Sequence[int | None], risks: Tensor, costs: Tensor, epsilon: float) -> dict[str, Any]:
    """How often the true risk of what was chosen is above epsilon; where nothing is chosen all is run, at no risk."""
    certain = [place for place in places if place is not None]
    whole = float(costs.max())
    paid = [whole if place is None else float(costs[place]) for place in places]
    return {
        "broken": _share(int((risks[certain] > epsilon).sum()), len(places)),
        "mean_risk": float(risks[certain].mean()) if certain else None,
        "relative_cost": float(np.mean(paid)) / whole,
        "nothing_chosen": 1 - len(certain) / len(places),
    }


def _under(
    shift: Rungs,
    risks: Tensor,
    epsilon: float,
    certified: Sequence[tuple[int, DriftMonitor]],
    resamples: int,
    draw: torch.Generator,
) -> dict[str, Any]:
    """What becomes of certified stop rules on shifted inputs, and whether each one's monitor sees it in time."""
    broken, at_once, in_time = [], [], []
    for place, monitor in certified:
        monitor.reset()
        served = torch.randint(0, shift.stops.shape[1], (monitor.lasting * monitor.window,), generator=draw)
        verdicts = monitor.observe(shift.stops[place, served], shift.confidences[place, served])
        broken.append(float(risks[place]) > epsilon)
        at_once.append(verdicts[0].drifted)
        in_time.append(any(verdict.drifted for verdict in verdicts))
    total = len(certified)
    return {
        "certified": total,
        "mean_risk": float(risks[[place for place, _ in certified]].mean()) if certified else None,
        "broken": _share(sum(broken), resamples),
        "flagged_at_once": _share(sum(at_once), total),
        "flagged": _share(sum(in_time), total),
        "broken_unflagged": _share(sum(b and not f for b, f in zip(broken, in_time, strict=True)), resamples),
    }


def _monitor(clean: Rungs, rules: Sequence[StopRule], place: int, index: Tensor, window: int) -> DriftMonitor:
    """Of a stop rule on its own calibration set."""
    stages = len(rules[place].thresholds) + 1
    profile = Profile.counted(clean.stops[place, index], clean.confidences[place, index], stages)
    return DriftMonitor(
        rules[place], profile, profile, window, WINDOWS
    )  # until flagged: no safe plan's profile is used


def _share(hits: int, total: int) -> dict[str, float | None]:
    """With its exact interval; no value of nothing."""
    if total == 0:
        return {"share": None, "low": 0.0, "high": 1.0}
    low, high = binomial_lower(hits, total, LEVEL / 2), binomial_upper(hits, total, LEVEL / 2)
    return {"share": hits / total, "low": low, "high": high}


def risk_text(found: Mapping[str, Any]) -> str:
    """A table a risk, for people."""
    lines = [
        f"{found['resamples']} calibration sets of {found['calibration']} from {found['examples']} examples, "
        f"{found['policies']} stop rules, delta {found['delta']:g}"
    ]
    for risk, reported in found["risks"].items():
        lines += [
            "",
            f"{risk}: at most {reported['epsilon']:.4f}; the most aggressive stop rule has {reported['boldest']:.4f}",
        ]
        lines.append(f"  {'rule':<32}{'P(risk > epsilon)':>18}{'95 %':>16}{'mean risk':>11}{'cost':>8}{'nothing':>9}")
        for name, row in reported["rules"].items():
            lines.append(
                f"  {name:<32}{_interval(row['broken'], 18)}{_number(row['mean_risk']):>11}"
                f"{row['relative_cost']:>8.1%}{row['nothing_chosen']:>9.1%}"
            )
        lines.append(f"  {'shift of inputs':<32}{'P(risk > epsilon)':>18}{'95 %':>16}{'mean risk':>11}{FLAGGED}")
        for name, row in reported["shifts"].items():
            flagged = _number(row["flagged_at_once"]["share"]), _number(row["flagged"]["share"])
            broken = f"{_interval(row['broken'], 18)}{_number(row['mean_risk']):>11}"
            lines.append(f"  {name:<32}{broken}{flagged[0]:>15}{flagged[1]:>9}")
    lines += [
        "",
        "Cost: mean, of running every stage. Nothing: no stop rule passed, so every stage is run.",
        f"Shifts: of the stop rules that {OURS} chose. Flagged: by the monitor, of those chosen,",
        f"after the first {found['window']} inputs, and in the first {found['windows']} times as many.",
    ]
    return "\n".join(lines)


def _interval(share: Mapping[str, float | None], width: int) -> str:
    ends = f"{_number(share['low'])}-{_number(share['high'])}"
    return f"{_number(share['share']):>{width}}{ends:>16}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
