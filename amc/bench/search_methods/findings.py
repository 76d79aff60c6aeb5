"""All that a comparison has found so far, read back from its folder, and its figures as one JSON-able record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from amc.bench.search_methods.bench_recipe import OURS, UNIFORM, BenchRecipe
from amc.bench.search_methods.context import objective_value
from amc.bench.search_methods.finals import Final
from amc.bench.search_methods.orders import Order
from amc.bench.search_methods.searches import FRONT, Search, Spec, front_caps, specs_of
from amc.bench.statistics import Sample, interval, paired, places, spread

Row = dict[str, Any]
LeftOut = dict[str, dict[str, str]]  # method -> cap -> why it does not run there


@dataclass(frozen=True)
class Findings:
    """What there is.

    Attributes:
        searches: the finished ones.
        orders: of our predictor.
        finals: cap -> method -> seed of the search -> its winner's finals, one an order of the data.
        drawn: cap -> one list a random policy, likewise.
        dense: the dense network on the test split.
        left_out: what cannot run.
        unjudged: fine-tunes still missing, of the winners and the random policies that there are.
    """

    recipe: BenchRecipe
    searches: list[Search]
    orders: list[Order] = field(default_factory=list)
    finals: dict[str, dict[str, dict[int, list[Final]]]] = field(default_factory=dict)
    drawn: dict[str, list[list[Final]]] = field(default_factory=dict)
    dense: Final | None = None
    left_out: LeftOut = field(default_factory=dict)
    unjudged: int = 0

    @property
    def wanted(self) -> list[Spec]:
        """All searches of the recipe, but for those that cannot run."""
        return [spec for spec in specs_of(self.recipe) if spec.cap not in self.left_out.get(spec.method, {})]

    def bests(self, cap: str, trials: int) -> dict[str, Sample]:
        """Method -> best objective value under a cap by seed, of the searches made for it."""
        searches = self.of(cap, trials)
        return {
            method: _bests([one for one in searches if one.spec.method == method], cap)
            for method in dict.fromkeys(one.spec.method for one in searches)
        }

    def of(self, cap: str, trials: int) -> list[Search]:
        """The searches made for a cap."""
        return [one for one in self.searches if (one.spec.cap, one.spec.trials) == (cap, trials)]

    def front_bests(self, cap: str) -> Sample:
        """Best objective value under a cap by seed, of our studies that serve several."""
        return _bests([one for one in self.searches if one.spec.cap == FRONT], cap)


def _bests(searches: Sequence[Search], cap: str) -> Sample:
    """Of one method's searches; it is deterministic where several seeds measured the very same policies in turn."""
    fixed = len(searches) > 1 and all(one.policies == searches[0].policies for one in searches)
    return Sample({one.spec.seed: one.best(cap) for one in searches}, fixed)


def is_ours(method: str) -> bool:
    """Whether it is our method, or that without one of its parts."""
    return method == OURS or method.startswith(f"{OURS}-")


def figures(found: Findings) -> Row:
    """Every figure with its interval over the seeds; differences are ours minus the other, in pairs."""
    recipe = found.recipe
    budgets = [recipe.trials, *([recipe.long] if recipe.long else [])]
    return {
        "searches": {
            cap: {str(trials): _search_rows(found, cap, trials) for trials in budgets} for cap in recipe.cap_names
        },
        "finals": {cap: _final_rows(found, cap) for cap in recipe.cap_names if cap in found.finals},
        "orders": _order_rows(found.orders),
        "front": {cap: _front_row(found, cap) for cap in front_caps(recipe)},
    }


def _search_rows(found: Findings, cap: str, trials: int) -> dict[str, Row]:
    bests = found.bests(cap, trials)
    place = places({method: of.interval.mean for method, of in bests.items()})
    rows: dict[str, Row] = {}
    for method, sample in bests.items():
        runs = [one for one in found.of(cap, trials) if one.spec.method == method]
        rows[method] = {
            **_sampled(sample),
            "place": place[method],
            "best": {str(seed): best for seed, best in sample.by_seed.items()},
            "accuracy": float(np.mean([one.winner_accuracy() for one in runs])),
            "trials": float(np.mean([one.price + len(one.values) for one in runs])),
            "trial_seconds": float(np.mean([sum(one.trial_seconds) for one in runs])),
            "own_seconds": float(np.mean([one.own_seconds[-1] for one in runs])),
            "ours_minus": _difference(bests, method),
        }
    return rows


def _difference(bests: Mapping[str, Sample], method: str) -> Row | None:
    if method == OURS or OURS not in bests:
        return None
    found = paired(bests[OURS], bests[method])
    return asdict(found) if found else None


def _final_rows(found: Findings, cap: str) -> Row:
    """Scores on test by method: the mean over data orders of each winner, then over winners."""
    policies, noise = spread(scores(found, found.drawn.get(cap, [])))
    means = final_means(found, cap)
    rows: dict[str, Row] = {}
    for method, finals in found.finals[cap].items():
        rows[method] = {
            **_sampled(means[method]),
            "test_accuracy": _mean_of(finals, "test_accuracy", means[method].fixed),
            "test_loss": _mean_of(finals, "test_loss", means[method].fixed),
            "seconds": float(np.mean([final.seconds for of in finals.values() for final in of])),
            "ours_minus": _difference(means, method),
        }
    return {"methods": rows, "spread_of_random_policies": policies, "noise_of_data_order": noise}


def final_means(found: Findings, cap: str) -> dict[str, Sample]:
    """Method -> mean score over data orders by seed of the search."""
    bests = found.bests(cap, found.recipe.trials)
    means = {}
    for method, finals in found.finals[cap].items():
        by_seed = {seed: float(np.mean(of)) for seed, of in zip(finals, scores(found, finals.values()), strict=True)}
        means[method] = Sample(by_seed, method == UNIFORM or (method in bests and bests[method].fixed))
    return means


def scores(found: Findings, finals: Iterable[Sequence[Final]]) -> list[list[float]]:
    """What finals are compared by, higher is better, one list a policy."""
    judge = found.recipe.finetune_judge
    return [[objective_value(judge, final.test_accuracy, final.test_loss) for final in of] for of in finals]


def _mean_of(finals: Mapping[int, Sequence[Final]], what: str, fixed: bool) -> Row:
    by_seed = {seed: float(np.mean([getattr(final, what) for final in of])) for seed, of in finals.items()}
    return asdict(Sample(by_seed, fixed).interval)


def _order_rows(orders: Sequence[Order]) -> Row:
    rows: Row = {}
    for cap, trials in dict.fromkeys((one.spec.cap, one.spec.trials) for one in orders):
        mine = [one for one in orders if (one.spec.cap, one.spec.trials) == (cap, trials)]
        rows.setdefault(cap, {})[str(trials)] = {
            "kendall": asdict(interval([one.kendall for one in mine])),
            "spearman": asdict(interval([one.spearman for one in mine])),
            "policies": float(np.mean([len(one.values) for one in mine])),
        }
    return rows


def _front_row(found: Findings, cap: str) -> Row:
    """Our one study's best under a cap beside those of studies made for it alone."""
    assert found.recipe.front is not None
    ours = found.front_bests(cap)
    bests = found.bests(cap, found.recipe.front.trials)
    others = {method: of for method, of in bests.items() if not is_ours(method)}
    row: Row = {"ours": _sampled(ours) if ours.by_seed else None, "others": {}}
    for method, of in others.items():
        difference = paired(ours, of)
        row["others"][method] = {
            **_sampled(of),
            "ours_minus": asdict(difference) if difference else None,
        }
    return row


def _sampled(sample: Sample) -> Row:
    """`deterministic`: n is 1, and in differences this one search stands beside every seed of the other side."""
    return {**asdict(sample.interval), "deterministic": sample.fixed}
