"""`amc bench study`: what a very long study costs to open, to propose for and to retarget, in seconds and memory."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from optuna.distributions import distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import create_engine, insert
from sqlalchemy.orm import Session
from torch import Tensor

from amc import Protocol, Silent, Study, Trial
from amc_predictor import EnsemblePredictor
from amc_predictor.ranks import kendall
from amc_search import Cap, EvolutionarySampler, Space, ascend, random_policies
from amc_search.history import CLAIM
from amc_search.sampler import search_space

PROPOSALS = 24
FRESH = 500  # policies that the predictor is asked to order
SIZE, STEP = 256, 8
DENSE = 0.9  # accuracy of the dense network
WARM = 32  # best measured policies that an ascent also starts from, as in the product
PROTOCOL = Protocol(
    model="bench", weights_digest="", data_digest="", groups_digest="", importance="magnitude", fold=True,
    moment_images=0, batchnorm_images=0, measure_images=0, batch_size=1, compute="", seed=0, versions=(),
)  # fmt: skip


@dataclass(frozen=True)
class ChainMacs:
    """Multiply-adds of a chain of 3x3 convolutions, each of whose inputs is the output of the one before."""

    unit: str = "macs"

    def __call__(self, policies: Tensor) -> Tensor:
        return 9 * (policies[:, :-1] * policies[:, 1:]).sum(dim=-1) + 27 * policies[:, 0]


class World:
    """A space of many groups, half of the dense cost as cap, and an accuracy by formula."""

    def __init__(self, groups: int) -> None:
        self.space = Space(tuple(f"layer{group}.conv1" for group in range(groups)), (SIZE,) * groups, (STEP,) * groups)
        cost = ChainMacs()
        dense = float(cost(torch.from_numpy(self.space.high[None]).double())[0])
        self.caps, self.looser = ((Cap(cost, share * dense),) for share in (0.5, 0.6))
        weight = np.random.default_rng(0).lognormal(0, 1, groups)
        self.weight = 0.6 * weight / weight.sum()

    def measure(self, policy: NDArray[np.int64]) -> Trial:
        noise = np.random.default_rng(policy.tolist()).normal(0, 0.003)
        accuracy = 0.3 + float((self.weight * (1 - np.exp(-5 * policy / SIZE))).sum() + noise)
        return Trial(tuple(policy.tolist()), {"macs": 1.0, "params": 1.0, "bytes": 4.0}, accuracy, 1 - accuracy, {})


def bench_study(trials: int, groups: int) -> dict[str, Any]:
    """Fill a SQLite study, then open it, propose for it and retarget it in a new process on one thread."""
    with tempfile.TemporaryDirectory(prefix="amc-bench-") as place:
        folder = Path(place)
        start = perf_counter()
        _fill(folder, World(groups), trials)
        filled = perf_counter() - start
        code = f"from amc.bench.study import judge; judge({place!r}, {trials}, {groups})"
        answer = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout
        megabytes = (folder / "study.db").stat().st_size / 1e6
    return {"trials": trials, "groups": groups, "fill_s": filled, "file_mb": megabytes, **json.loads(answer)}


def judge(place: str, trials: int, groups: int) -> None:
    """Print what opening, proposing and retargeting take, as JSON; peak memory less that of the bare process."""
    torch.set_num_threads(1)
    world, folder = World(groups), Path(place)
    bare = _memory_mb("VmRSS")
    start = perf_counter()
    study = Study(None, folder, PROTOCOL, world.space, alone=True)
    values, known = study.labels(study.measured), np.array([trial.policy for trial in study.trials])
    opened, held = perf_counter() - start, _memory_mb("VmRSS") - bare
    start = perf_counter()
    predictor = EnsemblePredictor(seed=0)
    learned = world.space.fractions(np.concatenate([known, world.space.high[None]]))
    predictor.fit(learned, torch.from_numpy(np.append(values, DENSE)))
    fitted = perf_counter() - start
    fresh = random_policies(world.space, world.caps, FRESH, np.random.default_rng(1))
    truth = torch.tensor([world.measure(policy).accuracy for policy in fresh], dtype=torch.float64)
    with torch.no_grad():
        ordered = kendall(predictor.predict(world.space.fractions(fresh))[0], truth)
    start = perf_counter()
    ascend(predictor, world.space, world.looser, warm=known[np.argsort(-values, kind="stable")[:WARM]])
    retargeted = perf_counter() - start
    between, last = [], perf_counter()

    def measure(policy: NDArray[np.int64]) -> Trial:
        between.append(perf_counter() - last)
        return world.measure(policy)

    sampler = EvolutionarySampler(
        world.space, world.caps, lambda: EnsemblePredictor(seed=0), seed=0, dense_accuracy=DENSE, values=study.labels
    )
    for count in range(1, PROPOSALS + 1):
        last = perf_counter()
        study.run(measure, sampler, trials + count, Silent())
    print(json.dumps({
        "open_s": opened, "open_mb": held, "propose_mean_s": float(np.mean(between)), "propose_worst_s": max(between),
        "propose_median_s": float(np.median(between)), "fit_s": fitted, "kendall": ordered,
        "retarget_s": retargeted, "bare_mb": bare, "peak_mb": _memory_mb("VmHWM"),
    }))  # fmt: skip


def _memory_mb(which: str) -> float:
    """Of this process, from /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(which))) * 1024 / 1e6


def _fill(folder: Path, world: World, trials: int) -> None:
    """Trials of random policies, straight into the tables: Optuna's own way takes a tenth of a second each."""
    study = Study(None, folder, PROTOCOL, world.space)
    policies = np.unique(random_policies(world.space, world.caps, trials, np.random.default_rng(0)), axis=0)
    kinds = {name: distribution_to_json(kind) for name, kind in search_space(world.space).items()}
    finite, now = models.TrialValueModel.TrialValueType.FINITE, datetime.now()
    numbered = list(enumerate(policies, start=1))
    results = {number: world.measure(policy) for number, policy in numbered}
    trial = models.TrialModel.__table__
    rows: dict[Any, list[dict[str, Any]]] = {
        trial: [
            {"trial_id": number, "number": number - 1, "study_id": 1, "state": TrialState.COMPLETE,
             "datetime_start": now, "datetime_complete": now} for number, _ in numbered
        ],
        models.TrialParamModel: [
            {"trial_id": number, "param_name": name, "param_value": float(count), "distribution_json": kinds[name]}
            for number, policy in numbered for name, count in zip(kinds, policy, strict=True)
        ],
        models.TrialValueModel: [
            {"trial_id": number, "objective": 0, "value": result.accuracy, "value_type": finite}
            for number, result in results.items()
        ],
        models.TrialUserAttributeModel: [
            {"trial_id": number, "key": key, "value_json": json.dumps(getattr(result, key))}
            for number, result in results.items() for key in ("costs", "loss", "seconds")
        ],
        models.TrialSystemAttributeModel: [
            {"trial_id": number, "key": CLAIM, "value_json": json.dumps(policy.tolist())} for number, policy in numbered
        ],
    }  # fmt: skip
    with Session(create_engine(study.url)) as session, session.begin():
        for table, content in rows.items():
            session.execute(insert(table), content)


def study_text(found: dict[str, Any]) -> str:
    """One line a figure."""
    return "\n".join([
        f"{found['trials']:,} trials of {found['groups']} groups, {found['file_mb']:.0f} MB of SQLite; one thread",
        f"  open and read all    {found['open_s']:6.2f} s, {found['open_mb']:.0f} MB",
        f"  propose and store    {found['propose_mean_s']:6.2f} s on average, {found['propose_median_s']:.2f} s in the "
        f"median, {found['propose_worst_s']:.2f} s where a new batch is made (every 8)",
        f"  fit the predictor    {found['fit_s']:6.2f} s, once a run; Kendall on {FRESH} new policies "
        f"{found['kendall']:.2f}",
        f"  retarget             {found['retarget_s']:6.2f} s",
        f"  peak memory          {found['peak_mb']:6.0f} MB, of which {found['bare_mb']:.0f} MB before the study",
    ])  # fmt: skip
