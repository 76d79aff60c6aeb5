"""What a study stands on: a family of networks, and the held-out images divided by one seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from amc import Budget, BudgetUnreachable, Progress, Recipe, Split, compress, parse_budgets
from amc.cascade import STATIC, Candidate, Component, Family, NetworkComponent, Records, join_stages


@dataclass(frozen=True, eq=False)
class StudyContext:
    """One network and its data, for one seed.

    Attributes:
        name: of the recipe.
        seed: divides the validation split, and starts every training that is the study's own.
        budgets: mean costs that are looked at.
    """

    name: str
    family: Family
    seed: int
    budgets: tuple[Budget, ...]
    progress: Progress

    @cached_property
    def limits(self) -> tuple[float, ...]:
        """The budgets in multiply-adds."""
        dense = self.family.run.job.trace.dense_costs()
        return tuple(budget.limit(dense) for budget in self.budgets)

    @cached_property
    def members(self) -> list[NetworkComponent]:
        """The networks of the family by rising cost: the dense one, and one for each budget."""
        for limit in self.limits:
            if self.family.standing_for(limit, exact=True) is None and self.family.train(limit) is None:
                raise BudgetUnreachable(f"a budget must be reachable, but no network has {limit:.0f} multiply-adds")
        return self.family.members

    def split(self, name: str) -> Split:
        """The train, validation or test split."""
        found: Split = getattr(self.family.run.job.data, name)
        return found

    def records(self, part: Component, split: str) -> Records:
        """What a part says of a whole split; made once, kept beside the family."""
        return self.family.records_on(part, self.split(split))

    def halves(self, part: Component) -> tuple[Records, Records]:
        """On the calibration and the holdout split of the validation split."""
        return self.records(part, "validation").parted(self.seed)

    def in_a_row(self, parts: list[Component], split: str) -> Records:
        """Several parts' stages, one after the other."""
        return join_stages([self.records(part, split) for part in parts])

    def single(self, member: NetworkComponent) -> Candidate:
        """A network run whole."""
        return Candidate(STATIC, member.stages, *self.halves(member), ("confidence",), (member,))


def open_context(
    recipe: Recipe, seed: int, budgets: list[str], runs: Path, progress: Progress, name: str | None = None
) -> StudyContext:
    """The context of a recipe: its run in `runs`, which is made, or gone on with, where it is not there.

    Raises:
        AmcError: as `amc.compress`.
    """
    name = name or recipe.name
    run = compress(recipe=recipe, out=runs / name, progress=progress)
    torch.manual_seed(seed)
    return StudyContext(
        name, Family(run, progress, seed), seed, tuple(parse_budgets(each)[0] for each in budgets), progress
    )
