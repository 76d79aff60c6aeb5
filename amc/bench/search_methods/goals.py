"""What the product claims of its search, each held against the 95 % intervals of the figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from amc.bench.search_methods.bench_recipe import OURS, UNIFORM
from amc.bench.search_methods.findings import Findings, final_means, is_ours, scores
from amc.bench.search_methods.searches import FRONT, Spec, front_caps
from amc.bench.statistics import Interval, Sample, interval, paired, spread

KENDALL = 0.8
MARGIN = 0.005  # of the other's objective value: what "at least equal" allows; of a likelihood, 0.005 nats of loss
FEWEST = 3  # seeds that an interval must rest on
Verdict = Literal["not met", "not measured", "cannot tell", "met"]
WORST_FIRST: tuple[Verdict, ...] = ("not met", "not measured", "cannot tell", "met")
Samples = Mapping[str, Sample]


@dataclass(frozen=True)
class Held:
    """A claim under one cap: its verdict, and what was found in words."""

    verdict: Verdict
    words: str


@dataclass(frozen=True)
class Goal:
    """A claim.

    Attributes:
        missing: how far what it rests on has come; empty where all is there.
        by_cap: what was found under each cap so far, in words.
    """

    claim: str
    verdict: Verdict
    missing: str
    by_cap: dict[str, str]


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


def held(found: Interval, least: float, *, strictly: bool = False) -> Verdict:
    """Whether a mean is at least (or above) a number: only what the whole interval says, from enough seeds."""
    if found.n < FEWEST or found.low is None or found.high is None or found.low == found.high:
        return "cannot tell"
    if found.low > least or (found.low == least and not strictly):
        return "met"
    return "not met" if found.high < least or (found.high == least and strictly) else "cannot tell"


def _short(found: Findings) -> Goal:
    trials = found.recipe.trials
    claim = f"{trials} trials: ours better than every other with {trials}, under every cap"
    by_cap = {}
    for cap in found.recipe.cap_names:
        bests = found.bests(cap, trials)
        by_cap[cap] = _against_all(bests.get(OURS), _others(bests), 0.0, strictly=True)
    return _together(claim, by_cap, _unsearched(found, [s for s in found.wanted if _is_short(s, found)]))


def _long(found: Findings) -> Goal:
    recipe = found.recipe
    claim = (
        f"ours with {recipe.trials} trials at least equal (less {MARGIN:.1%}) to the best other with {recipe.long}, "
        "under every cap"
    )
    by_cap = {
        cap: _against_best(found.bests(cap, recipe.trials).get(OURS), _others(found.bests(cap, recipe.long)))
        for cap in recipe.cap_names
    }
    wanted = [s for s in found.wanted if _is_short(s, found) and s.method == OURS]
    wanted += [s for s in found.wanted if s.cap in recipe.cap_names and s.trials == recipe.long]
    return _together(claim, by_cap, _unsearched(found, wanted))


def _after_finetune(found: Findings) -> Goal:
    recipe = found.recipe
    claim = (
        "after an equal fine-tune, ours better on test where random policies spread more than the data's order does, "
        "never worse (less that noise) elsewhere"
    )
    by_cap: dict[str, Held | None] = {}
    for cap in recipe.cap_names:
        means = final_means(found, cap) if cap in found.finals else {}
        between, noise = spread(scores(found, found.drawn.get(cap, [])))
        if between is None or noise is None:
            against = _against_all(means.get(OURS), _others(means), 0.0)
            words = f"{against.words}; spread and noise are not measured" if against else "no spread and noise"
            by_cap[cap] = Held("not measured", words)
            continue
        matters = between > noise
        against = _against_all(means.get(OURS), _others(means), 0.0 if matters else -noise, strictly=matters)
        by_cap[cap] = against and Held(against.verdict, f"{against.words}; spread {between:.4f}, noise {noise:.4f}")
    judged = [s for s in found.wanted if _is_short(s, found) and s.method in {*recipe.winners_of} - {UNIFORM}]
    judged = [s for s in judged if s.seed < (recipe.finetune_searches or recipe.seeds)]
    missing = _unsearched(found, judged) or (f"{found.unjudged} fine-tunes are missing" if found.unjudged else "")
    return _together(claim, by_cap, missing)


def _front(found: Findings) -> Goal:
    assert found.recipe.front is not None
    front, caps = found.recipe.front, front_caps(found.recipe)
    claim = (
        f"one study of {front.trials} trials for {len(caps)} caps, each at least as good (less {MARGIN:.1%}) as "
        f"{front.trials} trials of the best other for that cap alone"
    )
    by_cap = {cap: _against_best(found.front_bests(cap), _others(found.bests(cap, front.trials))) for cap in caps}
    wanted = [s for s in found.wanted if s.cap == FRONT or (s.cap in caps and s.trials == front.trials)]
    return _together(claim, by_cap, _unsearched(found, wanted))


def _order(found: Findings) -> Goal:
    claim = f"Kendall of our predictor on fresh random policies near each cap at least {KENDALL}"
    wanted = [s for s in found.wanted if _is_short(s, found) and s.method == OURS]
    known = {one.spec: one.kendall for one in found.orders if one.spec in wanted}
    by_cap: dict[str, Held | None] = dict.fromkeys(found.recipe.cap_names)
    for cap in by_cap:
        mine = [value for spec, value in known.items() if spec.cap == cap]
        if mine:
            mean = interval(mine)
            by_cap[cap] = Held(held(mean, KENDALL), f"Kendall {mean.mean:.2f}{_ends(mean, '.2f')}")
    return _together(claim, by_cap, _of(len(known), len(wanted), "orders"))


def _is_short(spec: Spec, found: Findings) -> bool:
    """Whether a search is one of as many trials as ours has under the recipe's caps, and no part of ours."""
    is_whole = spec.method == OURS or not is_ours(spec.method)
    return is_whole and spec.cap in found.recipe.cap_names and spec.trials == found.recipe.trials


def _unsearched(found: Findings, wanted: Iterable[Spec]) -> str:
    needed = {spec for spec in wanted if spec.method == OURS or not is_ours(spec.method)}
    return _of(len(needed & {one.spec for one in found.searches}), len(needed), "searches")


def _of(done: int, wanted: int, what: str) -> str:
    return "" if done == wanted > 0 else f"{done} of {wanted} {what}"


def _others(samples: Samples) -> Samples:
    return {method: of for method, of in samples.items() if not is_ours(method)}


def _against_all(ours: Sample | None, others: Samples, least: float, *, strictly: bool = False) -> Held | None:
    """The worst of the verdicts on ours minus each other, and of equals the one with the smallest difference."""
    differences = {name: paired(ours, of) for name, of in others.items()} if ours else {}
    known = [(name, one, held(one, least, strictly=strictly)) for name, one in differences.items() if one is not None]
    if not known:
        return None
    name, one, verdict = min(known, key=lambda row: (WORST_FIRST.index(row[2]), row[1].mean))
    return Held(verdict, _words(name, one))


def _against_best(ours: Sample | None, others: Samples) -> Held | None:
    """Ours minus the other with the best mean."""
    if not others:
        return None
    best = max(others, key=lambda method: others[method].interval.mean)
    return _against_all(ours, {best: others[best]}, -MARGIN * others[best].interval.mean)


def _together(claim: str, by_cap: Mapping[str, Held | None], missing: str) -> Goal:
    """The worst verdict under any cap; of what is not whole, none but that it was not measured."""
    known = {cap: one for cap, one in by_cap.items() if one is not None}
    complete = not missing and len(known) == len(by_cap)
    verdict = min((one.verdict for one in known.values()), key=WORST_FIRST.index) if complete else "not measured"
    return Goal(claim, verdict, missing, {cap: one.words for cap, one in known.items()})


def _words(name: str, difference: Interval) -> str:
    return f"{difference.mean:+.4f}{_ends(difference, '+.4f')} against {name}"


def _ends(found: Interval, form: str) -> str:
    """The interval and how many seeds it rests on."""
    ends = "no interval" if found.low is None or found.high is None else f"{found.low:{form}} to {found.high:{form}}"
    return f" ({ends}, n {found.n})"
