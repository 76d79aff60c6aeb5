"""What a run's networks are given for a cascade: exits, exit sequences, students. Trained once, kept in the run.

Each stands in `RUN/family/KIND-NAME-DIGEST`, whole or absent; the digest is of the networks that it was trained for.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import nn

from amc.cascade.bdistil import distil
from amc.cascade.ensemble import Ensemble, load_ensemble
from amc.cascade.esn import SequencePart, kept_member, load_sequence, pair_networks
from amc.cascade.esn_training import train_sequence
from amc.cascade.exit_archive import load_exits, save_exits
from amc.cascade.exit_training import ExitSchedule, train_exits
from amc.cascade.exits import ExitNetwork, OwnExits, every_own_exit, exit_network
from amc.cascade.family import Family
from amc.cascade.part import Member
from amc.cascade.stage import Stage
from amc.cascade.students import WithTrained, small_students
from amc.cost.trace import digest_tensors
from amc.job.job import example_call
from amc.system.errors import UsageError

NETWORK, EXITS = "network", "exits"


@dataclass(frozen=True, eq=False)
class ExitsPart:
    """A network with exits on its way; its backbone as it was, unless both were trained on together."""

    member: Member
    network: ExitNetwork

    kind = "exits"

    @property
    def name(self) -> str:
        return self.member.name

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        return self.network.stages()

    @cached_property
    def digest(self) -> str:
        places = " ".join(place.name for place in self.network.places)
        tensors = self.network.state_dict()
        return digest_tensors({f"{places} {name}": tensor for name, tensor in tensors.items()})

    def save(self, folder: Path) -> None:
        self.member.save(folder / NETWORK)
        save_exits(folder / EXITS, self.network)


@dataclass(frozen=True, eq=False)
class StudentsPart:
    """The students of a teacher, each prefix of which answers."""

    name: str
    ensemble: Ensemble

    kind = "b-distil"

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        return self.ensemble.stages()

    @cached_property
    def digest(self) -> str:
        tensors = {f"votes.{k}": votes for k, votes in enumerate(self.ensemble.votes)}
        for number, step in enumerate(self.ensemble.steps):
            tensors |= {f"{number}.{name}": tensor for name, tensor in step.state_dict().items()}
        return digest_tensors(tensors)

    def save(self, folder: Path) -> None:
        self.ensemble.save(folder)


def exits_of(family: Family, member: Member, joint: bool = False) -> ExitsPart:
    """A network with all the exits of its own, as they are, or with three that are trained, its backbone frozen.

    Args:
        joint: then train the network on with its exits, as long as the run's recipe fine-tunes: a copy of it, under
            another name.

    Raises:
        ModelError: it cannot be traced or has no place for an exit, or its own exits do not fit it any more.
        UsageError: `joint`, but the run's recipe does not fine-tune.
    """
    run = family.run
    compute, splits = run.job.compute, family.splits
    example = example_call(run.job.task, splits).to(compute.device).args[0]
    own = isinstance(member.model, OwnExits)
    if own and not joint:
        return ExitsPart(member, every_own_exit(member.model, example, member.name))
    kind, tuned = "exits-joint" if joint else "exits", run.recipe.finetune
    folder = family.folder / f"{kind}-{member.name}-{member.digest}"
    schedule = ExitSchedule()
    if joint:
        if not tuned.epochs:
            raise UsageError(
                "exits are trained jointly as long as the run's recipe fine-tunes, but its finetune.epochs is 0; take "
                "--exits frozen, or a run that fine-tunes"
            )
        schedule = ExitSchedule(
            joint_epochs=tuned.epochs, joint_optimizer=tuned.optimizer, joint_lr=tuned.lr, joint_augment=True,
            joint_batch_size=tuned.batch_size, joint_weight_decay=tuned.weight_decay,
        )  # fmt: skip
        member = replace(member, name=f"{member.name}-joint", model=copy.deepcopy(member.model).requires_grad_())

    def make(folder: Path) -> None:
        fitted = every_own_exit if own else partial(exit_network, seed=run.recipe.seed)
        network = fitted(member.model, example, chain=member.name)
        train_exits(network, splits.train, compute, schedule, seed=run.recipe.seed, progress=family.progress)
        save_exits(folder, network)

    return ExitsPart(member, load_exits(kept_once(folder, make), member.model, member.name))


def load_exits_part(folder: Path, name: str) -> ExitsPart:
    """What `ExitsPart.save` wrote, on the CPU."""
    member = kept_member(folder / NETWORK, name)
    return ExitsPart(member, load_exits(folder / EXITS, member.model, name))


def sequence_of(family: Family, saver: Member, base: Member) -> SequencePart:
    """A saver and a base with an exit sequence over both.

    Raises:
        ModelError: one of them cannot be traced or cut.
    """
    run = family.run

    def make(folder: Path) -> None:
        part = train_sequence(
            pair_networks(saver, base), family.splits.train, run.job.compute,
            seed=run.recipe.seed, progress=family.progress,
        )  # fmt: skip
        part.save(folder)

    folder = kept_once(family.folder / f"esn-{saver.name}-{base.name}-{saver.digest}-{base.digest}", make)
    return _on_device(load_sequence(folder), run.job.compute.device)


def students_of(family: Family, teacher: Member) -> StudentsPart:
    """Students of a teacher: fresh ones and the family's cheaper networks; votes are fitted on the policy-fit half.

    Raises:
        ModelError: the teacher does not classify.
        UsageError: no student learned anything.
    """
    run = family.run
    pruned = [member for member in family.members if member.macs < teacher.macs]
    example = example_call(run.job.task, family.splits).to(run.job.compute.device).args[0]

    def make(folder: Path) -> None:
        classes = teacher.model(example).shape[-1]
        found = distil(
            teacher.model, family.splits, run.job.compute,
            students=WithTrained(
                small_students(teacher.macs, example, classes),
                {member.name: (member.model, member.source) for member in pruned}, example,
            ),
            seed=run.recipe.seed, progress=family.progress,
        )  # fmt: skip
        found.ensemble.save(folder)

    half = family.halves[0]
    divided = "" if half.groups is None else f"-{half.digest}"  # votes are of this half, with its groups kept whole
    members = digest_tensors({member.digest: torch.empty(0) for member in pruned})
    folder = kept_once(family.folder / f"b-distil-{teacher.name}-{teacher.digest}-{members}{divided}", make)
    return StudentsPart(f"students of {teacher.name}", load_ensemble(folder))


def kept_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, filled by `make` unless it is there already; a process that is killed leaves none."""
    if not folder.is_dir():
        working = folder.with_name(f".{folder.name}")
        shutil.rmtree(working, ignore_errors=True)
        make(working)
        os.replace(working, folder)
    return folder


def _on_device(part: SequencePart, device: torch.device) -> SequencePart:
    modules: list[nn.Module] = [part.pair.saver.model, part.pair.base.model, part.sequence]
    for module in modules:
        module.to(device)
    return part
