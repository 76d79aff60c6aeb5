"""Promises: how often each rule for choosing a threshold breaks its own, on real records.

The saver pair of the family whose saver costs about a quarter. The ladder of thresholds is made on the calibration
split; the test split is the population that calibration sets are drawn from, and that the true risks are known on.
"""

from __future__ import annotations

from typing import Any

from amc.bench.cascade.shift import Shifted
from amc.bench.cascade.study_context import StudyContext
from amc.bench.cascade.study_goals import Figures, StudyGoal
from amc.bench.cascade.violations import NAIVE, OURS, risk_study, risk_text
from amc.cascade import SCORERS, cached_records, join_stages, threshold_ladder

DELTA, SAVER = 0.1, 0.25
SHIFTS = {"noise": {"noise": 0.5}, "blur": {"blur": 1.0}}
CRC, FIRST_FAILING = "conformal risk control", "learn-then-test, first failing"
RISKS = ("gap", "consistency", "accuracy")
GOALS = (
    *(
        StudyGoal(f"{risk}: broken with probability at most {DELTA:g}", f"{risk}: broken, {OURS}", most=DELTA)
        for risk in RISKS
    ),
    StudyGoal("the naive rule breaks its promise more often than that", f"gap: broken, {NAIVE}", least=DELTA),
    StudyGoal("a shift that breaks the promise is flagged, 9 times of 10",
         "gap: broken under a shift and not flagged", most=0.1),
)  # fmt: skip


def measure(context: StudyContext) -> tuple[Figures, dict[str, Any]]:
    """The figures of one seed."""
    base, dense = context.family.dense, context.family.run.job
    savers = [member for member in context.members if member.macs < base.macs]
    saver = min(savers, key=lambda member: abs(member.macs - SAVER * base.macs))
    fit = join_stages([context.halves(part)[0] for part in (saver, base)])
    test, added = context.in_a_row([saver, base], "test"), [saver.macs, base.macs]
    shifted = {
        name: join_stages(
            [cached_records(part, Shifted(context.split("test"), **kind), dense.compute) for part in (saver, base)]
        )
        for name, kind in SHIFTS.items()
    }
    rules = threshold_ladder(fit, SCORERS["confidence"](fit))
    found = risk_study(test, added, rules, delta=DELTA, shifted=shifted, seed=context.seed)
    context.progress.say(risk_text(found))
    figures: Figures = {}
    for risk, reported in found["risks"].items():
        for rule in (NAIVE, CRC, FIRST_FAILING, OURS):
            figures[f"{risk}: broken, {rule}"] = reported["rules"][rule]["broken"]["share"]
            figures[f"{risk}: relative cost, {rule}"] = reported["rules"][rule]["relative_cost"]
    shifts = found["risks"]["gap"]["shifts"]
    unflagged = [reported["broken_unflagged"]["share"] or 0.0 for name, reported in shifts.items() if name != "none"]
    figures["gap: broken under a shift and not flagged"] = max(unflagged)
    figures["gap: flagged without a shift"] = shifts["none"]["flagged"]["share"] or 0.0
    return figures, {"saver": saver.name, "study": found}
