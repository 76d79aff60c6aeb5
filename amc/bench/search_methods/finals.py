"""An equal fine-tune of what the searches found, and its one look at the test split."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from zlib import crc32

import numpy as np

from amc import Progress
from amc.bench.deadline import PausingProgress
from amc.bench.search_methods.bench_recipe import UNIFORM, BenchRecipe
from amc.bench.search_methods.context import Context, Policy
from amc.bench.search_methods.searches import Search
from amc.bench.store import Store
from amc_search import random_policies, uniform
from amc_search.design import distinct

FINAL = "final"  # the kind of a fine-tune's record
UNTRAINED = -1  # in the place of the data's order: the dense network as it came


@dataclass(frozen=True)
class Final:
    """A fine-tuned network's one look at the test split.

    Attributes:
        test_accuracy: there.
        test_loss: calibrated cross-entropy there, nats.
        validation_accuracy: of the best epoch.
        seconds: wall time of the fine-tune.
    """

    test_accuracy: float
    test_loss: float
    validation_accuracy: float
    seconds: float


def known_final(store: Store, policy: Policy, data_seed: int) -> Final | None:
    """What a (d,) policy, fine-tuned with the data in this order, gave on the test split."""
    record = store.get(FINAL, policy.tolist(), data_seed)
    return Final(**record) if record else None


def keep_final(store: Store, policy: Policy, data_seed: int, final: Final) -> None:
    """Write a final. Raises `StorageError`."""
    store.put(FINAL, policy.tolist(), data_seed, value=asdict(final))


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


def drawn(context: Context, cap: str) -> list[Policy]:
    """Random policies near a cap that are fine-tuned to tell how much the choice of a policy matters."""
    rng = np.random.default_rng([11, crc32(cap.encode())])
    count = context.recipe.finetune_random
    if not count:
        return []
    return list(distinct(random_policies(context.job.space, context.caps[cap], 4 * count, rng))[:count])


def field(context: Context, searches: Iterable[Search], only: Collection[str] = ()) -> list[Policy]:
    """All policies to fine-tune, each once: uniform ratios and random ones of each cap, then the winners.

    Where `only` names methods, no random ones, and uniform ratios if it names them.
    """
    searches = list(searches)
    wanted: list[Policy] = []
    for cap in context.recipe.cap_names:
        if not only or UNIFORM in only:
            wanted.append(uniform(context.job.space, context.caps[cap]))
        wanted += [] if only else drawn(context, cap)
        wanted += [policy for found in contenders(context.recipe, searches, cap).values() for policy in found.values()]
    return list({policy.tobytes(): policy for policy in wanted}.values())


def read_finals(
    context: Context, searches: Iterable[Search]
) -> tuple[dict[str, dict[str, dict[int, list[Final]]]], dict[str, list[list[Final]]]]:
    """What is known of every cap: method -> seed -> finals, and the finals of each random policy."""
    searches = list(searches)
    finals, others = {}, {}
    for cap in context.recipe.cap_names if context.recipe.winners_of else ():
        policies = {UNIFORM: {0: uniform(context.job.space, context.caps[cap])}}
        policies |= {m: of for m, of in contenders(context.recipe, searches, cap).items() if m != UNIFORM}
        known = {method: {seed: _known(context, p) for seed, p in of.items()} for method, of in policies.items()}
        finals[cap] = {m: kept for m, of in known.items() if (kept := {s: f for s, f in of.items() if f})}
        others[cap] = [found for policy in drawn(context, cap) if (found := _known(context, policy))]
    return {cap: of for cap, of in finals.items() if of}, others


def missing(context: Context, searches: Iterable[Search]) -> int:
    """How many fine-tunes of the field are not there yet."""
    policies, seeds = field(context, searches) if context.recipe.winners_of else [], context.recipe.finetune_seeds
    return sum(known_final(context.store, policy, seed) is None for policy in policies for seed in range(seeds))


def _known(context: Context, policy: Policy) -> list[Final]:
    """The finals of a policy in all orders of the data; empty while one is missing."""
    found = [known_final(context.store, policy, seed) for seed in range(context.recipe.finetune_seeds)]
    return [final for final in found if final is not None] if None not in found else []


def evaluate_dense(context: Context) -> None:
    """Look at the test split with the dense network, once for all time."""
    job, store = context.job, context.store
    if known_final(store, job.space.high, UNTRAINED) is None:
        context.deadline.check()
        seen = job.measure.evaluate_whole(job.model, job.data.test)
        final = Final(seen.accuracy, seen.loss, context.reference.accuracy, 0.0)
        keep_final(store, job.space.high, UNTRAINED, final)


def finetune(context: Context, policy: Policy, data_seed: int, folder: Path, progress: Progress) -> None:
    """Fine-tune a policy as the product does and test it, unless that was done.

    Raises:
        Paused: the time is over; a checkpoint of the last whole epoch is in `folder`.
    """
    if known_final(context.store, policy, data_seed) is not None:
        return
    context.deadline.check()
    job, start = context.job, perf_counter()
    name = hashlib.sha256(policy.tobytes()).hexdigest()[:12]
    checkpoint = folder / f"checkpoint-{name}-{data_seed}.pt"
    model = copy.deepcopy(job.measure.realise(policy))
    done = replace(job, recipe=job.recipe.model_copy(update={"seed": job.recipe.seed + data_seed})).finetune(
        model, start=job.measure.evaluate_whole(model).accuracy, checkpoint=checkpoint,
        title=f"fine-tune {name}, order {data_seed}", progress=PausingProgress(progress, context.deadline),
    )  # fmt: skip
    seconds = done.seconds or perf_counter() - start
    seen = job.measure.evaluate_whole(model, job.data.test)
    measured = done.best_accuracy if done.accuracies else context.measured(policy).accuracy
    keep_final(context.store, policy, data_seed, Final(seen.accuracy, seen.loss, measured, seconds))
    checkpoint.unlink(missing_ok=True)
