"""The outcome of a comparison as tables and lines, for a file and for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amc.bench.table import MISSING, Table


def tables(results: dict[str, Any]) -> list[Table]:
    """Those that there are figures for."""
    made = [_searches(results), _finals(results), _front(results), _orders(results)]
    return [table for table in made if table.rows]


def headline(results: dict[str, Any]) -> list[str]:
    """What was compared, on what, and how far it has come."""
    task, done = results["task"], results["progress"]
    machine, seconds = results["machine"], results["seconds"]
    meaning = "exp(-calibrated loss)" if results["objective"] == "likelihood" else "accuracy"
    lines = [
        f"{results['name']}: {task['model']} on {task['data']}; the objective is {meaning}; "
        f"dense {task['dense']['objective']:.4f}",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['torch_threads']} torch threads; "
        f"{done['trials']:,} policies measured in {seconds['trials']:,.0f} s, "
        f"{done['finals']:,} fine-tuned in {seconds['finals']:,.0f} s",
    ]
    if done["searches"] < done["searches_wanted"]:
        lines.append(f"so far: {done['searches']} of {done['searches_wanted']} searches; the same command goes on")
    for method, reasons in results["left_out"].items():
        for reason in dict.fromkeys(reasons.values()):
            caps = ", ".join(cap for cap, of in reasons.items() if of == reason)
            lines.append(f"{method} is left out at {caps}: {reason}")
    return lines


def table_text(results: dict[str, Any]) -> str:
    """For a terminal."""
    parts = ["\n".join(headline(results)), *(table.text for table in tables(results)), "\n".join(goal_lines(results))]
    return "\n\n".join(parts)


def table_markdown(results: dict[str, Any]) -> str:
    """For `table.md`."""
    goal = "\n".join(f"- {line}" if not line.startswith(" ") else f"  - {line.strip()}" for line in goal_lines(results))
    parts = [f"# {results['name']}", "  \n".join(headline(results)), *(t.markdown for t in tables(results))]
    return "\n\n".join([*parts, "**Goals**", goal]) + "\n"


def goal_lines(results: dict[str, Any]) -> list[str]:
    """Each claim with its verdict, and a line a cap."""
    lines = []
    for goal in results["goals"]:
        missing = f" ({goal['missing']})" if goal["missing"] else ""
        lines.append(f"{goal['verdict'].upper()}{missing}: {goal['claim']}")
        lines += [f"  {cap}: {words}" for cap, words in goal["by_cap"].items()]
    return lines


def _searches(results: dict[str, Any]) -> Table:
    found = results["figures"]["searches"]
    columns = [(cap, trials) for cap, of in found.items() for trials in of if of[trials]]
    heads = ["method", *(f"{cap}, {trials}" for cap, trials in columns), "own s", "trials s"]
    rows = []
    for method in _methods(results, [found[cap][trials] for cap, trials in columns]):
        cells = [found[cap][trials].get(method) for cap, trials in columns]
        known = [cell for cell in cells if cell]
        seconds = (sum(cell[key] for cell in known) / len(known) for key in ("own_seconds", "trial_seconds"))
        rows.append([method, *map(_placed, cells), *(f"{value:.1f}" for value in seconds)])
    title = "Best objective value under each cap ± 95 % (place), by number of trials; seconds of one search"
    return Table(heads, rows, title)


def _finals(results: dict[str, Any]) -> Table:
    found = results["figures"]["finals"]
    heads = ["method", *(head for cap in found for head in (f"{cap}, accuracy", "loss"))]
    rows = []
    for method in _methods(results, [of["methods"] for of in found.values()]):
        cells = [of["methods"].get(method, {}) for of in found.values()]
        pairs = [(_percent(cell.get("test_accuracy")), _value(cell.get("test_loss"))) for cell in cells]
        rows.append([method, *(text for pair in pairs for text in pair)])
    if rows:
        judge = results["recipe"]["finetune_judge"]
        for name, key in (("spread of random policies", "spread_of_random_policies"), ("noise", "noise_of_data_order")):
            numbers = [MISSING if of[key] is None else f"{of[key]:.4f}" for of in found.values()]
            rows.append([f"{name}, {judge}", *(text for number in numbers for text in (number, ""))])
    return Table(heads, rows, "Test split after an equal fine-tune ± 95 %")


def _front(results: dict[str, Any]) -> Table:
    found = results["figures"]["front"]
    rows: list[list[str]] = []
    if any(of["ours"] for of in found.values()):
        rows.append(["amc, one study for all", *(_value(of["ours"]) for of in found.values())])
    for method in dict.fromkeys(method for of in found.values() for method in of["others"]):
        rows.append([f"{method}, a study each", *(_value(of["others"].get(method)) for of in found.values())])
    return Table(["study", *found], rows, "Best objective value under each cap of a front ± 95 %")


def _orders(results: dict[str, Any]) -> Table:
    found = results["figures"]["orders"]
    rows = [
        [cap, trials, _value(of["kendall"], 2), _value(of["spearman"], 2), f"{of['policies']:.0f}"]
        for cap, by_trials in found.items()
        for trials, of in by_trials.items()
    ]
    heads = ["cap", "trials", "Kendall", "Spearman", "policies"]
    return Table(heads, rows, "Our predictor's order of fresh random policies near each cap ± 95 %")


def _methods(results: dict[str, Any], groups: Sequence[dict[str, Any]]) -> list[str]:
    """In the recipe's order."""
    known = {method for group in groups for method in group}
    ordered = [method for method in results["methods"] if method in known]
    return [*ordered, *sorted(known - set(ordered))]


def _placed(cell: dict[str, Any] | None) -> str:
    return MISSING if cell is None else f"{_value(cell)} ({cell['place']})"


def _value(cell: dict[str, Any] | None, digits: int = 4, scale: float = 1.0) -> str:
    if cell is None:
        return MISSING
    half = MISSING if cell["high"] is None else f"{scale * (cell['high'] - cell['mean']):.{digits}f}"
    return f"{scale * cell['mean']:.{digits}f} ± {half}"


def _percent(cell: dict[str, Any] | None) -> str:
    return MISSING if cell is None else f"{_value(cell, 2, 100)} %"
