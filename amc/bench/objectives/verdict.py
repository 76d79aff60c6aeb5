"""What a comparison says: for each cap how far chance goes, for each kind of trial how well it orders policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amc import smoothed_objective
from amc.bench.objectives.fidelity import (
    ENOUGH_FOR_TOP,
    MATTERS,
    Reals,
    drawn,
    drawn_kendall,
    estimated_kendall,
    estimated_regret,
    kendall,
    spread_of,
)
from amc.bench.objectives.policies import GOOD

ENOUGH = 0.7  # of Kendall's tau
LOSS, ACCURACY, SMOOTHED = "loss", "accuracy", "smoothed"
WIDE = 0.5  # of Kendall's 95 % interval
RULE = (
    "At the caps where the policy matters: of the objectives whose Kendall with the "
    f"long value is at least {ENOUGH} at each of these, the one of the fewest seconds; if there is none, likewise of "
    "those whose mean Kendall is below the best one's by no more than a standard error of the difference. Of one "
    f"kind's metrics, the best. No winner of fewer than {ENOUGH_FOR_TOP} policies, of a spread below {MATTERS:g} times "
    f"the seeds' noise, with an interval of Kendall wider than {WIDE:g}, or where all objectives are as near."
)

Row = dict[str, Any]  # of a policy: "origin", "long": records by seed, "trials": records by kind
Finding = dict[str, Any]


def found_for_cap(name: str, rows: list[Row]) -> Finding:
    """Spread, noise, and the fidelity of every kind and metric.

    Returns:
        `truth`: which long value comes first, "loss" unless the task gives none; `spread`: of either long value, see
        `Spread`; `objectives`: one entry a kind and metric, with median seconds a trial and, for the first long
        value and for accuracy, Kendall and top-5 regret (None of too few policies), and `kendall_good`: among the
        policies that were chosen as good;
        `rows`: all that was measured.
    """
    truth = LOSS if any(record["loss"] for row in rows for record in row["long"]) else ACCURACY
    draws, good = drawn(len(rows)), np.array([row["origin"] == GOOD for row in rows])
    first, accuracy = long_values(rows, truth), long_values(rows, ACCURACY)
    objectives = []
    judge_top = len(rows) >= ENOUGH_FOR_TOP
    for kind in rows[0]["trials"]:
        for metric, values in trial_values(rows, kind).items():
            objectives.append({
                "kind": kind,
                "metric": metric,
                "seconds": median(row["trials"][kind]["seconds"] for row in rows),
                "kendall": asdict(estimated_kendall(values, first, draws)),
                "regret": asdict(estimated_regret(values, first, draws)) if judge_top else None,
                "kendall_accuracy": asdict(estimated_kendall(values, accuracy, draws)),
                "regret_accuracy": asdict(estimated_regret(values, accuracy, draws)) if judge_top else None,
                "kendall_good": kendall(values[good], first[good]) if good.sum() > 1 else None,
            })  # fmt: skip
    return {
        "cap": name,
        "truth": truth,
        "long_seconds": median(record["seconds"] for row in rows for record in row["long"]),
        "spread": {of: asdict(spread_of([_signed(row["long"], of) for row in rows])) for of in {truth, ACCURACY}},
        "good_std": float(first[good].std(ddof=1)) if good.sum() > 1 else None,
        "objectives": objectives,
        "rows": rows,
    }


def long_values(rows: list[Row], metric: str) -> Reals:
    """(n,) the mean over the seeds that there are; higher is better."""
    return np.array([np.mean(_signed(row["long"], metric)) for row in rows])


def trial_values(rows: list[Row], kind: str) -> dict[str, Reals]:
    """Metric -> (n,) objective values of a kind, higher is better; metrics that the task does not give are left out."""
    records = [row["trials"][kind] for row in rows]
    found = {ACCURACY: np.array(_signed(records, ACCURACY))}
    if any(record["loss"] for record in records):
        found[LOSS] = np.array(_signed(records, LOSS))
        found[SMOOTHED] = smoothed_objective(found[ACCURACY], -found[LOSS])
    return found


def verdict(caps: Sequence[Finding]) -> dict[str, Any]:
    """The objective that wins a second, by `RULE`.

    Returns:
        `kind`, `metric`, `seconds`, `kendall` (mean over `caps`, the names of those that count), `enough`: whether it
        has `ENOUGH` at each of them; all None, and `reason` a text, where there is no winner; `rule`.
    """
    nobody = dict.fromkeys(("kind", "metric", "seconds", "kendall", "enough"))
    counted = [cap for cap in caps if _ratio(cap) >= MATTERS]
    found: dict[str, Any] = {**nobody, "reason": None, "caps": [cap["cap"] for cap in counted], "rule": RULE}
    fewest = min(len(cap["rows"]) for cap in caps)
    if fewest < ENOUGH_FOR_TOP:
        return {**found, "reason": f"{fewest} policies a cap are too few; give --policies {ENOUGH_FOR_TOP} or more"}
    if not counted:
        return {**found, "reason": _why_nothing_counts(caps)}
    names = [(one["kind"], one["metric"]) for one in counted[0]["objectives"]]
    each: Reals = np.array(
        [[one["kendall"]["value"] for one in cap["objectives"]] for cap in counted]
    )  # (caps, objectives)
    seconds = np.array([[one["seconds"] for one in cap["objectives"]] for cap in counted]).mean(0)
    enough = each.min(0) >= ENOUGH
    allowed = enough if enough.any() else _near_best(counted, each.mean(0), names)
    if allowed.all() and not enough.any():
        return {
            **found,
            "reason": "they differ by no more than a standard error of Kendall; give more --policies",
        }
    cheapest = allowed & (seconds <= np.where(allowed, seconds, np.inf).min())
    place = int(np.argmax(np.where(cheapest, each.mean(0), -np.inf)))
    for cap in counted:
        tau = cap["objectives"][place]["kendall"]
        if tau["high"] - tau["low"] > WIDE:
            wide = f"the interval of its Kendall at {cap['cap']} is wide, {tau['low']:.2f} to {tau['high']:.2f}"
            return {**found, "reason": f"{' '.join(names[place])} comes first, but {wide}; give more --policies"}
    return {
        **found,
        "kind": names[place][0],
        "metric": names[place][1],
        "seconds": float(seconds[place]),
        "kendall": float(each[:, place].mean()),
        "enough": bool(enough[place]),
    }


def _ratio(cap: Finding) -> float:
    """Of the spread of a cap's long values to their noise; 0 where noise is unknown."""
    ratio = cap["spread"][cap["truth"]]["ratio"]
    return float(ratio["value"]) if ratio else 0.0


def _why_nothing_counts(caps: Sequence[Finding]) -> str:
    if all(cap["spread"][cap["truth"]]["ratio"] is None for cap in caps):
        return "no policy was fine-tuned twice, so that the spread cannot be held against chance; give --repeats 2"
    most = max(map(_ratio, caps))
    return f"the long values' spread is {most:.1f} times their seed noise at most, and must be {MATTERS:g} times"


def _near_best(caps: Sequence[Finding], means: Reals, names: list[tuple[str, str]]) -> NDArray[np.bool_]:
    """(objectives,) whether each is below the best by no more than a standard error of the difference, by bootstrap."""
    drawn_means = np.mean([_drawn(cap, names) for cap in caps], axis=0)  # (objectives, draws)
    best = int(means.argmax())
    errors = (drawn_means[best] - drawn_means).std(axis=1)
    near: NDArray[np.bool_] = means >= means[best] - errors
    return near


def _drawn(cap: Finding, names: list[tuple[str, str]]) -> Reals:
    """Kendall of each objective of a cap over the draws of policies, (objectives, draws)."""
    rows, draws = cap["rows"], drawn(len(cap["rows"]))
    long = long_values(rows, cap["truth"])
    return np.array([drawn_kendall(trial_values(rows, kind)[metric], long, draws) for kind, metric in names])


def _signed(records: Sequence[dict[str, Any]], metric: str) -> list[float]:
    """Values of which higher is better."""
    return [record[metric] if metric == ACCURACY else -record[metric] for record in records]
