"""Takes all labels that a comparison needs, cheap ones and long ones, and goes on where it stopped."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amc.bench.deadline import Deadline, Paused, PausingProgress, Unfinished
from amc.bench.objectives.kinds import JUDGED, JUDGES, Distance, Kind, Labeller, looked_at, parse_kinds
from amc.bench.objectives.policies import chosen_policies, mean_ranks
from amc.bench.objectives.store import LabelStore
from amc.bench.objectives.verdict import found_for_cap, verdict
from amc.cost.budget import Budget
from amc.job.dense import Dense, prepare
from amc.job.recipe import Recipe
from amc.study.selection import unreachable
from amc.system.errors import ModelError, UsageError
from amc.system.progress import Progress, Silent
from amc.train.training import train
from amc_search import CapUnreachable

FEWEST = 6  # policies: fewer order nothing
REPEATED = 8  # policies, at least, that are fine-tuned once more for each repeat
SHARE = 1 / 3  # of the policies, where that is more
WRECKED = 1e3  # loss and distance, nats, of a network whose outputs are not finite

Policy = NDArray[np.int64]


@dataclass(frozen=True)
class Wanted:
    """What is compared.

    Attributes:
        caps: name -> budgets that all hold.
        policies: for each cap.
        epochs: of the long fine-tune.
        repeats: seeds of it; the second and later ones for some policies only.
    """

    caps: dict[str, tuple[Budget, ...]]
    kinds: tuple[Kind, ...]
    policies: int
    epochs: float
    repeats: int

    @classmethod
    def of(cls, caps: dict[str, tuple[Budget, ...]], kinds: str, policies: int, epochs: float, repeats: int) -> Wanted:
        """Raises `UsageError` where a number or a kind is against its rule."""
        if policies < FEWEST:
            raise UsageError(f"labels are compared on at least {FEWEST} policies, but {policies} are asked for")
        if not (math.isfinite(epochs) and epochs > 0):
            raise UsageError(
                f"the long fine-tune must have some epochs, a finite number, but has {epochs:g}; give --epochs"
            )
        return cls(caps, parse_kinds(kinds), policies, epochs, repeats)

    @property
    def repeated(self) -> int:
        """How many policies are fine-tuned with more than one seed."""
        return min(self.policies, max(REPEATED, round(SHARE * self.policies)))

    def seeds(self, policies: int) -> list[range]:
        """The seeds of each policy's long fine-tunes, where a cap has so many policies."""
        again = {int(i) for i in np.linspace(0, policies - 1, self.repeated).round()}
        return [range(self.repeats if index in again else 1) for index in range(policies)]

    def labels(self, policies: int) -> int:
        """How many labels are compared at a cap that has so many policies; a plan's own are not counted."""
        return policies * len(self.kinds) + sum(map(len, self.seeds(policies)))


def bench_labels(recipe: Recipe, wanted: Wanted, out: Path, minutes: float, progress: Progress) -> dict[str, Any]:
    """Judge cheap labels by long fine-tunes of the same policies; see `amc.bench.objectives.verdict` for what is told.

    Every label is kept in `out` once it is taken, a fine-tune after every epoch. The test split is not touched.

    Raises:
        Unfinished: the minutes are over; the same call goes on.
        BudgetUnreachable, RunError, StorageError: one line each.
    """
    work = _Work(recipe, wanted, out, Deadline(minutes), progress)
    try:
        caps = {name: work.cap(name, budgets) for name, budgets in wanted.caps.items()}
    except Paused:
        raise Unfinished(
            f"{minutes:g} minutes are over and {work.done} of {work.total} labels are done (taken now, those for "
            f"choosing policies among them: {work.taken}); the same command goes on"
        ) from None
    return {
        "recipe": recipe.name,
        "model": recipe.model.name,
        "data": recipe.data.name,
        "epochs": wanted.epochs,
        "policies": wanted.policies,
        "repeats": wanted.repeats,
        "dense": {"accuracy": work.distance.reference.accuracy, "loss": work.distance.reference.loss},
        "caps": caps,
        "winner": verdict(list(caps.values())),
        "folder": str(out),
    }


class _Work:
    """One comparison at work.

    Attributes:
        total: labels to compare.
        done: of these, now or earlier.
        taken: now, those for choosing policies with them.
    """

    def __init__(self, recipe: Recipe, wanted: Wanted, out: Path, deadline: Deadline, progress: Progress) -> None:
        self.recipe, self.wanted, self.out, self.deadline, self.progress = recipe, wanted, out, deadline, progress
        self.total = len(wanted.caps) * wanted.labels(wanted.policies)
        self.done = self.taken = 0
        folding = recipe.recovery.model_copy(update={"fold": True})  # kinds differ in it; the long ones are as asked
        self.dense: Dense = prepare(recipe.model_copy(update={"recovery": folding}), out, progress)
        self.store = LabelStore(out / "labels.db", self._conditions)
        self._labellers: dict[str, Labeller] = {}

    @property
    def _conditions(self) -> dict[str, Any]:
        """All that labels of one name depend on."""
        protocol = asdict(self.dense.protocol())
        del protocol["training"]
        return {
            **protocol,
            "recovery": self.recipe.recovery.model_dump(),
            "finetune": self.recipe.finetune.model_dump(exclude={"epochs", "uniform"}),
            "loss": self.dense.task.loss_fingerprint,
        }

    @cached_property
    def distance(self) -> Distance:
        return Distance(self.dense)

    def cap(self, name: str, budgets: tuple[Budget, ...]) -> dict[str, Any]:
        """What is found for one cap, once all its labels are taken."""
        policies = self._plan(name, budgets)
        self.total += self.wanted.labels(len(policies)) - self.wanted.labels(self.wanted.policies)
        kinds = self.wanted.kinds
        told = self._told(f"{name}: cheap labels", len(kinds) * len(policies))
        cheap = [  # kinds in turn, so that what else runs on the machine delays them all alike
            {kind.name: self._labels(kind, policy, told) for kind in kinds} for policy, _ in policies
        ]
        seeds = self.wanted.seeds(len(policies))
        told = self._told(f"{name}: long fine-tunes", sum(map(len, seeds)))
        long: list[list[dict[str, Any]]] = [[] for _ in policies]
        for seed in range(self.wanted.repeats):
            for index, (policy, _) in enumerate(policies):
                if seed in seeds[index]:
                    long[index].append(self._long(policy, seed, told))
        dense = self.dense.dense_costs(budgets)
        shares = [
            {b.unit: self.dense.costs_of(policy, budgets)[b.unit] / dense[b.unit] for b in budgets}
            for policy, _ in policies
        ]
        rows = [
            {"policy": policy.tolist(), "origin": origin, "shares": share, "long": of, "cheap": taken}
            for (policy, origin), share, of, taken in zip(policies, shares, long, cheap, strict=True)
        ]  # fmt: skip
        return found_for_cap(name, rows)

    def _told(self, title: str, labels: int) -> Callable[[], None]:
        """A stage, and what counts a label of it as done."""
        stage = self.progress.stage(title, labels)

        def told() -> None:
            self.done += 1
            stage.advance()

        return told

    def _plan(self, name: str, budgets: tuple[Budget, ...]) -> list[tuple[Policy, str]]:
        known = self.store.plan(name, self.wanted.policies)
        if known is None:
            self.progress.say(f"{name}: choosing policies, half of them good ones, by the labels {JUDGED}")
            caps = self.dense.caps(budgets)
            try:
                known = chosen_policies(self.dense.space, caps, self.wanted.policies, self.recipe.seed, self._judge)
            except CapUnreachable as error:
                raise unreachable(error) from None
            if len(known) < FEWEST:
                raise UsageError(f"{name} must leave {FEWEST} policies to choose from, but leaves {len(known)}")
            self.store.keep_plan(name, self.wanted.policies, known)
        return known

    def _judge(self, policies: Policy) -> NDArray[np.float64]:
        losses = [np.array([self._labels(kind, policy)["loss"] for policy in policies]) for kind in JUDGES]
        return mean_ranks(*(-loss for loss in losses))

    def _labels(self, kind: Kind, policy: Policy, told: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """The labels of a kind, from the store or taken now."""
        record = self.store.label(policy, kind.name)
        if record is None:
            self.deadline.check()
            start = perf_counter()
            try:
                record = self._labeller(kind)(policy)
            except ModelError as error:  # a network wrecked by this kind of recovery stands behind all others
                seconds = perf_counter() - start
                record = {
                    "accuracy": 0.0,
                    "loss": WRECKED,
                    "distance": WRECKED,
                    "seconds": seconds,
                    "failure": str(error),
                }
            self._keep(policy, kind.name, record)
        told()
        return record

    def _labeller(self, kind: Kind) -> Labeller:
        if kind.name not in self._labellers:
            recovery = kind.recovery(self.recipe.recovery)
            self._labellers[kind.name] = Labeller(self.dense, recovery, self.distance)
            self._labellers[kind.name].measure.lessons.prepare()  # once a study: no part of a label's time
        return self._labellers[kind.name]

    @cached_property
    def _start(self) -> Labeller:
        """Gives the networks that long fine-tunes begin with: recovered as the recipe says."""
        return Labeller(self.dense, self.recipe.recovery, self.distance)

    def _long(self, policy: Policy, seed: int, told: Callable[[], None]) -> dict[str, Any]:
        """What a long fine-tune comes to: of the weights that `amc compress` would release, on the validation split."""
        kind = f"{self.wanted.epochs:g} epochs"
        record = self.store.label(policy, kind, seed)
        if record is None:
            self.deadline.check()
            name = hashlib.sha256(f"{policy.tolist()} {kind} {seed}".encode()).hexdigest()[:16]
            checkpoint = self.out / f"checkpoint-{name}.pt"
            record = self._finetuned(policy, seed, checkpoint)
            self._keep(policy, kind, record, seed)
            checkpoint.unlink(missing_ok=True)
        told()
        return record

    def _finetuned(self, policy: Policy, seed: int, checkpoint: Path) -> dict[str, Any]:
        dense, measure = self.dense, self._start.measure
        model = measure.realise(policy)
        schedule = self.recipe.finetune.model_copy(update={"epochs": self.wanted.epochs})
        start = perf_counter()
        done = train(
            model, dense.splits, schedule, dense.compute, seed=self.recipe.seed + seed, teacher=dense.model,
            checkpoint=checkpoint, progress=PausingProgress(Silent(), self.deadline), task=dense.task,
        )  # fmt: skip
        seconds = max(done.seconds, perf_counter() - start)  # what was done before an interrupt counts
        return {**looked_at(model, measure, self.distance), "seconds": seconds}

    def _keep(self, policy: Policy, kind: str, record: dict[str, Any], seed: int = 0) -> None:
        self.store.keep(policy, kind, record, seed)
        self.taken += 1
