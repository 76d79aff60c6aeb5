"""Figures over seeds, and whether what must be shown is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from amc.bench.statistics import interval

Verdict = Literal["MET", "NOT MET", "CANNOT TELL", "NOT MEASURED"]
FEWEST = 3  # seeds for a verdict

Figures = dict[str, float]  # of one seed, by name


@dataclass(frozen=True)
class StudyGoal:
    """That a figure is at least, or at most, some number.

    Attributes:
        says: the goal in words.
        figure: its name, without the context's.
    """

    says: str
    figure: str
    least: float | None = None
    most: float | None = None

    def judge(self, values: Sequence[float]) -> Verdict:
        """By the 95 % interval of the mean over seeds; values that are all alike are taken as they are."""
        if not values:
            return "NOT MEASURED"
        found = interval(values)
        low, high = (found.mean if end is None else end for end in (found.low, found.high))
        if len(values) < FEWEST and len(set(values)) > 1:
            return "CANNOT TELL"
        met = (self.least is None or low >= self.least) and (self.most is None or high <= self.most)
        missed = (self.least is not None and high < self.least) or (self.most is not None and low > self.most)
        return "MET" if met else "NOT MET" if missed else "CANNOT TELL"


def summary(figures: Mapping[str, Mapping[int, Figures]], goals: Sequence[StudyGoal]) -> dict[str, Any]:
    """Means, intervals and verdicts, JSON-able.

    Args:
        figures: context -> seed -> figures.
    """
    contexts: dict[str, Any] = {}
    for context, by_seed in figures.items():
        names = list(dict.fromkeys(name for found in by_seed.values() for name in found))
        values = {name: [found[name] for found in by_seed.values() if name in found] for name in names}
        contexts[context] = {
            "figures": {name: _described(each) for name, each in values.items()},
            "goals": [
                {"goal": goal.says, "verdict": goal.judge(values.get(goal.figure, [])), "figure": goal.figure}
                for goal in goals
            ],
        }
    return contexts


def _described(values: list[float]) -> dict[str, Any]:
    found = interval(values)
    return {"mean": found.mean, "low": found.low, "high": found.high, "n": found.n, "values": values}


def summary_text(contexts: Mapping[str, Any]) -> str:
    """The table for people: a line a figure, then a line a goal."""
    lines: list[str] = []
    for context, reported in contexts.items():
        width = max((len(name) for name in reported["figures"]), default=0)
        lines += ["", context, ""]
        for name, found in reported["figures"].items():
            half = "" if found["high"] is None else f" ± {found['high'] - found['mean']:.4f}"
            lines.append(f"  {name:<{width}}  {found['mean']:10.4f}{half}")
        lines.append("")
        lines += [f"  {goal['verdict']}: {goal['goal']}" for goal in reported["goals"]]
    return "\n".join(lines).strip("\n")
