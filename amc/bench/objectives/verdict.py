"""What the labels of a comparison say: for each cap how far chance goes, for each kind of label how well it orders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
from amc.study.objective import denoised

ENOUGH = 0.7  # of Kendall's tau
LOSS, ACCURACY, DISTANCE, DENOISED = "loss", "accuracy", "distance", "denoised"
WIDE = 0.5  # of Kendall's 95 % interval
RULE = (
    "At the caps where the policy matters: of the labels whose Kendall with the "
    f"long label is at least {ENOUGH} at each of these, the one of the fewest seconds; if there is none, likewise of "
    "those whose mean Kendall is below the best one's by no more than a standard error of the difference. Of one "
    f"kind's metrics, the best. No winner of fewer than {ENOUGH_FOR_TOP} policies, of a spread below {MATTERS:g} times "
    f"the seeds' noise, with an interval of Kendall wider than {WIDE:g}, or where all labels are as near."
)

Row = dict[str, Any]  # of a policy: "origin", "long": records by seed, "cheap": records by kind
Finding = dict[str, Any]


def found_for_cap(name: str, rows: list[Row]) -> Finding:
    """Spread, noise, and the fidelity of every kind and metric.

    Returns:
        `truth`: which long label comes first, "loss" unless the task gives none; `spread`: of either long label, see
        `Spread`; `labels`: one entry a kind and metric, with median seconds a label and, for the first long label and
        for accuracy, Kendall and top-5 regret (None of too few
        policies), and `kendall_good`: among the policies that are good by cheap labels;
        `rows`: all that was measured.
    """
    truth = LOSS if any(record["loss"] for row in rows for record in row["long"]) else ACCURACY
    draws, good = drawn(len(rows)), np.array([row["origin"] == GOOD for row in rows])
    first, accuracy = long_labels(rows, truth), long_labels(rows, ACCURACY)
    labels = []
    judge_top = len(rows) >= ENOUGH_FOR_TOP
    for kind in rows[0]["cheap"]:
        for metric, cheap in cheap_labels(rows, kind).items():
            labels.append({
                "kind": kind,
                "metric": metric,
                "seconds": median(row["cheap"][kind]["seconds"] for row in rows),
                "kendall": asdict(estimated_kendall(cheap, first, draws)),
                "regret": asdict(estimated_regret(cheap, first, draws)) if judge_top else None,
                "kendall_accuracy": asdict(estimated_kendall(cheap, accuracy, draws)),
                "regret_accuracy": asdict(estimated_regret(cheap, accuracy, draws)) if judge_top else None,
                "kendall_good": kendall(cheap[good], first[good]) if good.sum() > 1 else None,
            })  # fmt: skip
    return {
        "cap": name,
        "truth": truth,
        "long_seconds": median(record["seconds"] for row in rows for record in row["long"]),
        "spread": {of: asdict(spread_of([_signed(row["long"], of) for row in rows])) for of in {truth, ACCURACY}},
        "good_std": float(first[good].std(ddof=1)) if good.sum() > 1 else None,
        "labels": labels,
        "rows": rows,
    }


def long_labels(rows: list[Row], metric: str) -> Reals:
    """(n,) the mean over the seeds that there are; higher is better."""
    return np.array([np.mean(_signed(row["long"], metric)) for row in rows])


def cheap_labels(rows: list[Row], kind: str) -> dict[str, Reals]:
    """Metric -> (n,) labels of a kind, higher is better; metrics that the task does not give are left out."""
    records = [row["cheap"][kind] for row in rows]
    found = {ACCURACY: np.array(_signed(records, ACCURACY))}
    if any(record["loss"] for record in records):
        found[LOSS] = np.array(_signed(records, LOSS))
        found[DENOISED] = denoised(found[ACCURACY], -found[LOSS])
    if all(record["distance"] is not None for record in records):
        found[DISTANCE] = np.array(_signed(records, DISTANCE))
    return found


def verdict(caps: Sequence[Finding]) -> dict[str, Any]:
    """The label that wins a second, by `RULE`.

    Returns:
        `kind`, `metric`, `seconds`, `kendall` (mean over `caps`, the names of those that count), `enough`: whether it
        has `ENOUGH` at each of them; all None, and `reason` a text, where no winner can be told; `rule`.
    """
    nobody = dict.fromkeys(("kind", "metric", "seconds", "kendall", "enough"))
    counted = [cap for cap in caps if _ratio(cap) >= MATTERS]
    told: dict[str, Any] = {**nobody, "reason": None, "caps": [cap["cap"] for cap in counted], "rule": RULE}
    fewest = min(len(cap["rows"]) for cap in caps)
    if fewest < ENOUGH_FOR_TOP:
        return {**told, "reason": f"{fewest} policies a cap are too few; give --policies {ENOUGH_FOR_TOP} or more"}
    if not counted:
        return {**told, "reason": _why_nothing_counts(caps)}
    names = [(label["kind"], label["metric"]) for label in counted[0]["labels"]]
    each: Reals = np.array(
        [[label["kendall"]["value"] for label in cap["labels"]] for cap in counted]
    )  # (caps, labels)
    seconds = np.array([[label["seconds"] for label in cap["labels"]] for cap in counted]).mean(0)
    enough = each.min(0) >= ENOUGH
    allowed = enough if enough.any() else _near_best(counted, each.mean(0), names)
    if allowed.all() and not enough.any():
        return {**told, "reason": "the labels' Kendalls differ by no more than a standard error; give more --policies"}
    cheapest = allowed & (seconds <= np.where(allowed, seconds, np.inf).min())
    place = int(np.argmax(np.where(cheapest, each.mean(0), -np.inf)))
    for cap in counted:
        tau = cap["labels"][place]["kendall"]
        if tau["high"] - tau["low"] > WIDE:
            wide = f"the interval of its Kendall at {cap['cap']} is wide, {tau['low']:.2f} to {tau['high']:.2f}"
            return {**told, "reason": f"{' '.join(names[place])} comes first, but {wide}; give more --policies"}
    return {
        **told,
        "kind": names[place][0],
        "metric": names[place][1],
        "seconds": float(seconds[place]),
        "kendall": float(each[:, place].mean()),
        "enough": bool(enough[place]),
    }


def _ratio(cap: Finding) -> float:
    """Of the spread of a cap's long labels to their noise; 0 where noise is unknown."""
    ratio = cap["spread"][cap["truth"]]["ratio"]
    return float(ratio["value"]) if ratio else 0.0


def _why_nothing_counts(caps: Sequence[Finding]) -> str:
    if all(cap["spread"][cap["truth"]]["ratio"] is None for cap in caps):
        return "no policy was fine-tuned twice, so that the spread cannot be held against chance; give --repeats 2"
    most = max(map(_ratio, caps))
    return f"the long labels' spread is {most:.1f} times their seed noise at most, and must be {MATTERS:g} times"


def _near_best(caps: Sequence[Finding], means: Reals, names: list[tuple[str, str]]) -> NDArray[np.bool_]:
    """(labels,) whether each is below the best by no more than a standard error of the difference, by bootstrap."""
    drawn_means = np.mean([_drawn(cap, names) for cap in caps], axis=0)  # (labels, draws)
    best = int(means.argmax())
    errors = (drawn_means[best] - drawn_means).std(axis=1)
    near: NDArray[np.bool_] = means >= means[best] - errors
    return near


def _drawn(cap: Finding, names: list[tuple[str, str]]) -> Reals:
    """Kendall of each label of a cap over the draws of policies, (labels, draws)."""
    rows, draws = cap["rows"], drawn(len(cap["rows"]))
    long = long_labels(rows, cap["truth"])
    return np.array([drawn_kendall(cheap_labels(rows, kind)[metric], long, draws) for kind, metric in names])


def _signed(records: Sequence[dict[str, Any]], metric: str) -> list[float]:
    """Values of which higher is better."""
    return [record[metric] if metric == ACCURACY else -record[metric] for record in records]
