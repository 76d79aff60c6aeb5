"""`amc retarget`: another budget from what a run has measured. No new search."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from amc.cost.budget import format_cost, format_flops_2x
from amc.job.run import Run, claimed
from amc.release.sentences import removed_groups
from amc.system.errors import UsageError
from amc.system.progress import Progress

TOO_FAR = 0.1  # below the prediction, in accuracy: then the prediction was none


@dataclass(frozen=True)
class Result:
    """What was found, for machines and for people."""

    record: dict[str, Any]
    text: str


def retarget(
    folder: Path, budgets: list[str], out: Path | None, candidates: int, finetune: bool, progress: Progress
) -> Result:
    """Fit the network of a finished run to other budgets and write a release.

    Args:
        folder: the run.
        budgets: at least one.
        out: where the release goes; None: `retarget/BUDGET` inside the run.
        candidates: how many of the best by prediction are measured truly; 0 takes the first as it is.
        finetune: train the release on, as the run's recipe says.

    Raises:
        BudgetUnreachable, RunError, UsageError: one line each.
    """
    if not budgets:
        raise UsageError("retarget needs a budget; give --budget, e.g. --budget 800MFLOPs")
    start = perf_counter()
    run = Run.open(folder)
    with claimed(folder):
        progress.stage("find the best policy", 1)
        found = run.retarget(*budgets, candidates=candidates)
        chosen = perf_counter() - start
        target = out or folder / "retarget" / "-".join(str(budget) for budget in found.budgets)
        accuracy = found.finetune(progress) if finetune else None
        found.save(target)
    policy = found.policy
    record = {
        "folder": str(target),
        "budgets": run.job.trace.held(found.budgets, policy.array),
        "policy": policy.kept,
        "removed": removed_groups(policy.kept),
        "costs": {**found.costs, "flops_2x": 2 * found.costs["macs"]},
        "predicted_accuracy": policy.mean,
        "predicted_std": policy.std,
        "measured_accuracy": policy.trial.accuracy if policy.trial else None,
        "finetuned_accuracy": accuracy,
        "dense_measure_accuracy": run.metrics["dense"]["measure_accuracy"],
        "choose_seconds": chosen,
        "seconds": perf_counter() - start,
    }
    return Result(record, _text(record))


def _text(record: dict[str, Any]) -> str:
    costs = record["costs"]
    lines = [
        f"{record['folder']}",
        f"  cost       {format_cost('macs', costs['macs'])} ({format_flops_2x(costs['macs'])}), "
        f"{format_cost('params', costs['params'])}, {format_cost('bytes', costs['bytes'])}",
        f"  predicted  {record['predicted_accuracy']:.2%} +- {record['predicted_std']:.2%}",
    ]
    if record["removed"]:
        lines.insert(2, f"  removed    the branches of {', '.join(record['removed'])}")
    if record["measured_accuracy"] is not None:
        lines.append(
            f"  measured   {record['measured_accuracy']:.2%} without fine-tuning "
            f"(dense {record['dense_measure_accuracy']:.2%})"
        )
        if record["measured_accuracy"] < record["predicted_accuracy"] - min(3 * record["predicted_std"], TOO_FAR):
            lines.append("  warning: far below the prediction: the run has measured too little near this budget")
    if record["finetuned_accuracy"] is not None:
        lines.append(f"  fine-tuned {record['finetuned_accuracy']:.2%}")
    return "\n".join(lines)
