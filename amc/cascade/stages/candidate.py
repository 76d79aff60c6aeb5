"""What a method offers to planning: stages in an order, what they said on held-out examples, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from amc.cascade.stages.component import Component, join_stages
from amc.cascade.stages.records import Records
from amc.cascade.stages.stage import ExitStage, Stage, path_costs, without


@dataclass(frozen=True, eq=False)
class Candidate:
    """S stages in an order, with all that planning needs to know of them.

    Attributes:
        method: who made the stages: tinysaver, esn, pcee, pcee-ws, b-distil, or static (one network, run whole).
        fit: records of these stages on the calibration split of the validation split.
        risk: records of the same stages on the holdout split.
        scorers: names in `amc.cascade.rules.scorers.SCORERS` that the method may use.
        components: what the stages come from; () where they are not to be kept.
        used: the places of these stages among all that the parts give, one part after the other; () for all.
    """

    method: str
    stages: tuple[Stage, ...]
    calibration: Records
    holdout: Records
    scorers: tuple[str, ...]
    components: tuple[Component, ...] = ()
    used: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        names = tuple(stage.name for stage in self.stages)
        if not self.calibration.stages == self.holdout.stages == names:
            raise ValueError(
                f"records must be of the stages {names}, but are {self.calibration.stages}, {self.holdout.stages}"
            )

    @property
    def name(self) -> str:
        """Method and stages, for people."""
        return f"{self.method}: {' > '.join(stage.name for stage in self.stages)}"

    @property
    def added(self) -> list[float]:
        """What visiting each stage adds, in multiply-adds."""
        return path_costs([stage.cost for stage in self.stages], range(len(self.stages)))

    @property
    def max_cost(self) -> float:
        """Of an example that visits every stage."""
        return sum(self.added)

    def using(self, used: Sequence[int]) -> Candidate:
        """The stages `used`, ascending; an exit that is left out lends its body to the next one of its chain.

        Raises:
            ValueError: a stage left out works for a later one of its chain and cannot lend it its work.
        """
        places = self.used or tuple(range(len(self.stages)))
        return replace(
            self,
            stages=chosen(self.stages, used),
            calibration=self.calibration.choose(used),
            holdout=self.holdout.choose(used),
            used=tuple(places[index] for index in used),
        )


def subsets(members: Sequence[Candidate], most: int = 3) -> list[tuple[Candidate, ...]]:
    """Every choice of 2 to `most` whole networks, cheapest first."""
    ordered = sorted(members, key=lambda member: member.max_cost)
    return [choice for size in range(2, most + 1) for choice in combinations(ordered, size)]


def in_a_row(method: str, members: Sequence[Candidate], scorers: tuple[str, ...]) -> Candidate:
    """One candidate of all the stages of others, which share no chain, in the order given."""
    used: list[int] = []
    given = 0
    for each in members:
        used += [given + place for place in each.used or range(len(each.stages))]
        given += sum(len(part.stages) for part in each.components) or len(each.stages)
    return Candidate(
        method,
        tuple(stage for each in members for stage in each.stages),
        join_stages([each.calibration for each in members]),
        join_stages([each.holdout for each in members]),
        scorers,
        tuple(part for each in members for part in each.components),
        tuple(used),
    )


def chosen(stages: Sequence[Stage], used: Sequence[int]) -> tuple[Stage, ...]:
    """The stages `used`, ascending, those of one chain grown by the bodies of the ones left out between them.

    Raises:
        ValueError: as `Candidate.using`.
    """
    grown: dict[int, Stage] = {}
    for chain in dict.fromkeys(stages[index].cost.chain for index in used):
        places = [index for index, stage in enumerate(stages) if stage.cost.chain == chain]
        taken = [place for place, index in enumerate(places) if index in used]
        members = [stages[index] for index in places]
        exits = [member for member in members if isinstance(member, ExitStage)]
        if len(exits) == len(members):
            kept: list[Stage] = list(without(exits, taken))
        elif taken == list(range(len(taken))):  # only later ones are left out: nothing is lent
            kept = members[: len(taken)]
        else:
            raise ValueError(f"stages of chain {chain!r} lend no bodies, so only the last ones of it may be left out")
        grown |= {places[place]: stage for place, stage in zip(taken, kept, strict=True)}
    return tuple(grown[index] for index in used)
