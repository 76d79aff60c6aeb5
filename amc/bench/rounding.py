"""How fast this machine runs layers of a network at widths that do and do not fill its blocks of channels."""

from __future__ import annotations

from dataclasses import asdict
from statistics import mean
from typing import Any

from amc import Recipe, recipe_rounding
from amc.bench.table import MISSING, Table


def bench_rounding(recipe: Recipe) -> dict[str, Any]:
    """What `--round-to auto` measures for a recipe's network, and what it chooses."""
    found = asdict(recipe_rounding(recipe))
    return {"model": recipe.model.name, **found}


def rounding_text(rows: list[dict[str, Any]]) -> str:
    """A line a network: mean slowdown at each step, then the step chosen."""
    lines = []
    for row in rows:
        slowdown = (f"{mean(times):.2f}x" if times else MISSING for times in row["slowdown"].values())
        lines.append([row["model"], *slowdown, str(row["step"]), ", ".join(row["layers"])])
    return Table(["model", "multiples of 8", "of 16", "step", "layers"], lines).text
