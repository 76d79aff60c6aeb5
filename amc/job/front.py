"""`amc front`: the best policies over a range of caps, from what a run has measured. No new measurement.

The caps stand at equal distances between the smallest policy's cost and the dense network's (a plain scale, not a
logarithmic one: what is of use lies in the upper half, and a logarithmic scale would spend most points on networks too
small to be of use).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from amc.cost.budget import Budget, Unit, format_cost
from amc.job.run import Run
from amc.release.page import render_page
from amc.release.plots import front_plot
from amc.release.report import marks_of
from amc.study.pareto import non_dominated
from amc.system.files import write_text
from amc_search import uniform

FORMAT = "amc-front/1"
PAGE = "front.html"
COVERAGE = 0.9


@dataclass(frozen=True)
class Point:
    """The best policy by prediction under one cap; its accuracy is that before fine-tuning.

    Attributes:
        cap: the cap it was looked for under.
        cost: its exact cost, at most the cap, in the same unit.
        mean: predicted accuracy; std: its standard deviation.
        low: lower end of the 90 % interval; high: its upper end.
        policy: group name -> channels kept.
    """

    cap: float
    cost: float
    mean: float
    std: float
    low: float
    high: float
    policy: dict[str, int]


def front(folder: Path, points: int) -> dict[str, Any]:
    """The best policies by a finished run's predictor under `points` caps on the unit of its first budget.

    Writes `front.html` into the run.

    Returns:
        {format, run, unit, dense_cost, smallest_cost, points, measured, plot}, JSON-able. `points` are as `Point`, by
        rising cost and rising mean, none dominated: a cap at which nothing beats a smaller one has no point.
        `measured` is the front of the trials, each {cost, accuracy, policy}.

    Raises:
        RunError: no finished run in `folder`.
        StorageError: the page cannot be written.
    """
    run = Run.open(folder)
    space, unit = run.job.space, run.recipe.budgets[0].unit
    smallest, dense = (_costs(run, unit, counts[None])[0] for counts in (space.low, space.high))
    limits = sorted({min(floor(dense), ceil(limit)) for limit in np.linspace(smallest, dense, points)})
    kept = undominated([_best_at(run, unit, limit) for limit in limits])
    trials = [trial for trial in run.study.trials if not trial.stopped]  # those have no accuracy to compare
    policies = np.array([trial.policy for trial in trials], dtype=np.int64).reshape(-1, len(space))
    costs, accuracies = _costs(run, unit, policies), [trial.accuracy for trial in trials]
    measured = [
        {"cost": costs[i], "accuracy": accuracies[i], "policy": _named(run, policies[i].tolist())}
        for i in non_dominated(costs, accuracies)
    ]
    found = {
        "format": FORMAT,
        "run": str(folder),
        "unit": unit,
        "dense_cost": dense,
        "smallest_cost": smallest,
        "points": [asdict(point) for point in kept],
        "measured": measured,
        "plot": str(run.folder / PAGE),
    }
    write_text(run.folder / PAGE, _page(run, found, costs, accuracies))
    return found


def undominated(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in cost and mean, by rising cost; the same whatever the order they come in."""
    ordered = sorted(points, key=lambda point: (point.cost, -point.mean, point.cap, tuple(point.policy.items())))
    return [ordered[i] for i in non_dominated([p.cost for p in ordered], [p.mean for p in ordered])]


def _best_at(run: Run, unit: Unit, limit: float) -> Point:
    policy = run.retarget(Budget(unit, limit), candidates=0).policy
    low, high = run.predictor.interval(run.job.space.fractions(policy.array[None]), COVERAGE)
    ends, cost = (float(low[0].detach()), float(high[0].detach())), _costs(run, unit, policy.array[None])[0]
    return Point(float(limit), cost, min(max(policy.mean, 0.0), 1.0), policy.std, *ends, policy.kept)


def _costs(run: Run, unit: Unit, policies: np.ndarray[Any, np.dtype[np.int64]]) -> list[float]:
    """(b, d) -> b exact costs."""
    costs: list[float] = run.job.trace.cost(unit)(torch.from_numpy(policies).double()).tolist()
    return costs


def _named(run: Run, counts: list[int]) -> dict[str, int]:
    return dict(zip(run.job.space.names, counts, strict=True))


def front_text(found: dict[str, Any]) -> str:
    """The table for people."""
    rows = _table(found)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(
        [
            *lines,
            "",
            "Predicted: accuracy on the validation split before fine-tuning, with its 90% interval, a guess where no",
            "trial is near. Measured: the best trial at that cost or below. Caps at which nothing beats a smaller",
            "one are left out.",
            f"Plot: {found['plot']}",
        ]
    )


def _table(found: dict[str, Any]) -> list[list[str]]:
    """Heads, then one row a point."""
    rows = [["cap", "cost", "of dense", "predicted", "90% interval", "measured"]]
    for point in found["points"]:
        best = max((m["accuracy"] for m in found["measured"] if m["cost"] <= point["cap"]), default=None)
        rows.append(
            [
                format_cost(found["unit"], point["cap"]),
                format_cost(found["unit"], point["cost"]),
                f"{point['cost'] / found['dense_cost']:.1%}",
                f"{point['mean']:.2%}",
                f"{point['low']:.2%} to {point['high']:.2%}",
                "-" if best is None else f"{best:.2%}",
            ]
        )
    return rows


def _page(run: Run, found: dict[str, Any], costs: list[float], accuracies: list[float]) -> str:
    unit, space, metrics = found["unit"], run.job.space, run.metrics
    plain = uniform(space, run.job.caps)
    released = np.array([run.policy[name] for name in space.names], dtype=np.int64)
    marked = _costs(run, unit, np.stack([released, plain]))
    marks = marks_of(metrics, found["dense_cost"], *marked)
    values = {
        "title": f"{metrics['model']}: best policies over a range of caps",
        "subtitle": f"Recipe {metrics['recipe']}, data {metrics['data']}; {len(costs)} trials measured to the end.",
        "caption": "Predicted accuracy before fine-tuning of the best policy under each cap, with its 90% interval, "
        "and all measured trials. The interval is a guide: the predictor chose these policies, and where no trial is "
        "near it guesses.",
        "table": _table(found),
        "folder": str(run.folder),
    }
    plot = front_plot(unit, costs, accuracies, [True] * len(costs), marks, predicted=found["points"])
    return render_page("front.html.j2", {"front": plot}, values)
