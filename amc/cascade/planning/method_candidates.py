"""The candidates that each method offers to planning, from the networks of a family."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

from amc.cascade.methods.tinysaver import rank_savers
from amc.cascade.planning import trained_components
from amc.cascade.planning.constraints import AbsoluteConstraints
from amc.cascade.planning.external_models import ORIGIN
from amc.cascade.planning.family import Family
from amc.cascade.stages.candidate import Candidate, in_a_row, subsets
from amc.cascade.stages.component import Component, NetworkComponent
from amc.system.errors import ModelError, UsageError
from amc.system.progress import Progress
from amc.train.own_exits import OwnExits

STATIC = "static"  # one network, run whole
EXITS = "exits"  # what auto calls them: with any scorer, PCEE's among them
METHODS = ("auto", "tinysaver", "esn", "pcee", "pcee-ws", "b-distil")
SCORERS: dict[str, tuple[str, ...]] = {
    "tinysaver": ("confidence", "margin", "isotonic", "rightness", "deferral"),
    "esn": ("confidence", "isotonic"),
    "pcee": ("bins", "isotonic"),
    "pcee-ws": ("window",),
    EXITS: ("confidence", "bins", "window", "isotonic", "deferral"),
    "b-distil": ("confidence", "isotonic"),
    STATIC: ("confidence",),
}
MOST = 4  # exits of one network that are used, unless all are
SAVERS = 2  # of the dense network, that an exit sequence is trained for
FROZEN, JOINT = "frozen", "joint"  # how exits are trained: alone, or the network on with them
WITH_EXITS = ("auto", "pcee", "pcee-ws")


def check_method(method: str, exits: str = FROZEN) -> None:
    """Raises `UsageError` for an unknown method or an unknown training of exits, or a method without exits to train."""
    if method not in METHODS:
        raise UsageError(f"--method must be one of {', '.join(METHODS)}, but is {method!r}")
    if exits not in (FROZEN, JOINT):
        raise UsageError(f"--exits must be {FROZEN} or {JOINT}, but is {exits!r}")
    if exits == JOINT and method not in WITH_EXITS:
        raise UsageError(f"--exits {JOINT} needs a method with exits ({', '.join(WITH_EXITS)}), but got {method}")


def static_of(family: Family, member: NetworkComponent) -> Candidate:
    """One network, run whole."""
    return _candidate(STATIC, family, member)


def candidates_of(
    method: str,
    family: Family,
    singles: Sequence[Candidate],
    limits: AbsoluteConstraints,
    progress: Progress,
    exits: str = FROZEN,
) -> list[Candidate]:
    """What a method offers; auto: what all offer whose parts are quickly trained, which B-DISTIL's are not.

    Args:
        singles: the networks, each run whole.
        exits: how exits are trained, frozen or joint.
    """
    found: list[Candidate] = []
    if method in ("auto", "tinysaver"):
        found += _savers(singles)
    if method in ("auto", "esn"):
        found += _sequences(family, singles, progress)
    if method in WITH_EXITS:
        named = EXITS if method == "auto" else method
        found += _exits(named, family, singles, limits, progress, exits == JOINT)
    if method == "b-distil":
        found += some_of(_candidate("b-distil", family, trained_components.students_of(family, family.dense)))
    return found


def _candidate(method: str, family: Family, part: Component) -> Candidate:
    calibration, holdout = family.records(part)
    return Candidate(method, part.stages, calibration, holdout, SCORERS[method], (part,))


def _savers(singles: Sequence[Candidate]) -> list[Candidate]:
    """Two or three networks, one after the other, each more accurate than the one before on the calibration split."""
    rising = [
        choice for choice in subsets(singles) if _rises([float(each.calibration.accuracies[0]) for each in choice])
    ]
    return [in_a_row("tinysaver", choice, SCORERS["tinysaver"]) for choice in rising]


def _rises(values: Sequence[float]) -> bool:
    return all(first < second for first, second in pairwise(values))


def _exits(
    method: str,
    family: Family,
    singles: Sequence[Candidate],
    limits: AbsoluteConstraints,
    progress: Progress,
    joint: bool,
) -> list[Candidate]:
    """Exits of some networks, and a saver in front of each of these."""
    found: list[Candidate] = []
    for member in _backbones(family, singles, limits):
        try:
            whole = _candidate(method, family, trained_components.exits_of(family, member, joint))
        except (ModelError, UsageError) as error:
            progress.say(f"no exits on {member.name}: {error}")
            continue
        chosen = some_of(whole)
        cheap = [each for each in singles if each.max_cost < whole.added[0]]
        found += [*chosen, *(in_a_row(method, (saver, whole), whole.scorers) for saver in cheap)]
    return found


def _sequences(family: Family, singles: Sequence[Candidate], progress: Progress) -> list[Candidate]:
    """The dense network with its best savers, and exits between them."""
    ordered = sorted(singles, key=lambda each: each.max_cost)
    dense = next(each for each in ordered if each.components[0] is family.dense)
    cheaper = [each for each in ordered if each.max_cost < dense.max_cost]
    if not cheaper:
        return []
    row = in_a_row("esn", [*cheaper, dense], SCORERS["esn"])
    ranked = [saver.name for saver in rank_savers(row.calibration, row.added, top=SAVERS)]
    found: list[Candidate] = []
    for name in ranked:
        saver = next(each for each in cheaper if each.stages[0].name == name).components[0]
        assert isinstance(saver, NetworkComponent)
        try:
            found += some_of(_candidate("esn", family, trained_components.sequence_of(family, saver, family.dense)))
        except ModelError as error:
            progress.say(f"no exit sequence over {name} and {family.dense.name}: {error}")
    return found


def _backbones(family: Family, singles: Sequence[Candidate], limits: AbsoluteConstraints) -> list[NetworkComponent]:
    """The dense network, the largest other one that every example may run whole, and external models with own exits."""
    cap = limits.max_cost or (2 * limits.mean_cost if limits.mean_cost else family.released.macs)
    others = [member for member in family.members if member is not family.dense and member.macs <= cap]
    given = [
        part
        for each in singles
        for part in each.components
        if isinstance(part, NetworkComponent) and part.origin == ORIGIN
    ]
    return [family.dense, *others[-1:], *(member for member in given if isinstance(member.model, OwnExits))]


def some_of(whole: Candidate) -> list[Candidate]:
    """All its stages, and every choice of 2 to 4; without the last one too, since a worst case may forbid it."""
    number = len(whole.stages)
    sizes = {*range(2, min(number, MOST) + 1), number}
    return [whole.using(used) for size in sorted(sizes) for used in combinations(range(number), size)]
