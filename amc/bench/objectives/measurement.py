"""Takes all trials and long fine-tunes that a comparison needs, and goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amc import (
    Budget,
    Evaluation,
    Job,
    Measure,
    ModelError,
    Progress,
    Recipe,
    RunError,
    Silent,
    UsageError,
    open_job,
)  # fmt: skip
from amc.bench.caps import reachable_caps
from amc.bench.deadline import Deadline, Paused, PausingProgress, Unfinished
from amc.bench.objectives.policies import chosen_policies, mean_ranks
from amc.bench.objectives.trial_kinds import JUDGED, JUDGES, Kind, parse_kinds
from amc.bench.objectives.verdict import found_for_cap, verdict
from amc.bench.store import Store

FEWEST = 6  # policies: fewer order nothing
REPEATED = 8  # policies, at least, that are fine-tuned once more for each repeat
SHARE = 1 / 3  # of the policies, where that is more
DEGENERATE = 1e3  # loss, nats, of a network whose outputs are not finite

Policy = NDArray[np.int64]
Record = dict[str, Any]


@dataclass(frozen=True)
class ComparisonDesign:
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
    def of(
        cls, caps: dict[str, tuple[Budget, ...]], kinds: str, policies: int, epochs: float, repeats: int
    ) -> ComparisonDesign:
        """Raises `UsageError` where a number or a kind is against its rule."""
        if policies < FEWEST:
            raise UsageError(f"objectives are compared on at least {FEWEST} policies, but {policies} are asked for")
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

    def networks(self, policies: int) -> int:
        """How many networks are compared at a cap that has so many policies; those of a plan are not counted."""
        return policies * len(self.kinds) + sum(map(len, self.seeds(policies)))


def bench_objectives(
    recipe: Recipe, wanted: ComparisonDesign, out: Path, minutes: float, progress: Progress
) -> dict[str, Any]:
    """Judge kinds of trials by long fine-tunes of the same policies; see `amc.bench.objectives.verdict` for the result.

    Every trial is kept in `out` once it is done, a fine-tune after every epoch. The test split is not touched.

    Raises:
        Unfinished: the minutes are over; the same call goes on.
        BudgetUnreachable, RunError, StorageError: one line each.
    """
    with Store(out) as store:
        work = _Work(recipe, wanted, out, store, Deadline(minutes), progress)
        try:
            caps = {name: work.cap(name, budgets) for name, budgets in wanted.caps.items()}
        except Paused:
            raise Unfinished(
                f"{minutes:g} minutes are over and {work.done} of {work.total} networks are measured (now, those for "
                f"choosing policies among them: {work.taken}); the same command goes on"
            ) from None
        reference = work.reference
    return {
        "recipe": recipe.name,
        "model": recipe.model.name,
        "data": recipe.data.name,
        "epochs": wanted.epochs,
        "policies": wanted.policies,
        "repeats": wanted.repeats,
        "dense": {"accuracy": reference.accuracy, "loss": reference.loss},
        "caps": caps,
        "winner": verdict(list(caps.values())),
        "folder": str(out),
    }


class _Work:
    """One comparison at work.

    Attributes:
        total: networks to compare.
        done: of these, now or earlier.
        taken: now, those for choosing policies with them.
    """

    def __init__(
        self, recipe: Recipe, wanted: ComparisonDesign, out: Path, store: Store, deadline: Deadline, progress: Progress
    ) -> None:
        """Raises `RunError` where the store holds what was measured under other conditions."""
        self.recipe, self.wanted, self.out, self.store = recipe, wanted, out, store
        self.deadline, self.progress = deadline, progress
        self.total = len(wanted.caps) * wanted.networks(wanted.policies)
        self.done = self.taken = 0
        folding = recipe.recovery.model_copy(update={"fold": True})  # kinds differ in it; the long ones are as asked
        self.job: Job = open_job(recipe.model_copy(update={"recovery": folding}), out, progress)
        self._measures: dict[str, Measure] = {}
        self._check_conditions()

    def _check_conditions(self) -> None:
        """All that a measurement depends on must be as it was before."""
        protocol = asdict(self.job.measure.protocol())
        del protocol["training"]
        conditions = {
            **protocol,
            "recovery": self.recipe.recovery.model_dump(),
            "finetune": self.recipe.finetune.model_dump(exclude={"epochs", "uniform"}),
            "loss": self.job.task.loss_fingerprint,
        }
        for name, value in json.loads(json.dumps(conditions)).items():
            held = self.store.get("condition", name)
            if held is None:
                self.store.put("condition", name, value=value)
            elif held != value:
                raise RunError(
                    f"networks compare only if measured alike, but in {self.out} {name} is {json.dumps(held)[:60]} and "
                    f"here {json.dumps(value)[:60]}; give another --out"
                )

    @cached_property
    def reference(self) -> Evaluation:
        """The dense network on the validation split."""
        return self.job.measure.evaluate(self.job.model)

    def cap(self, name: str, budgets: tuple[Budget, ...]) -> dict[str, Any]:
        """What is found for one cap, once all its networks are measured."""
        policies = self._plan(name, budgets)
        self.total += self.wanted.networks(len(policies)) - self.wanted.networks(self.wanted.policies)
        kinds = self.wanted.kinds
        advance = self._stage(f"{name}: trials", len(kinds) * len(policies))
        trials = [  # kinds in turn, so that what else runs on the machine delays them all alike
            {kind.name: self._trial(kind, policy, advance) for kind in kinds} for policy, _ in policies
        ]
        seeds = self.wanted.seeds(len(policies))
        advance = self._stage(f"{name}: long fine-tunes", sum(map(len, seeds)))
        long: list[list[Record]] = [[] for _ in policies]
        for seed in range(self.wanted.repeats):
            for index, (policy, _) in enumerate(policies):
                if seed in seeds[index]:
                    long[index].append(self._long(policy, seed, advance))
        dense = self.job.trace.dense_costs(budgets)
        shares = [
            {b.unit: self.job.trace.costs_of(policy, budgets)[b.unit] / dense[b.unit] for b in budgets}
            for policy, _ in policies
        ]
        rows = [
            {"policy": policy.tolist(), "origin": origin, "shares": share, "long": of, "trials": taken}
            for (policy, origin), share, of, taken in zip(policies, shares, long, trials, strict=True)
        ]  # fmt: skip
        return found_for_cap(name, rows)

    def _stage(self, title: str, networks: int) -> Callable[[], None]:
        """A stage, and what counts a network of it as done."""
        stage = self.progress.stage(title, networks)

        def advance() -> None:
            self.done += 1
            stage.advance()

        return advance

    def _plan(self, name: str, budgets: tuple[Budget, ...]) -> list[tuple[Policy, str]]:
        key = name, self.wanted.policies
        known = self.store.get("plan", *key)
        if known is None:
            self.progress.say(f"{name}: choosing policies, half of them good ones, by the trials {JUDGED}")
            caps = reachable_caps(self.job, budgets)
            chosen = chosen_policies(self.job.space, caps, self.wanted.policies, self.recipe.seed, self._judge)
            if len(chosen) < FEWEST:
                raise UsageError(f"{name} must leave {FEWEST} policies to choose from, but leaves {len(chosen)}")
            known = [[policy.tolist(), origin] for policy, origin in chosen]
            self.store.put("plan", *key, value=known)
        return [(np.array(policy, dtype=np.int64), origin) for policy, origin in known]

    def _judge(self, policies: Policy) -> NDArray[np.float64]:
        losses = [np.array([self._trial(kind, policy)["loss"] for policy in policies]) for kind in JUDGES]
        return mean_ranks(*(-loss for loss in losses))

    def _trial(self, kind: Kind, policy: Policy, advance: Callable[[], None] = lambda: None) -> Record:
        """Accuracy, calibrated loss and seconds of a policy after a kind of recovery, from the store or measured."""
        key = policy.tolist(), kind.name, 0
        record: Record | None = self.store.get("network", *key)
        if record is None:
            self.deadline.check()
            measure = self._measure(kind)
            start = perf_counter()
            try:
                trial = measure(policy)
                record = {"accuracy": trial.accuracy, "loss": trial.loss, "seconds": sum(trial.seconds.values())}
            except ModelError as error:  # a network that this recovery made degenerate stands behind all others
                seconds = perf_counter() - start
                record = {"accuracy": 0.0, "loss": DEGENERATE, "seconds": seconds, "failure": str(error)}
            self._keep(key, record)
        advance()
        return record

    def _measure(self, kind: Kind) -> Measure:
        if kind.name not in self._measures:
            measure = self.job.measure.with_settings(recovery=kind.recovery(self.recipe.recovery))
            measure.short_distillation.prepare()  # once a study: no part of a trial's time
            self._measures[kind.name] = measure
        return self._measures[kind.name]

    @cached_property
    def _start(self) -> Measure:
        """Gives the networks that long fine-tunes begin with: recovered as the recipe says."""
        return self.job.measure.with_settings(recovery=self.recipe.recovery)

    def _long(self, policy: Policy, seed: int, advance: Callable[[], None]) -> Record:
        """What a long fine-tune comes to on the validation split: of the weights that `amc compress` would release."""
        key = policy.tolist(), f"{self.wanted.epochs:g} epochs", seed
        record: Record | None = self.store.get("network", *key)
        if record is None:
            self.deadline.check()
            checkpoint = self.out / f"checkpoint-{hashlib.sha256(str(key).encode()).hexdigest()[:16]}.pt"
            record = self._finetuned(policy, seed, checkpoint)
            self._keep(key, record)
            checkpoint.unlink(missing_ok=True)
        advance()
        return record

    def _finetuned(self, policy: Policy, seed: int, checkpoint: Path) -> Record:
        model = self._start.realise(policy)
        schedule = self.recipe.finetune.model_copy(update={"epochs": self.wanted.epochs})
        seeded = self.recipe.model_copy(update={"seed": self.recipe.seed + seed, "finetune": schedule})
        start = perf_counter()
        done = replace(self.job, recipe=seeded).finetune(
            model, start=self._start.evaluate_whole(model).accuracy, checkpoint=checkpoint,
            progress=PausingProgress(Silent(), self.deadline),
        )  # fmt: skip
        seconds = max(done.seconds, perf_counter() - start)  # what was done before an interrupt counts
        found = self._start.evaluate(model)
        return {"accuracy": found.accuracy, "loss": found.loss, "seconds": seconds}

    def _keep(self, key: tuple[Any, ...], record: Record) -> None:
        self.store.put("network", *key, value=record)
        self.taken += 1
