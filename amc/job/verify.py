"""The gate: a release measured anew against what is asked of it. Nothing in it is taken from the run's own report."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from amc.cost.activations import live_bytes
from amc.cost.budget import format_cost, parse_budgets
from amc.job.job import bring, example_call
from amc.job.recipe import Recipe
from amc.job.run import POLICY, Run
from amc.release.archive import load_network
from amc.surgery.flop_counter import count_cut_macs
from amc.system.device import Compute
from amc.system.errors import GateFailed, UsageError
from amc.train.evaluation import evaluate
from amc.zoo.call import Call


@dataclass(frozen=True)
class Check:
    """One thing asked of a release."""

    name: str
    passed: bool
    asked: str
    found: str


@dataclass
class Verdict:
    """All checks, and the figures they were made on."""

    folder: str
    checks: list[Check] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def record(self) -> dict[str, Any]:
        return {
            "folder": self.folder,
            "passed": self.passed,
            "checks": [vars(check) for check in self.checks],
            **self.figures,
        }

    def raise_if_failed(self) -> None:
        """Raises `GateFailed` that names the first check that failed."""
        failed = [check for check in self.checks if not check.passed]
        if failed:
            first = failed[0]
            raise GateFailed(
                f"{first.name} must be {first.asked}, but is {first.found} "
                f"({len(failed)} of {len(self.checks)} checks failed)"
            )


def verify(folder: Path, budgets: list[str], max_drop: str | None) -> Verdict:
    """Load the release from its files, count its costs by torch's own counter, measure it and the dense network.

    Args:
        folder: a finished run, or a release that `amc retarget` wrote inside one.
        budgets: caps the release must hold; none: those it was made for.
        max_drop: largest drop of test accuracy against the dense network, "1.0%" or "0.01"; None: not asked.

    Raises:
        RunError: the release is missing, damaged, or belongs to no run.
        UsageError: a budget or drop is malformed.
    """
    run = Run.open(_run_of(folder))
    recipe = run.recipe
    is_run = run.folder == folder
    allowed = None if max_drop is None else _parse_drop(max_drop)
    own = recipe.budget if is_run else [cap["budget"] for cap in _policy(folder)["budgets"]]
    caps = parse_budgets(budgets or own)
    brought, compute = run.brought or bring(recipe), Compute.of(recipe.device)
    model = load_network(folder, brought.source.structure)
    dense, data = compute.place(brought.model), brought.data
    task = brought.task.bound(dense, compute, next(data.test.batches(1, limit=1), None))
    example = example_call(task, data)
    verdict = Verdict(str(folder))
    found, reference = count_costs(model, example), count_costs(dense.cpu(), example)
    compute.place(dense)
    for budget in caps:
        limit, used = budget.limit(reference), found[budget.unit]
        asked = f"at most {format_cost(budget.unit, limit)} ({budget})"
        verdict.checks.append(Check(budget.unit, used <= limit, asked, format_cost(budget.unit, used)))
    size = recipe.search.batch_size
    ours, theirs = (
        evaluate(compute.place(network), data.test, compute, batch_size=size, task=task) for network in (model, dense)
    )
    drop = theirs.accuracy - ours.accuracy
    name = f"test {task.metric_name}"
    if allowed is not None:
        verdict.checks.append(Check(f"drop in {name}", drop <= allowed, f"at most {allowed:.2%}", f"{drop:.2%}"))
    if is_run:
        written = run.metrics["released"]["test_accuracy"]
        same = abs(written - ours.accuracy) <= _noise(recipe, len(data.test))
        verdict.checks.append(Check(name, same, f"{written:.2%} as in metrics.json", f"{ours.accuracy:.2%}"))
    verdict.figures = {
        "metric": task.metric_name,
        "costs": found,
        "dense_costs": reference,
        "test_accuracy": ours.accuracy,
        "test_interval_95": list(ours.interval_95),
        "dense_test_accuracy": theirs.accuracy,
        "drop": drop,
    }
    return verdict


def count_costs(model: torch.nn.Module, example: Call) -> dict[str, float]:
    """Costs of a network as it stands, for one example, without any owner table."""
    state = model.state_dict()
    return {
        "macs": count_cut_macs(model, example),
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in state.values()),
        "activation_bytes": max(live_bytes(model, example)),
    }


def verdict_text(verdict: Verdict) -> str:
    """One line a check, then the figures."""
    figures = verdict.figures
    low, high = figures["test_interval_95"]
    lines = [
        f"{'ok  ' if check.passed else 'FAIL'} {check.name}: {check.found}, asked {check.asked}"
        for check in verdict.checks
    ]
    lines.append(
        f"     test {figures['metric']} {figures['test_accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%}), "
        f"dense {figures['dense_test_accuracy']:.2%}"
    )
    return "\n".join(lines)


def _run_of(folder: Path) -> Path:
    """The run a folder belongs to: itself, or the one that `amc retarget` noted in its policy."""
    noted = _policy(folder).get("run")
    return folder / noted if noted else folder


def _policy(folder: Path) -> dict[str, Any]:
    """What `policy.json` holds; nothing where it cannot be read, which loading the release then tells."""
    try:
        found = json.loads((folder / POLICY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _parse_drop(text: str) -> float:
    """A percentage ("1.0%") or share ("0.01") -> 0.01. Raises `UsageError`."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and 0 <= value <= 1):
        raise UsageError(f"--max-drop must be a share from 0 to 1 or a percentage, but is {text!r}; e.g. 1.0%")
    return value


def _noise(recipe: Recipe, images: int) -> float:
    """How far two machines' arithmetic may differ: two images, or a thousandth of them."""
    return max(2 / images, 0.001) + 1e-9
