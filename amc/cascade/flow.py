"""`amc cascade`: from a finished run to a cascade that keeps to the user's terms: planned, tested, measured, kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from amc.cascade.archive import check_place, policy_to_json, save_cascade
from amc.cascade.candidate import Candidate
from amc.cascade.certify import report_exits
from amc.cascade.family import Family
from amc.cascade.figures import BATCHES, figures_of, judged, seconds_of
from amc.cascade.independent import independent_network
from amc.cascade.methods import FROZEN, candidates_of, check_method, static_of
from amc.cascade.monitor import Monitor
from amc.cascade.options import Goal, Option
from amc.cascade.part import Member, joined
from amc.cascade.plan import Plan, make_plan, risk_bounds
from amc.cascade.policy import walk
from amc.cascade.report import report_text
from amc.cascade.terms import Terms
from amc.job.run import Run, claimed
from amc.system.errors import UsageError
from amc.system.progress import Progress
from amc.train.evaluation import paired_difference

FORMAT = "amc-cascade-report/1"
CASCADE = "cascade"  # folder of a run
TRAINED = 4  # networks that one command trains at most


@dataclass(frozen=True)
class Result:
    """What was planned, for machines and for people."""

    record: dict[str, Any]
    text: str


def cascade(
    folder: Path,
    terms: Terms,
    progress: Progress,
    *,
    method: str = "auto",
    strangers: Sequence[str] = (),
    out: Path | None = None,
    train: int = TRAINED,
    exits: str = FROZEN,
) -> Result:
    """Plan the best cascade of a run's networks under `terms`, and keep it.

    Args:
        folder: a finished run of a classifier.
        method: one of `amc.cascade.methods.METHODS`; auto looks at all that are cheap to make.
        strangers: networks that are no relatives of the run's, each NAME or NAME=WEIGHTS.
        out: where the cascade goes; None: `cascade/TERMS` inside the run.
        train: networks of the family that may be trained now; what is trained stays in the run.
        exits: frozen leaves networks with exits as they are; joint trains copies of them on with their exits.

    Raises:
        BudgetUnreachable: nothing keeps to the terms with their confidence; the message names what can be had.
        ModelError, RunError, UsageError: one line each.
    """
    check_method(method, exits)
    if train < 0:
        raise UsageError(f"--train must be 0 networks or more, but is {train}")
    target = out or folder / CASCADE / terms.name
    check_place(target)  # before anything is trained
    start, run = perf_counter(), Run.open(folder)
    with claimed(folder, "plan with a copy of the folder"):
        family = Family(run, progress)
        limits = terms.limits(family.dense.macs)
        family.grow(limits, train)
        members = _with_strangers(family, strangers)
        singles = [static_of(family, member) for member in members]
        goal = Goal(limits, next(each for each in singles if each.parts[0] is family.dense))
        progress.say(f"plan over {len(members)} networks: {', '.join(member.name for member in members)}")
        candidates = candidates_of(method, family, singles, limits, progress, exits)
        plan = make_plan([*singles, *candidates], goal)
        record = {
            "format": FORMAT,
            "folder": str(target),
            "run": str(folder),
            "method": method,
            "terms": {**terms.to_json(), "asked": terms.sentence(family.dense.macs)},
            **_planned(plan, goal),
            **_tested(family, plan, progress),
            "members": [_member(member, single) for member, single in zip(members, singles, strict=True)],
            "digests": run.job.digests,
            "seconds": perf_counter() - start,
        }
        save_cascade(target, plan.option.candidate, plan.option.policy, _about(run, terms, plan.option, record))
    return Result(record, report_text(record))


def _about(run: Run, terms: Terms, option: Option, record: dict[str, Any]) -> dict[str, Any]:
    """What a cascade's own record tells beside stages and policy: enough to serve and to watch it."""
    return {
        "input_shape": list(run.job.data.input_shape),
        "terms": terms.to_json(),
        "monitor": Monitor.on(option.candidate.risk, option.policy).to_json(),
        "report": record,
    }


def _with_strangers(family: Family, strangers: Sequence[str]) -> list[Member]:
    """The family's networks and the independent ones, each under a name of its own."""
    members = family.members
    for text in strangers:
        written = text if "@" in text else text.replace("=", "@", 1)
        taken = {member.name for member in members}
        members.append(independent_network(written, family.run.job.data, family.run.job.compute, taken))
    return members


def _planned(plan: Plan, goal: Goal) -> dict[str, Any]:
    """What was chosen, what it was chosen from, and what can be promised of it."""
    static = plan.static
    return {
        "dense": {
            "macs": goal.dense.max_cost,
            "fit_accuracy": float(goal.dense.fit.accuracies[0]),
            "risk_accuracy": float(goal.dense.risk.accuracies[0]),
        },
        "plan": _told(plan.option, goal),
        "static": None if static is None else {**_told(static, goal), "passed": static in plan.tested},
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
            for option in plan.rivals
        ],
    }


def _told(option: Option, goal: Goal) -> dict[str, Any]:
    candidate, reference = option.candidate, goal.dense.risk.logits[0]
    return {
        "name": option.name,
        "method": candidate.method,
        "stages": [stage.name for stage in candidate.stages],
        "added": candidate.added,
        "policy": policy_to_json(option.policy),
        "fit": figures_of(candidate.fit, option.fit, candidate.added),
        "risk": figures_of(candidate.risk, option.risk, candidate.added),
        "certified": risk_bounds(option, goal),
        "exits": [each.to_json() for each in report_exits(candidate.risk, option.risk, goal.limits.delta, reference)],
    }


def _tested(family: Family, plan: Plan, progress: Progress) -> dict[str, Any]:
    """The one look at the test split: the plan and the best static network, side by side."""
    options = {"plan": plan.option} | ({"static": plan.static} if plan.static is not None else {})
    stage = progress.stage("measure on the test split, once", len(options))
    found, evaluations, dense = {}, {}, family.run.job
    inputs = next(iter(dense.data.validation.batches(BATCHES[-1])))[0]
    for name, option in options.items():
        candidate = option.candidate
        whole = joined([family.test_records(part) for part in candidate.parts])
        records = whole.choose(candidate.used) if candidate.used else whole
        walked = walk(records, option.policy, candidate.added)
        found[name] = figures_of(records, walked, candidate.added)
        found[name]["seconds"] = seconds_of(candidate.stages, option.policy, inputs, walked.stop, dense.compute)
        evaluations[name] = judged(walked)
        stage.advance()
    if "static" not in found:
        return {"test": found, "comparison": None}
    difference, low, high = paired_difference(evaluations["plan"], evaluations["static"])
    return {"test": found, "comparison": {"difference": difference, "low": low, "high": high}}


def _member(member: Member, single: Candidate) -> dict[str, Any]:
    return {
        "name": member.name,
        "origin": member.origin,
        "macs": member.macs,
        "fit_accuracy": float(single.fit.accuracies[0]),
        "risk_accuracy": float(single.risk.accuracies[0]),
    }
