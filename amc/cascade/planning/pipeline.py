"""`amc cascade`: plan, test, measure and save the best cascade of a finished run under the user's constraints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from amc.cascade.certificates.certified_bounds import report_exits
from amc.cascade.certificates.drift import DriftMonitor
from amc.cascade.planning.constraints import Constraints
from amc.cascade.planning.cross_fitting import Option, PlanProblem
from amc.cascade.planning.external_models import external_model
from amc.cascade.planning.family import Family
from amc.cascade.planning.figures import BATCHES, as_evaluation, figures_of, seconds_of
from amc.cascade.planning.method_candidates import FROZEN, candidates_of, check_method, static_of
from amc.cascade.planning.plan_text import report_text
from amc.cascade.planning.planner import Plan, holdout_bounds, make_plan
from amc.cascade.rules.stop_rule import simulate
from amc.cascade.serving.saved_cascade import check_place, rule_to_json, save_cascade
from amc.cascade.stages.candidate import Candidate
from amc.cascade.stages.component import NetworkComponent, join_stages
from amc.job.run import Run, claimed
from amc.system.errors import UsageError
from amc.system.progress import Progress, Silent
from amc.train.evaluation import paired_difference

FORMAT = "amc-cascade-report/1"
CASCADE = "cascade"  # folder of a run
TRAINED = 4  # networks that one command trains at most


@dataclass(frozen=True)
class PlannedCascade:
    """What was planned, for machines and for people."""

    record: dict[str, Any]
    text: str


def plan_cascade(
    folder: str | Path,
    constraints: Constraints,
    progress: Progress | None = None,
    *,
    method: str = "auto",
    external: Sequence[str] = (),
    out: Path | None = None,
    train: int = TRAINED,
    exits: str = FROZEN,
) -> PlannedCascade:
    """Plan the best cascade of a run's networks under the constraints, and save it.

    Args:
        folder: a finished run of a classifier.
        method: one of `amc.cascade.planning.method_candidates.METHODS`; auto looks at all that are cheap to make.
        external models: networks that are no relatives of the run's, each NAME or NAME=WEIGHTS.
        out: where the cascade goes; None: `cascade/CONSTRAINTS` inside the run.
        train: networks of the family that may be trained now; what is trained stays in the run.
        exits: frozen leaves networks with exits as they are; joint trains copies of them on with their exits.

    Raises:
        BudgetUnreachable: nothing keeps to the constraints with their confidence; the message names what can be had.
        ModelError, RunError, UsageError: one line each.
    """
    folder, progress = Path(folder), progress or Silent()
    check_method(method, exits)
    if train < 0:
        raise UsageError(f"--train must be 0 networks or more, but is {train}")
    target = out or folder / CASCADE / constraints.name
    check_place(target)  # before anything is trained
    start, run = perf_counter(), Run.open(folder)
    with claimed(folder, "plan with a copy of the folder"):
        family = Family(run, progress)
        limits = constraints.limits(family.dense.macs)
        family.grow(limits, train)
        members = _with_external(family, external)
        singles = [static_of(family, member) for member in members]
        problem = PlanProblem(limits, next(each for each in singles if each.components[0] is family.dense))
        progress.say(f"plan over {len(members)} networks: {', '.join(member.name for member in members)}")
        candidates = candidates_of(method, family, singles, limits, progress, exits)
        plan = make_plan([*singles, *candidates], problem)
        record = {
            "format": FORMAT,
            "folder": str(target),
            "run": str(folder),
            "method": method,
            "terms": {**constraints.to_json(), "asked": constraints.sentence(family.dense.macs)},
            **_planned(plan, problem),
            **_tested(family, plan, progress),
            "members": [_member(member, single) for member, single in zip(members, singles, strict=True)],
            "digests": run.job.digests,
            "seconds": perf_counter() - start,
        }
        save_cascade(target, plan.option.candidate, plan.option.rule, _about(run, constraints, plan.option, record))
    return PlannedCascade(record, report_text(record))


def _about(run: Run, constraints: Constraints, option: Option, record: dict[str, Any]) -> dict[str, Any]:
    """What a cascade's own record tells beside stages and stop rule: enough to serve and to watch it."""
    return {
        "input_shape": list(run.job.data.input_shape),
        "terms": constraints.to_json(),
        "monitor": DriftMonitor.on(option.candidate.holdout, option.rule).to_json(),
        "report": record,
    }


def _with_external(family: Family, external: Sequence[str]) -> list[NetworkComponent]:
    """The family's networks and the independent ones, each under a name of its own."""
    members = family.members
    for text in external:
        written = text if "@" in text else text.replace("=", "@", 1)
        taken = {member.name for member in members}
        members.append(external_model(written, family.run.job.data, family.run.job.compute, taken))
    return members


def _planned(plan: Plan, problem: PlanProblem) -> dict[str, Any]:
    """What was chosen, what it was chosen from, and what can be promised of it."""
    static = plan.static
    return {
        "dense": {
            "macs": problem.dense.max_cost,
            "fit_accuracy": float(problem.dense.calibration.accuracies[0]),
            "risk_accuracy": float(problem.dense.holdout.accuracies[0]),
        },
        "plan": _described(plan.option, problem),
        "static": None if static is None else {**_described(static, problem), "passed": static in plan.tested},
        "fallback": plan.why,
        "tested": len(plan.tested),
        "failed": None if plan.failed is None else plan.failed.name,
        "rivals": [
            {
                "name": option.name,
                "macs": option.cost,
                "fit_accuracy": option.accuracy,
                "worst_cost": option.candidate.max_cost,
            }
            for option in plan.alternatives
        ],
    }


def _described(option: Option, problem: PlanProblem) -> dict[str, Any]:
    candidate, reference = option.candidate, problem.dense.holdout.logits[0]
    return {
        "name": option.name,
        "method": candidate.method,
        "stages": [stage.name for stage in candidate.stages],
        "added": candidate.added,
        "policy": rule_to_json(option.rule),
        "fit": figures_of(candidate.calibration, option.calibration, candidate.added),
        "risk": figures_of(candidate.holdout, option.holdout, candidate.added),
        "certified": holdout_bounds(option, problem),
        "exits": [
            each.to_json() for each in report_exits(candidate.holdout, option.holdout, problem.limits.delta, reference)
        ],
    }


def _tested(family: Family, plan: Plan, progress: Progress) -> dict[str, Any]:
    """The one look at the test split: the plan and the best static network, side by side."""
    options = {"plan": plan.option} | ({"static": plan.static} if plan.static is not None else {})
    stage = progress.stage("measure on the test split, once", len(options))
    found, evaluations, dense = {}, {}, family.run.job
    inputs = next(iter(dense.data.validation.batches(BATCHES[-1])))[0]
    for name, option in options.items():
        candidate = option.candidate
        whole = join_stages([family.records_on(part, dense.data.test, keep=False) for part in candidate.components])
        records = whole.choose(candidate.used) if candidate.used else whole
        outcomes = simulate(records, option.rule, candidate.added)
        found[name] = figures_of(records, outcomes, candidate.added)
        found[name]["seconds"] = seconds_of(candidate.stages, option.rule, inputs, outcomes.stop, dense.compute)
        evaluations[name] = as_evaluation(outcomes)
        stage.advance()
    if "static" not in found:
        return {"test": found, "comparison": None}
    difference, low, high = paired_difference(evaluations["plan"], evaluations["static"])
    return {"test": found, "comparison": {"difference": difference, "low": low, "high": high}}


def _member(member: NetworkComponent, single: Candidate) -> dict[str, Any]:
    return {
        "name": member.name,
        "origin": member.origin,
        "macs": member.macs,
        "fit_accuracy": float(single.calibration.accuracies[0]),
        "risk_accuracy": float(single.holdout.accuracies[0]),
    }
