"""What a study stands on: a family of networks, and the held-out pictures divided by one seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from amc.cascade.candidate import Candidate
from amc.cascade.family import RECORDS, Family
from amc.cascade.methods import STATIC
from amc.cascade.part import Member, Part, joined, recorded
from amc.cascade.records import Records
from amc.cost.budget import Budget, parse_budget
from amc.job.compress import compress
from amc.job.recipe import Recipe
from amc.system.errors import BudgetUnreachable
from amc.system.progress import Progress
from amc.zoo.data.splits import Split


class SeededFamily(Family):
    """A family whose validation split is divided by a seed of its own; its networks are those of the run."""

    division = 0

    @property
    def seed(self) -> int:
        return self.division


@dataclass(frozen=True, eq=False)
class Ground:
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
    def members(self) -> list[Member]:
        """The networks of the family by rising cost: the dense one, and one for each budget."""
        for limit in self.limits:
            if self.family.standing_for(limit, exact=True) is None and self.family.train(limit) is None:
                raise BudgetUnreachable(f"a budget must be reachable, but no network has {limit:.0f} multiply-adds")
        return self.family.members

    def split(self, name: str) -> Split:
        """The train, validation or test split."""
        found: Split = getattr(self.family.run.job.data, name)
        return found

    def records(self, part: Part, split: str) -> Records:
        """What a part says of a whole split; made once, kept beside the family."""
        run, dense = self.family.run, self.family.run.job
        folder = self.family.folder / RECORDS
        return recorded(part, self.split(split), dense.compute, folder, run.recipe.search.batch_size)

    def halves(self, part: Part) -> tuple[Records, Records]:
        """On the policy-fit and the risk-test half of the validation split."""
        return self.records(part, "validation").parted(self.seed)

    def in_a_row(self, parts: list[Part], split: str) -> Records:
        """Several parts' stages, one after the other."""
        return joined([self.records(part, split) for part in parts])

    def single(self, member: Member) -> Candidate:
        """A network run whole."""
        return Candidate(STATIC, member.stages, *self.halves(member), ("confidence",), (member,))


def stand(
    recipe: Recipe, seed: int, budgets: list[str], runs: Path, progress: Progress, name: str | None = None
) -> Ground:
    """The ground of a recipe: its run in `runs`, which is made, or gone on with, where it is not there.

    Raises:
        AmcError: as `amc.job.compress.compress`.
    """
    name = name or recipe.name
    run = compress(recipe.model_copy(update={"out": str(runs / name)}), progress)
    torch.manual_seed(seed)
    family = SeededFamily(run, progress)
    family.division = seed
    return Ground(name, family, seed, tuple(map(parse_budget, budgets)), progress)
