"""What a run's networks are given for a cascade: exits, exit sequences, students. Trained once, kept in the run.

Each stands in `RUN/family/KIND-NAME-DIGEST`, whole or absent; the digest is of the networks that it was trained for.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from amc.cascade.methods.bdistil.game import distil
from amc.cascade.methods.bdistil.prefix_ensemble import StudentsComponent, load_ensemble
from amc.cascade.methods.bdistil.students import WithTrained, small_students
from amc.cascade.methods.esn.sequence_stages import (
    SequenceComponent,
    load_sequence,
    pair_networks,
)
from amc.cascade.methods.esn.sequence_training import train_sequence
from amc.cascade.methods.exits.exit_network import every_own_exit, exit_network
from amc.cascade.methods.exits.exit_training import ExitSchedule, train_exits
from amc.cascade.methods.exits.saved_exits import ExitsComponent, load_exits, save_exits
from amc.cascade.planning.family import Family
from amc.cascade.stages.component import NetworkComponent
from amc.cost.trace import digest_tensors
from amc.system.errors import UsageError
from amc.train.own_exits import OwnExits


def exits_of(family: Family, member: NetworkComponent, joint: bool = False) -> ExitsComponent:
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
    example = run.job.trace.example.args[0]
    own = isinstance(member.model, OwnExits)
    if own and not joint:
        return ExitsComponent(member, every_own_exit(member.model, example, member.name))
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

    return ExitsComponent(member, load_exits(kept_once(folder, make), member.model, member.name))


def sequence_of(family: Family, saver: NetworkComponent, base: NetworkComponent) -> SequenceComponent:
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


def students_of(family: Family, teacher: NetworkComponent) -> StudentsComponent:
    """Students of a teacher: new ones and the family's cheaper networks, weighted on the calibration split.

    Raises:
        ModelError: the teacher does not classify.
        UsageError: no student learned anything.
    """
    run = family.run
    pruned = [member for member in family.members if member.macs < teacher.macs]
    example = run.job.trace.example.args[0]

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
    divided = "" if half.groups is None else f"-{half.digest}"  # the ensemble weights depend on it
    members = digest_tensors({member.digest: torch.empty(0) for member in pruned})
    folder = kept_once(family.folder / f"b-distil-{teacher.name}-{teacher.digest}-{members}{divided}", make)
    return StudentsComponent(f"students of {teacher.name}", load_ensemble(folder))


def kept_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, filled by `make` unless it is there already; a process that is killed leaves none."""
    if not folder.is_dir():
        working = folder.with_name(f".{folder.name}")
        shutil.rmtree(working, ignore_errors=True)
        make(working)
        os.replace(working, folder)
    return folder


def _on_device(part: SequenceComponent, device: torch.device) -> SequenceComponent:
    modules: list[nn.Module] = [part.pair.saver.model, part.pair.base.model, part.sequence]
    for module in modules:
        module.to(device)
    return part
