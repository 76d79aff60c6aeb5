"""An equal fine-tune of what the searches found, and its one look at the test split."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Iterable
from pathlib import Path
from time import perf_counter
from zlib import crc32

import numpy as np

from amc.bench.deadline import PausingProgress
from amc.bench.search_methods.bench_recipe import UNIFORM, BenchRecipe
from amc.bench.search_methods.context import Arena
from amc.bench.search_methods.searches import Search
from amc.bench.search_methods.store import Final, Policy
from amc.system.progress import Progress
from amc.train.training import train
from amc_search import random_policies, uniform
from amc_search.design import distinct

UNTRAINED = -1  # in the place of the data's order: the dense network as it came


def contenders(recipe: BenchRecipe, searches: Iterable[Search], cap: str) -> dict[str, dict[int, Policy]]:
    """Method -> seed -> the winner of that search under a cap, where it is to be fine-tuned."""
    first = recipe.finetune_searches or recipe.seeds
    found: dict[str, dict[int, Policy]] = {}
    for one in searches:
        spec = one.spec
        wanted = spec.method in recipe.winners_of and spec.cap == cap and spec.trials == recipe.trials
        if wanted and spec.seed < first and (winner := one.winner()) is not None:
            found.setdefault(spec.method, {})[spec.seed] = winner
    return found


def strangers(arena: Arena, cap: str) -> list[Policy]:
    """Random policies near a cap that are fine-tuned to tell how much the choice of a policy matters."""
    rng = np.random.default_rng([11, crc32(cap.encode())])
    count = arena.recipe.finetune_random
    return list(distinct(random_policies(arena.dense.space, arena.caps[cap], 4 * count, rng))[:count]) if count else []


def field(arena: Arena, searches: Iterable[Search], only: Collection[str] = ()) -> list[Policy]:
    """All policies to fine-tune, each once: uniform ratios and strangers of each cap, then the winners.

    Where `only` names methods, no strangers, and uniform ratios if it names them.
    """
    searches = list(searches)
    wanted: list[Policy] = []
    for cap in arena.recipe.cap_names:
        if not only or UNIFORM in only:
            wanted.append(uniform(arena.dense.space, arena.caps[cap]))
        wanted += [] if only else strangers(arena, cap)
        wanted += [policy for found in contenders(arena.recipe, searches, cap).values() for policy in found.values()]
    return list({policy.tobytes(): policy for policy in wanted}.values())


def read_finals(
    arena: Arena, searches: Iterable[Search]
) -> tuple[dict[str, dict[str, dict[int, list[Final]]]], dict[str, list[list[Final]]]]:
    """What is known of every cap: method -> seed -> finals, and the finals of each random policy."""
    searches = list(searches)
    finals, others = {}, {}
    for cap in arena.recipe.cap_names if arena.recipe.winners_of else ():
        policies = {UNIFORM: {0: uniform(arena.dense.space, arena.caps[cap])}}
        policies |= {m: of for m, of in contenders(arena.recipe, searches, cap).items() if m != UNIFORM}
        known = {method: {seed: _known(arena, p) for seed, p in of.items()} for method, of in policies.items()}
        finals[cap] = {m: kept for m, of in known.items() if (kept := {s: f for s, f in of.items() if f})}
        others[cap] = [found for policy in strangers(arena, cap) if (found := _known(arena, policy))]
    return {cap: of for cap, of in finals.items() if of}, others


def missing(arena: Arena, searches: Iterable[Search]) -> int:
    """How many fine-tunes of the field are not there yet."""
    policies = field(arena, searches) if arena.recipe.winners_of else []
    return sum(arena.store.final(p, seed) is None for p in policies for seed in range(arena.recipe.finetune_seeds))


def _known(arena: Arena, policy: Policy) -> list[Final]:
    """The finals of a policy in all orders of the data; empty while one is missing."""
    found = [arena.store.final(policy, seed) for seed in range(arena.recipe.finetune_seeds)]
    return [final for final in found if final is not None] if None not in found else []


def judge_dense(arena: Arena) -> Final:
    """The dense network on the test split, once for all time."""
    dense, store = arena.dense, arena.store
    known = store.final(dense.space.high, UNTRAINED)
    if known is None:
        arena.deadline.check()
        seen = dense.evaluate(dense.model, dense.splits.test)
        known = Final(seen.accuracy, seen.loss, arena.reference.accuracy, 0.0)
        store.keep_final(dense.space.high, UNTRAINED, known)
    return known


def judge(arena: Arena, policy: Policy, data_seed: int, folder: Path, progress: Progress) -> Final:
    """Fine-tune a policy as the product does and test it, or read back what that gave.

    Raises:
        Paused: the time is over; a checkpoint of the last whole epoch is in `folder`.
    """
    known = arena.store.final(policy, data_seed)
    if known is not None:
        return known
    arena.deadline.check()
    dense, start = arena.dense, perf_counter()
    name = hashlib.sha256(policy.tobytes()).hexdigest()[:12]
    checkpoint = folder / f"checkpoint-{name}-{data_seed}.pt"
    model = copy.deepcopy(dense.measure.realise(policy))
    done = train(
        model, dense.splits, dense.recipe.finetune, dense.compute, seed=dense.recipe.seed + data_seed,
        teacher=dense.model, checkpoint=checkpoint, title=f"fine-tune {name}, order {data_seed}",
        progress=PausingProgress(progress, arena.deadline), task=dense.task,
        start=dense.evaluate(model, dense.splits.validation).accuracy,
    )  # fmt: skip
    seconds = done.seconds or perf_counter() - start
    seen = dense.evaluate(model, dense.splits.test)
    measured = done.best_accuracy if done.accuracies else arena.measured(policy).accuracy
    found = Final(seen.accuracy, seen.loss, measured, seconds)
    arena.store.keep_final(policy, data_seed, found)
    checkpoint.unlink(missing_ok=True)
    return found
