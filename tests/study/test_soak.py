"""Kill -9 at random moments, a hundred times and on every store: `pytest -m soak`, with AMC_SOAK_ROUNDS for fewer."""

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import optuna
import psutil
import pytest
from optuna.trial import TrialState
from torch import Tensor, nn

from amc.job.run import Run
from amc.study.storage import open_storage
from amc_search import is_feasible
from tests import postgres

ROUNDS = int(os.environ.get("AMC_SOAK_ROUNDS", "100"))
TRIALS, WORKERS, CANDIDATES = 48, 2, 2
ROOT = Path(__file__).parents[2]
ATTRIBUTES = {"costs", "loss", "seconds"}


class SoakNet(nn.Sequential):
    """Six narrow convolutions: a million policies, milliseconds each."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        layers: list[nn.Module] = []
        widths = [in_channels, 12, 12, 12, 12, 12, 12]
        for index, (before, width) in enumerate(pairwise(widths)):
            stride = 2 if index < 3 else 1
            layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], num_classes))

    def forward(self, pictures: Tensor) -> Tensor:
        logits: Tensor = super().forward(pictures)
        return logits


def network(num_classes: int = 10, in_channels: int = 1) -> nn.Module:
    return SoakNet(num_classes, in_channels)


@dataclass
class Report:
    """What a soak was and what it saw."""

    store: str
    rounds: int = 0
    coordinators_killed: int = 0
    workers_killed: int = 0
    runs_finished: int = 0
    trials_finished: int = 0
    trials_failed: int = 0
    duplicates: int = 0
    half_written: int = 0
    lost: int = 0
    orphans: int = 0
    seconds: float = 0.0


@contextmanager
def store_of(kind: str) -> Iterator[str | None]:
    if kind == "sqlite":
        yield None
    else:
        with postgres.running() as server:
            yield server.url


def command(folder: Path, url: str | None, seed: int) -> list[str]:
    settings = {
        "search.candidates": CANDIDATES, "search.batch_size": 50, "surgery.round_to": 1, "recovery.moment_images": 100,
        "recovery.batchnorm_images": 50, "finetune.epochs": 0, "finetune.uniform": "false",
    }  # fmt: skip
    return [
        sys.executable, "-m", "amc.cli", "compress", "--model", "tests.study.test_soak:network", "--weights", "none",
        "--data", "tests.tiny:pictures", "--budget", "50%", "--out", str(folder), "--trials", str(TRIALS),
        "--seed", str(seed), "--workers", str(WORKERS), "--quiet", "--study", url or "run",
        *(part for key, value in settings.items() for part in ("--set", f"{key}={value}")),
    ]  # fmt: skip


def start(folder: Path, url: str | None, seed: int) -> subprocess.Popen[bytes]:
    places = os.pathsep.join(str(place) for place in (ROOT, ROOT / "search", ROOT / "predictor"))
    environment = {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
    with open(folder.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(command(folder, url, seed), env=environment, stdout=log, stderr=log)


def starting_seconds() -> float:
    """How long a process takes here and now before it can do anything: moments are drawn from several times that."""
    begun = monotonic()
    subprocess.run([sys.executable, "-c", "import amc.job.compress"], cwd=ROOT, check=True)
    return monotonic() - begun


def kill(process: subprocess.Popen[bytes], rng: random.Random, report: Report) -> bool:
    """Kill workers, their coordinator or all of them; whether the coordinator is gone."""
    try:
        workers = [child for child in psutil.Process(process.pid).children() if "--supervised" in child.cmdline()]
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return process.poll() is not None
    whom = rng.choices(("worker", "coordinator", "all"), (5, 3, 2))[0]
    victims = [rng.choice(workers)] if whom == "worker" and workers else []
    if whom == "all":
        victims = workers
    for victim in victims:
        if victim.is_running():
            report.workers_killed += 1
            victim.send_signal(signal.SIGKILL)
    if whom == "worker":
        return process.poll() is not None
    report.coordinators_killed += process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    report.orphans += len(alive)
    return True


def finished(folder: Path, url: str | None, seed: int) -> dict[int, tuple[tuple[int, ...], float]]:
    """Number -> policy and value of all measured trials; what is half-written fails here."""
    database = url or f"sqlite:///{folder}/study.db"
    if url is None and not (folder / "study.db").exists():
        return {}
    storage = open_storage(database)
    ours = [study for study in storage.get_all_studies() if study.user_attrs.get("protocol", {}).get("seed") == seed]
    if not ours:
        return {}
    trials = optuna.load_study(study_name=ours[0].study_name, storage=storage).get_trials(deepcopy=False)
    measured = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    for trial in measured:
        whole = trial.user_attrs.keys() >= ATTRIBUTES and len(trial.params) == 6 and trial.value is not None
        assert whole, f"trial {trial.number} is half-written: {trial}"
    return {trial.number: (tuple(trial.params.values()), float(trial.value or 0)) for trial in measured}


def judge(folder: Path, url: str | None, seed: int, starts: int, report: Report) -> None:
    """A run that has finished after so many starts: its trials are there once each, and its policy is legal."""
    run = Run.open(folder)
    known = finished(folder, url, seed)
    counts = Counter(policy for policy, _ in known.values())
    report.duplicates += sum(count - 1 for count in counts.values())
    report.trials_finished += len(known)
    report.trials_failed += run.metrics["failed_trials"]
    report.runs_finished += 1
    most = TRIALS + starts * CANDIDATES + 1  # the search, the best few as known at each start, the uniform one
    assert len(known) == run.metrics["trials"] <= most
    policy = np.array([run.policy[name] for name in run.job.space.names], dtype=np.int64)
    assert run.job.space.is_legal(policy[None]).all()
    assert is_feasible(policy[None], run.job.trace.caps(run.recipe.budgets)).all()


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_nothing_is_lost_when_anything_is_killed_at_any_moment(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every finished trial is there once and whole, every study resumes, every run ends with a legal policy."""
    rng, report, begun = random.Random(0), Report(kind), monotonic()
    with store_of(kind) as url:
        starting = starting_seconds()
        seed = 0
        while report.rounds < ROUNDS or seed == 0:
            folder, process, seed, starts = tmp_path / f"run{seed}", None, seed + 1, 0
            before: dict[int, tuple[tuple[int, ...], float]] = {}
            deadline = monotonic() + 1800
            while not (folder / "metrics.json").exists() or process is None or process.poll() is None:
                assert monotonic() < deadline, "the run does not end"
                if process is None or process.poll() is not None:
                    words = folder.with_suffix(".log").read_bytes().decode() if process else ""
                    assert process is None or process.returncode == -signal.SIGKILL, words
                    process, starts = start(folder, url, seed - 1), starts + 1
                wait_until = monotonic() + rng.uniform(0.2, 4.0 * starting)
                while process.poll() is None and (monotonic() < wait_until or report.rounds >= ROUNDS):
                    sleep(0.05)
                if process.poll() is not None and process.returncode == 0:
                    break
                if report.rounds < ROUNDS:
                    kill(process, rng, report)
                    report.rounds += 1
                now = finished(folder, url, seed - 1)
                report.lost += sum(now.get(number) != trial for number, trial in before.items())
                before = now
            judge(folder, url, seed - 1, starts, report)
    report.seconds = round(monotonic() - begun, 1)
    with capsys.disabled():
        print("\nsoak " + json.dumps(asdict(report)))
    assert (report.duplicates, report.half_written, report.lost, report.orphans) == (0, 0, 0, 0)
