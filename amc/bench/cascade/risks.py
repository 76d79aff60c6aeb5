"""Promises: how often each rule for choosing a threshold breaks its own (`method-dynamic` 5.6), on real records.

The saver pair of the family whose saver costs about a quarter. The ladder of thresholds is made on the policy-fit half;
the test split is the population that calibration sets are drawn from, and that the true risks are known on.
"""

from __future__ import annotations

from typing import Any

from amc.bench.cascade.ground import Ground
from amc.bench.cascade.risk import NAIVE, OURS, risk_study, risk_text
from amc.bench.cascade.shift import Shifted
from amc.bench.cascade.verdict import Figures, Goal
from amc.cascade.part import joined, recorded
from amc.cascade.risk import ladder
from amc.cascade.scores import SCORERS

DELTA, SAVER = 0.1, 0.25
SHIFTS = {"noise": {"noise": 0.5}, "blur": {"blur": 1.0}}
CRC, FIRST_FAILING = "conformal risk control", "learn-then-test, first failing"
RISKS = ("gap", "consistency", "accuracy")
GOALS = (
    *(
        Goal(f"{risk}: broken with probability at most {DELTA:g}", f"{risk}: broken, {OURS}", most=DELTA)
        for risk in RISKS
    ),
    Goal("the naive rule breaks its promise more often than that", f"gap: broken, {NAIVE}", least=DELTA),
    Goal("a shift that breaks the promise is flagged, 9 times of 10",
         "gap: broken under a shift and not flagged", most=0.1),
)  # fmt: skip


def measure(ground: Ground) -> tuple[Figures, dict[str, Any]]:
    """The figures of one seed."""
    base, dense = ground.family.dense, ground.family.run.job
    savers = [member for member in ground.members if member.macs < base.macs]
    saver = min(savers, key=lambda member: abs(member.macs - SAVER * base.macs))
    fit = joined([ground.halves(part)[0] for part in (saver, base)])
    test, added = ground.in_a_row([saver, base], "test"), [saver.macs, base.macs]
    shifted = {
        name: joined([recorded(part, Shifted(ground.split("test"), **kind), dense.compute) for part in (saver, base)])
        for name, kind in SHIFTS.items()
    }
    policies = ladder(fit, SCORERS["confidence"](fit))
    found = risk_study(test, added, policies, delta=DELTA, shifted=shifted, seed=ground.seed)
    ground.progress.say(risk_text(found))
    figures: Figures = {}
    for risk, told in found["risks"].items():
        for rule in (NAIVE, CRC, FIRST_FAILING, OURS):
            figures[f"{risk}: broken, {rule}"] = told["rules"][rule]["broken"]["share"]
            figures[f"{risk}: relative cost, {rule}"] = told["rules"][rule]["relative_cost"]
    shifts = found["risks"]["gap"]["shifts"]
    unflagged = [told["broken_unflagged"]["share"] or 0.0 for name, told in shifts.items() if name != "none"]
    figures["gap: broken under a shift and not flagged"] = max(unflagged)
    figures["gap: flagged without a shift"] = shifts["none"]["flagged"]["share"] or 0.0
    return figures, {"saver": saver.name, "study": found}
