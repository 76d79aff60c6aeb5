"""`amc bench ascent`: what the parts of the ascent are worth on a run's own predictor, where nothing was measured near.

A retarget far from the caps that were searched has no good policy to start from; so none is given here. What an ascent
maximises, the lower confidence bound, is how good it is: the predictor is the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

from amc import Progress, Run, parse_budgets
from amc.bench.caps import reachable_caps
from amc.bench.table import Table
from amc_search import ascend

KAPPA = 1.0  # of the lower confidence bound, as the product's ascent has it
WITHOUT = {  # name -> whether there is a barrier, and whether there are moves of integers
    "the whole ascent": (True, True),
    "no barrier": (False, True),
    "no moves": (True, False),
    "neither": (False, False),
}


def bench_ascent(run: Run, budgets: Sequence[str], seeds: int, progress: Progress) -> dict[str, Any]:
    """Ascend under each budget with each part left out; bounds and seconds are means over the seeds.

    Raises:
        BudgetUnreachable: no legal policy fits.
        UsageError: a budget is malformed.
    """
    space, predictor = run.job.space, run.predictor
    wanted = {text: reachable_caps(run.job, parse_budgets([text])) for text in budgets}
    stage = progress.stage("ascents", len(wanted) * len(WITHOUT) * seeds)
    rows = []
    for text, caps in wanted.items():
        for name, (barrier, polish) in WITHOUT.items():
            bounds, start = [], perf_counter()
            for seed in range(seeds):
                found = ascend(predictor, space, caps, kappa=KAPPA, seed=seed, barrier=barrier, polish=polish)
                bounds.append(float(found.mean[0] - KAPPA * found.std[0]))
                stage.advance(1, f"{text}, {name}")
            seconds = (perf_counter() - start) / seeds
            rows.append({"budget": text, "ascent": name, "bound": sum(bounds) / seeds, "bounds": bounds, "s": seconds})
    return {"run": str(run.folder), "groups": len(space), "seeds": seeds, "rows": rows}


def ascent_text(found: dict[str, Any]) -> str:
    """A line a budget: the bound of each ascent in percent; then the seconds."""
    budgets = list(dict.fromkeys(row["budget"] for row in found["rows"]))
    cells = {(row["budget"], row["ascent"]): row for row in found["rows"]}
    rows = [
        [budget, *(f"{cells[budget, name]['bound'] * 100:.2f}%" for name in WITHOUT)] for budget in budgets
    ]  # fmt: skip
    seconds = (sum(cells[budget, name]["s"] for budget in budgets) / len(budgets) for name in WITHOUT)
    title = (
        f"{found['groups']} groups, no measured policy to start from; lower bound of the accuracy, mean of "
        f"{found['seeds']} seeds"
    )
    return Table(["budget", *WITHOUT], [*rows, ["seconds", *(f"{value:.2f}" for value in seconds)]], title).text
