"""How well our predictor, fitted on one search, orders fresh random policies near the cap."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import torch

from amc import RunError, write_json
from amc.bench.search_methods.bench_recipe import OURS
from amc.bench.search_methods.context import Context
from amc.bench.search_methods.methods import OURS as PARTS
from amc.bench.search_methods.searches import FRONT, Search, Spec
from amc_predictor.ranks import kendall, spearman
from amc_search import Policies, random_policies
from amc_search.design import distinct


@dataclass(frozen=True)
class Order:
    """Predictions beside objective values of policies that the search had not seen.

    Attributes:
        basis: a hash of the search that the predictor was fitted on, and of how many policies were asked for.
        values: (n,) measured.
        predicted: (n,) means.
        stds: (n,) their standard deviations.
        kendall: tau-b of the two; spearman likewise.
    """

    spec: Spec
    basis: int
    values: list[float]
    predicted: list[float]
    stds: list[float]
    kendall: float
    spearman: float


def is_ordered(spec: Spec) -> bool:
    """Whether a search is one whose predictor is tested."""
    return spec.method == OURS and spec.cap != FRONT


def order_path(spec: Spec, folder: Path) -> Path:
    """Where the test of a search's predictor is kept."""
    return folder / "orders" / f"{spec.cap}-{spec.trials}-{spec.seed}.json"


def read_order(found: Search, folder: Path, count: int) -> Order | None:
    """The test with `count` policies of the predictor of this very search, if it was made.

    Raises:
        RunError: its file is broken.
    """
    path = order_path(found.spec, folder)
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        known = Order(**{**record, "spec": Spec(**record["spec"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} must be whole, but: {error}; delete it and run the same again") from None
    return known if known.basis == _basis(found, count) else None


def order(found: Search, context: Context, folder: Path) -> Order:
    """Fit on one search, predict fresh policies, measure them truly, write both down. Raises `Paused`."""
    space = context.job.space
    seen = {tuple(policy) for policy in found.policies}
    fresh = [policy for policy in fresh_policies(context, found.spec.cap) if tuple(policy.tolist()) not in seen]
    values = torch.tensor([context.value_of(context.measured(policy)) for policy in fresh], dtype=torch.float64)
    known = np.array([*found.policies, space.high.tolist()], dtype=np.int64)
    predictor = PARTS.informed(found.spec.seed, context.sensitivity.curves)()
    predictor.fit(space.fractions(known), torch.tensor([*found.values, context.dense_value]))
    with torch.no_grad():
        mean, std = (part.double() for part in predictor.predict(space.fractions(np.array(fresh, dtype=np.int64))))
    judged = Order(
        found.spec, _basis(found, context.recipe.rank), values.tolist(), mean.tolist(), std.tolist(),
        kendall(mean, values), spearman(mean, values),
    )  # fmt: skip
    write_json(order_path(found.spec, folder), asdict(judged))
    return judged


def fresh_policies(context: Context, cap: str) -> Policies:
    """Random feasible policies near a cap, the same for all searches under it; fewer where the grid has no more."""
    count, rng = context.recipe.rank, np.random.default_rng([7, crc32(cap.encode())])
    return distinct(random_policies(context.job.space, context.caps[cap], 4 * count, rng))[:count]


def _basis(found: Search, count: int) -> int:
    return crc32(json.dumps([found.policies, found.values, count]).encode())
