"""What the product claims of its search, each held against the figures: met, not met, or not measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from amc.bench.contest.findings import Findings, final_means, is_ours, scores
from amc.bench.contest.recipe import OURS
from amc.bench.contest.searches import front_caps
from amc.bench.contest.statistics import Interval, interval, paired, spread

KENDALL = 0.8
Bests = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Goal:
    """A claim.

    Attributes:
        met: None where it was not measured.
        by_cap: what was found under each cap, in words.
    """

    claim: str
    met: bool | None
    by_cap: dict[str, str]

    @property
    def verdict(self) -> str:
        return {True: "met", False: "not met", None: "not measured"}[self.met]


def goals(found: Findings) -> list[Goal]:
    """All claims that the recipe puts to the test."""
    recipe = found.recipe
    wanted = [_short(found)]
    if recipe.long:
        wanted.append(_long(found))
    if recipe.winners_of:
        wanted.append(_after_finetune(found))
    if recipe.front is not None:
        wanted.append(_front(found))
    if recipe.rank:
        wanted.append(_order(found))
    return wanted


def goal_record(goal: Goal) -> dict[str, Any]:
    """A goal as `results.json` holds it."""
    return {**asdict(goal), "verdict": goal.verdict}


def _short(found: Findings) -> Goal:
    recipe = found.recipe
    claim = f"{recipe.trials} labels: ours better than every other with {recipe.trials}, under every cap"
    verdicts = {}
    for cap in recipe.cap_names:
        bests = found.bests(cap, recipe.trials)
        verdicts[cap] = _against_nearest(bests, _others(bests))
    return _together(claim, verdicts, lambda difference: difference.mean > 0)


def _long(found: Findings) -> Goal:
    recipe = found.recipe
    claim = f"ours with {recipe.trials} labels at least equal to the best other with {recipe.long}, under every cap"
    verdicts = {}
    for cap in recipe.cap_names:
        mine = {OURS: found.bests(cap, recipe.trials).get(OURS, {})}
        others = _others(found.bests(cap, recipe.long))
        verdicts[cap] = _against_best({OURS: mine[OURS]}, others)
    return _together(claim, verdicts, lambda difference: difference.mean >= 0)


def _after_finetune(found: Findings) -> Goal:
    claim = (
        "after an equal fine-tune, ours better on test where random policies spread more than the data's order does, "
        "never worse elsewhere"
    )
    by_cap, met = {}, []
    for cap in found.recipe.cap_names:
        if cap not in found.finals:
            continue
        means = final_means(found, cap)
        between, noise = spread(scores(found, found.strangers.get(cap, [])))
        matters = between is not None and noise is not None and between > noise
        name, difference = _against_nearest(means, _others(means))
        if difference is None:
            continue
        worst = [paired(means[OURS], of) for of in _others(means).values()]
        never_worse = all(one is None or (one.mean if one.high is None else one.high) >= 0 for one in worst)
        met.append(difference.mean > 0 if matters else never_worse)
        known = "" if between is None or noise is None else f"; spread {between:.4f}, noise {noise:.4f}"
        by_cap[cap] = f"{_words(name, difference)}{known}"
    complete = len(by_cap) == len(found.recipe.cap_names)
    return Goal(claim, all(met) if complete else None, by_cap)


def _front(found: Findings) -> Goal:
    assert found.recipe.front is not None
    trials, caps = found.recipe.front.trials, front_caps(found.recipe)
    claim = (
        f"one study of {trials} labels for {len(caps)} caps, each at least as good as {trials} labels of the best "
        "other for that cap alone"
    )
    verdicts = {cap: _against_best({OURS: found.front_bests(cap)}, _others(found.bests(cap, trials))) for cap in caps}
    return _together(claim, verdicts, lambda difference: difference.mean >= 0)


def _order(found: Findings) -> Goal:
    recipe, by_cap, met = found.recipe, {}, []
    for cap in recipe.cap_names:
        mine = [one.kendall for one in found.orders if (one.spec.cap, one.spec.trials) == (cap, recipe.trials)]
        if mine:
            mean = interval(mine)
            by_cap[cap] = f"Kendall {mean.mean:.2f}" + ("" if mean.half is None else f" ± {mean.half:.2f}")
            met.append(mean.mean >= KENDALL)
    complete = len(by_cap) == len(recipe.cap_names)
    claim = f"Kendall of our predictor on fresh random policies near each cap at least {KENDALL}"
    return Goal(claim, all(met) if complete else None, by_cap)


def _others(bests: Bests) -> Bests:
    return {method: of for method, of in bests.items() if not is_ours(method)}


def _against_nearest(bests: Bests, others: Bests) -> tuple[str, Interval | None]:
    """The other whose paired difference to ours is the smallest, and that difference."""
    differences = {method: paired(bests.get(OURS, {}), of) for method, of in others.items()}
    known = {method: one for method, one in differences.items() if one is not None}
    if not known:
        return "", None
    nearest = min(known, key=lambda method: known[method].mean)
    return nearest, known[nearest]


def _against_best(ours: Bests, others: Bests) -> tuple[str, Interval | None]:
    """The other with the best mean over its seeds, and ours minus it."""
    if not others or not ours[OURS]:
        return "", None
    best = max(others, key=lambda method: interval(list(others[method].values())).mean)
    return best, paired(ours[OURS], others[best])


def _together(
    claim: str, verdicts: Mapping[str, tuple[str, Interval | None]], holds: Callable[[Interval], bool]
) -> Goal:
    """Met where it holds under every cap; not measured where a cap is missing and none speaks against it."""
    known = {cap: (name, found) for cap, (name, found) in verdicts.items() if found is not None}
    by_cap = {cap: _words(name, found) for cap, (name, found) in known.items()}
    held = [holds(found) for _, found in known.values()]
    complete = len(known) == len(verdicts)
    return Goal(claim, (all(held) if complete or not all(held) else None) if held else None, by_cap)


def _words(name: str, difference: Interval) -> str:
    ends = "" if difference.low is None else f" ({difference.low:+.4f} to {difference.high:+.4f})"
    return f"{difference.mean:+.4f}{ends} against {name}"
