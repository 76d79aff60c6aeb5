"""One search of one method: run or replayed, and written down when it is finished.

A search that was cut off is run again from its beginning: methods are deterministic, so it asks for the same policies,
which stand in the store, and goes on with the first one that does not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amc import RunError, sensitivity_price, write_json
from amc.bench.search_methods.bench_recipe import OURS, BenchRecipe, cap_name
from amc.bench.search_methods.context import Context, Policy
from amc_search import Cap, is_feasible
from amc_search.baselines.problem import Curves, Method, Problem, run

FRONT = "front"  # in the place of a cap: the one study of ours for all caps of the front


@dataclass(frozen=True)
class Spec:
    """Which search it is."""

    method: str
    cap: str
    trials: int
    seed: int

    def path(self, folder: Path) -> Path:
        return folder / "searches" / self.method / f"{self.cap}-{self.trials}-{self.seed}.json"


@dataclass(frozen=True)
class Search:
    """A finished search.

    Attributes:
        policies: in the order they were measured, n of them.
        values: (n,) their objective values.
        accuracies: (n,) theirs.
        trial_seconds: (n,) what each took when it was measured, by whatever method asked first.
        price: trials of its budget that the search gave for the sensitivity, before its first one.
        own_seconds: (n + 1,) wall time of the method itself before each trial and at the end.
        fits: cap -> (n,) whether each policy is under it.
    """

    spec: Spec
    policies: list[list[int]]
    values: list[float]
    accuracies: list[float]
    trial_seconds: list[float]
    own_seconds: list[float]
    fits: dict[str, list[bool]]
    price: int = 0

    def best_so_far(self, cap: str | None = None) -> NDArray[np.float64]:
        """(n,) the best objective value under a cap after each trial; 0 before there is one under it."""
        fits = np.array(self.fits[cap or self.spec.cap], dtype=np.bool_)
        best: NDArray[np.float64] = np.maximum.accumulate(np.where(fits, self.values, 0.0))
        return best

    def best(self, cap: str | None = None) -> float:
        """The best objective value under a cap; 0 where no policy is."""
        return float(self.best_so_far(cap)[-1]) if self.values else 0.0

    def winner(self, cap: str | None = None) -> Policy | None:
        """The first policy (d,) with that value; None where no policy is under the cap."""
        place = self._place(cap or self.spec.cap)
        return None if place is None else np.array(self.policies[place], dtype=np.int64)

    def winner_accuracy(self, cap: str | None = None) -> float:
        """The winner's accuracy on the validation split; 0 where no policy is under the cap."""
        place = self._place(cap or self.spec.cap)
        return 0.0 if place is None else self.accuracies[place]

    def _place(self, cap: str) -> int | None:
        fits = self.fits[cap]
        return int(np.argmax(np.where(fits, self.values, -1.0))) if any(fits) else None

    @property
    def seconds(self) -> NDArray[np.float64]:
        """(n,) wall time from the start until the end of each trial: the method's own, and the trials'."""
        whole: NDArray[np.float64] = np.cumsum(self.trial_seconds) + np.array(self.own_seconds[:-1])
        return whole


def read_search(spec: Spec, folder: Path) -> Search | None:
    """The finished search, if it is. Raises `RunError` where its file is broken."""
    path = spec.path(folder)
    if not path.is_file():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Search(**{**record, "spec": Spec(**record["spec"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} must be a finished search, but: {error}; delete it and run the same again") from None


@dataclass
class _Recorder:
    """The objective value that a search sees, with the times of both sides."""

    context: Context
    tell: Callable[[], None]
    accuracies: list[float] = field(default_factory=list)
    trial_seconds: list[float] = field(default_factory=list)
    own_seconds: list[float] = field(default_factory=list)
    started: float = field(default_factory=perf_counter)
    elsewhere: float = 0.0

    def __call__(self, policy: Policy) -> float:
        before = perf_counter()
        self.own_seconds.append(before - self.started - self.elsewhere)
        found = self.context.measured(policy)
        self.accuracies.append(found.accuracy)
        self.trial_seconds.append(found.seconds)
        self.tell()
        self.elsewhere += perf_counter() - before
        return self.context.value_of(found)

    def curves(self) -> Curves:
        """Of each group cut alone, measured for whoever asks first; their time counts as every search's own."""
        before = perf_counter()
        found = self.context.sensitivity
        self.started -= found.seconds - (perf_counter() - before)
        return found.curves

    def finish(self) -> None:
        self.own_seconds.append(perf_counter() - self.started - self.elsewhere)


def search(
    spec: Spec, method: Method, context: Context, folder: Path, tell: Callable[[], None] = lambda: None
) -> Search:
    """Run one search to its end and write it down; `tell` is called after each trial.

    Raises:
        Paused: the time is over; the trials so far are in the store.
    """
    names = [spec.cap] if spec.cap != FRONT else front_caps(context.recipe)
    recorder = _Recorder(context, tell)
    problem = Problem(
        context.job.space, loosest([context.caps[name] for name in names]), recorder,
        trials=spec.trials, seed=spec.seed, dense_value=context.dense_value,
        curves=recorder.curves, price=sensitivity_price(context.job.measure, context.job.recipe.search),
    )  # fmt: skip
    run(method, problem)
    recorder.finish()
    policies = problem.policies
    found = Search(
        spec, policies.tolist(), problem.values.tolist(), recorder.accuracies, recorder.trial_seconds,
        recorder.own_seconds,
        {name: is_feasible(policies, context.caps[name]).tolist() for name in names},
        problem.spent,
    )  # fmt: skip
    write_json(spec.path(folder), asdict(found))
    return found


def front_caps(recipe: BenchRecipe) -> list[str]:
    """The names of the caps that one study serves."""
    return [cap_name(cap) for cap in recipe.front.caps] if recipe.front else []


def loosest(several: list[tuple[Cap, ...]]) -> tuple[Cap, ...]:
    """The largest limit of each unit: what is under any of several caps is under this one, if their units agree."""
    units = dict.fromkeys(cap.cost.unit for caps in several for cap in caps)
    return tuple(
        max((cap for caps in several for cap in caps if cap.cost.unit == unit), key=lambda cap: cap.limit)
        for unit in units
    )


def specs_of(recipe: BenchRecipe, only: list[str] | None = None) -> list[Spec]:
    """All searches, in the order of work: every method with a seed before any with the next, short ones first."""
    caps, front = recipe.cap_names, recipe.front
    wanted = [Spec(m, c, recipe.trials, s) for s in range(recipe.seeds) for c in caps for m in recipe.methods]
    if front is not None:
        for seed in range(front.seeds):
            wanted.append(Spec(OURS, FRONT, front.trials, seed))
            wanted += [Spec(m, c, front.trials, seed) for c in front_caps(recipe) for m in front.methods]
    if recipe.long:
        methods = recipe.long_methods or recipe.methods
        wanted += [Spec(m, c, recipe.long, s) for s in range(recipe.long_seeds) for c in caps for m in methods]
    return [spec for spec in dict.fromkeys(wanted) if not only or spec.method in only]
