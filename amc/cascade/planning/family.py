"""The networks of one run that a cascade may be made of: dense, released, and retargets that are trained on demand.

A retarget is fine-tuned once, as the run's recipe says, and kept in `RUN/family/NAME` as a release: whole or absent.
Its best epoch is chosen on the calibration split of the validation split: the holdout split has no part in it; one
that was chosen on another split is trained anew. (The release's own epoch, and which policies the run measured, were
chosen on the whole of the split.)
"""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from amc.cascade.planning.constraints import AbsoluteConstraints
from amc.cascade.stages.component import Component, NetworkComponent, cached_records, macs_of
from amc.cascade.stages.holdout import split_in_two
from amc.cascade.stages.records import Records
from amc.cost.budget import format_macs, parse_budget
from amc.job.run import Run, policy_table, save_release
from amc.job.run_folder import POLICY, read_json
from amc.release.archive import WEIGHTS, load_network
from amc.system.errors import BudgetUnreachable, UsageError
from amc.system.files import write_json
from amc.system.progress import Progress, Silent
from amc.zoo.data.part import PartSplit
from amc.zoo.data.splits import Split, Splits, groups_of

FAMILY, RECORDS = "family", "records"
HALF = "fit_half"  # key of a network's record: the digest of the calibration split
CHECKPOINT = "checkpoint.pt"
NEAR, CLOSE = 0.85, 0.95  # a network that uses this share of a cap, or more, stands for it; where it must be exact
STEPS = (0.25, 0.5, 1.0, 2.0)  # of the mean budget: savers, what a static network may cost, and what may follow
OPEN_STEPS = (0.5, 0.25, 0.125, 0.0625)  # of the dense network, where no budget is given


@dataclass(eq=False)
class Family:
    """The networks of a finished run, and what they say of held-out examples.

    Attributes:
        division: seed that divides the validation split into calibration and holdout split; None: the run's own.
    """

    run: Run
    progress: Progress = field(default_factory=Silent)
    division: int | None = None

    def __post_init__(self) -> None:
        task = self.run.job.task
        if task.metric is not None or task.batch is not None:
            raise UsageError(
                f"a cascade classifies single inputs, but the run's task is {task.metric_name}"
                f"{' of its own batches' if task.batch else ''}; take a run whose metric is accuracy"
            )

    @property
    def folder(self) -> Path:
        return self.run.folder / FAMILY

    @cached_property
    def dense(self) -> NetworkComponent:
        """The network that the run started from."""
        dense = self.run.job
        return self._member("dense", dense.model.eval(), "dense")

    @cached_property
    def released(self) -> NetworkComponent:
        """The network that the run released."""
        return self._member("released", self.run.job.compute.place(self.run.model), "released")

    @cached_property
    def trained(self) -> list[NetworkComponent]:
        """The retargets that are kept, by rising cost; `need` adds to them."""
        names = [
            entry.name for entry in self._entries() if (entry / WEIGHTS).is_file() and self._is_of_this_half(entry)
        ]
        return sorted((self._kept(name) for name in names), key=lambda member: member.macs)

    @property
    def members(self) -> list[NetworkComponent]:
        """All networks, by rising cost; of equal ones the first by name."""
        found = {member.digest: member for member in (self.dense, self.released, *self.trained)[::-1]}
        return sorted(found.values(), key=lambda member: (member.macs, member.name))

    def standing_for(self, cap: float, exact: bool = False) -> NetworkComponent | None:
        """The largest network of at most `cap` multiply-adds, if it uses most of them.

        Args:
            exact: it must use nearly all of them.
        """
        near = CLOSE if exact else NEAR
        name = share_name(cap / self.dense.macs)
        fitting = [each for each in self.members if near * cap <= each.macs <= cap or each.name == name]
        return fitting[-1] if fitting else None

    def missing(self, limits: AbsoluteConstraints) -> list[float]:
        """Caps for which a network would have to be trained, the most useful first."""
        smallest = self.run.job.trace.costs_of(self.run.job.space.low)["macs"]
        wanted = useful_caps(limits, self.dense.macs)
        return [cap for cap, exact in wanted if cap >= smallest and self.standing_for(cap, exact) is None]

    def train(self, cap: float) -> NetworkComponent | None:
        """The best network of at most `cap` multiply-adds by the run's predictor and trials, fine-tuned and kept.

        Returns:
            None where no legal policy fits.
        """
        name = share_name(cap / self.dense.macs)
        if not self._is_of_this_half(self.folder / name):
            try:
                self._train(name)
            except BudgetUnreachable:
                return None
        member = self._kept(name)
        self.trained = sorted([*self.trained, member], key=lambda each: each.macs)
        return member

    def grow(self, limits: AbsoluteConstraints, most: int) -> None:
        """Train the networks that the constraints make useful and that are not there yet, at most `most` of them."""
        given_up: set[float] = set()
        while most > 0 and (caps := [cap for cap in self.missing(limits) if cap not in given_up]):
            if self.train(caps[0]) is None:
                given_up.add(caps[0])
            most -= 1

    @cached_property
    def halves(self) -> tuple[PartSplit, PartSplit]:
        """The calibration and the holdout split of the validation split, as the run's own seed divides it.

        Raises:
            DataError: the split is of one group, which cannot be divided.
        """
        validation = self.run.job.data.validation
        calibration, holdout = split_in_two(len(validation), self.run.recipe.seed, groups=groups_of(validation))
        return PartSplit(validation, calibration), PartSplit(validation, holdout)

    @cached_property
    def splits(self) -> Splits:
        """What anything is trained with: the validation split is its calibration split."""
        return replace(self.run.job.data, validation=self.halves[0])

    def records(self, part: Component) -> tuple[Records, Records]:
        """What its stages say of the calibration and the holdout split; made once, kept in the run."""
        seed = self.run.recipe.seed if self.division is None else self.division
        return self.records_on(part, self.run.job.data.validation).parted(seed)

    def records_on(self, part: Component, split: Split, keep: bool = True) -> Records:
        """What its stages say of a split; `keep`: in the run, to be read when asked again."""
        run, folder = self.run, self.folder / RECORDS if keep else None
        return cached_records(part, split, run.job.compute, folder, run.recipe.search.batch_size)

    def _entries(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(entry for entry in self.folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))

    def _is_of_this_half(self, folder: Path) -> bool:
        """Whether a policy is kept there for a network whose epoch is, or was, chosen on this calibration split.

        A record that does not say was made when splits were drawn example by example.
        """
        if not (folder / POLICY).is_file():
            return False
        half = self.halves[0]
        return bool(read_json(folder / POLICY).get(HALF, half.digest if half.groups is None else None) == half.digest)

    def _member(self, name: str, model: torch.nn.Module, origin: str) -> NetworkComponent:
        dense = self.run.job
        macs, shape = macs_of(model, dense.trace.example), tuple(dense.data.input_shape)
        return NetworkComponent(name, model, macs, dense.source, shape, origin, dense.normalisation)

    def _kept(self, name: str) -> NetworkComponent:
        return self._member(name, self.run.job.compute.place(load_network(self.folder / name)), "retarget")

    def _train(self, name: str) -> None:
        """Find the policy of a cap, train its network and put it in place, going on where an earlier try ended."""
        run, dense = self.run, self.run.job
        working = self.folder / f".{name}"
        policy = self._policy(name, working)
        model = dense.measure.realise(policy).eval()
        start = dense.measure.evaluate_whole(model, self.splits.validation).accuracy
        done = dense.finetune(
            model, start=start, data=self.splits, checkpoint=working / CHECKPOINT, title=f"fine-tune {name}",
            progress=self.progress,
        )  # fmt: skip
        save_release(working, model, dense)
        after = done.best_accuracy if done.accuracies else start
        costs = dense.trace.costs_of(policy)
        record: dict[str, Any] = {
            "run": os.path.relpath(run.folder, self.folder / name),
            "policy": policy_table(dense.space.names, policy),
            "costs": costs,
            "budgets": dense.trace.held((parse_budget(name),), policy),
            "fit_accuracy_before_finetune": start,
            "fit_accuracy": after,
            HALF: self.halves[0].digest,
        }
        write_json(working / POLICY, record)
        (working / CHECKPOINT).unlink(missing_ok=True)
        shutil.rmtree(self.folder / name, ignore_errors=True)  # of another calibration split
        os.replace(working, self.folder / name)
        said = f"{start:.2%} before fine-tuning, {after:.2%} after, on the calibration split"
        self.progress.say(f"{name}: {format_macs(costs['macs'])}, {said}")

    def _policy(self, name: str, working: Path) -> NDArray[np.int64]:
        """The (d,) policy of a cap; the one of an earlier try, so that its checkpoint still fits."""
        space = self.run.job.space
        if self._is_of_this_half(working):
            kept = read_json(working / POLICY).get("policy", {})
            if set(kept) == set(space.names):
                return np.array([kept[each] for each in space.names], dtype=np.int64)
        shutil.rmtree(working, ignore_errors=True)
        self.progress.stage(f"measure the best candidates for {name}", 1)
        policy = self.run.retarget(name).policy
        write_json(working / POLICY, {"policy": policy.kept, HALF: self.halves[0].digest})
        return policy.array


def useful_caps(limits: AbsoluteConstraints, dense_macs: float) -> list[tuple[float, bool]]:
    """Caps in multiply-adds, the most useful first, each with whether it must be met closely.

    Under a mean budget, the static network that may cost just that, then savers below it and a network above it; where
    no example may cost more than a cap, what stands under this cap too.
    """
    asked: list[tuple[float, bool]] = []
    if limits.mean_cost is not None:
        asked += [(step * limits.mean_cost, step == 1) for step in sorted(STEPS, key=lambda step: abs(math.log(step)))]
    else:
        asked += [(step * dense_macs, False) for step in OPEN_STEPS]
    if limits.max_cost is not None:
        asked = [(0.8 * limits.max_cost, False), *asked]
        if limits.mean_cost is None:
            asked.insert(0, (limits.max_cost, True))
        asked = [(cap, exact) for cap, exact in asked if cap <= limits.max_cost]
    return [(cap, exact) for cap, exact in asked if cap < NEAR * dense_macs]


def share_name(share: float) -> str:
    """A share of the dense network's multiply-adds as a budget, rounded down: 0.30004 -> "30%"."""
    return f"{math.floor(share * 1000 + 1e-6) / 10:g}%"
