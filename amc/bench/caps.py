"""The caps of a benchmark: those asked for, and as limits that some policy meets."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from amc import Budget, BudgetUnreachable, Job, Recipe, format_cost, load_recipe, parse_budgets, recipes_folder
from amc.bench.search_methods.bench_recipe import cap_name, load_bench_recipe
from amc_search import Cap, CapUnreachable
from amc_search.repair import check_reachable

CAPS = "15%,40%"

Caps = dict[str, tuple[Budget, ...]]


def recipe_and_caps(name: str, caps: str | None, overrides: Mapping[str, object]) -> tuple[Recipe, Caps]:
    """The recipe and its caps by name; default: the caps of the bench recipe, or `CAPS`.

    Args:
        name: a recipe or a bench recipe, built in or a TOML file; an ordinary one comes first.
        caps: separated by commas, those that all hold joined by `+`: `15%,20%+30%params`.
        overrides: recipe values by dotted key.

    Raises:
        UsageError: no such recipe, or one that is malformed, or a cap that is none.
    """
    wanted = [cap.split("+") for cap in (caps or CAPS).split(",")]
    if _is_bench(name):
        bench = load_bench_recipe(name)
        recipe, wanted = bench.compress_recipe(overrides), wanted if caps else bench.caps
    else:
        recipe = load_recipe(name, overrides)
    return recipe, {cap_name(cap): parse_budgets(cap) for cap in wanted}


def _is_bench(name: str) -> bool:
    if name == Path(name).name and not name.endswith(".toml"):
        folder = recipes_folder()
        return not (folder / f"{name}.toml").is_file() and (folder / "bench" / f"{name}.toml").is_file()
    try:
        return "recipe" in tomllib.loads(Path(name).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return False  # the ordinary reader says what is wrong


def reachable_caps(job: Job, budgets: Sequence[Budget]) -> tuple[Cap, ...]:
    """The caps in absolute units. Raises `BudgetUnreachable` where no policy meets them all."""
    caps = job.trace.caps(budgets)
    try:
        check_reachable(job.space, caps)
    except CapUnreachable as error:
        limit, smallest = (format_cost(error.unit, cost) for cost in (error.limit, error.smallest))  # type: ignore[arg-type]
        raise BudgetUnreachable(
            f"a budget must be reachable, but {limit} is below the smallest policy's {smallest}; raise the budget"
        ) from None
    return caps
