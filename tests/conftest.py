from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from torch import nn

from amc.job.compress import compress
from amc.job.recipe import load_recipe
from amc.job.run import Run
from tests.tiny import network, residual, trained_weights

WORKERS = 8  # at most: every one of them imports torch
TRUSTED = "tests.tiny,tests.zoo.test_task,tests.cascade.test_exit_sequence,amc.bench.images"  # of runs made here


def pytest_configure(config: pytest.Config) -> None:
    """In every process that is started from here: one thread, and trust in the networks of the tests."""
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))
    studies = os.environ["XDG_DATA_HOME"] = tempfile.mkdtemp(prefix="amc-tests-")  # where they are kept by default
    config.add_cleanup(lambda: shutil.rmtree(studies, ignore_errors=True))
    os.environ["AMC_TRUST"] = TRUSTED


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A worker for every core where folders are run; a few files, or a single core, need none."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    folders = all(Path(argument).is_dir() for argument in config.args)
    return min(cores, WORKERS) if folders and cores > 1 else 0


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Small tensors are slower on many threads, most of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all workers of this test run have in common."""
    own = tmp_path_factory.getbasetemp()
    return own if worker_id == "master" else own.parent


@pytest.fixture(scope="session")
def tiny_run(shared: Path) -> Run:
    """A real, finished run of a tiny network at 50 % of its MACs. Shared: read it, do not write into it."""
    return run_of_all_workers(shared / "tiny", network, "50%")


@pytest.fixture(scope="session")
def shallow_run(shared: Path) -> Run:
    """A real run whose cap is met only without a branch, of whose trials some stop early. Shared like `tiny_run`."""
    return run_of_all_workers(shared / "shallow", residual, "1.2%", **{"search.trials": 24, "search.batch_size": 10})


def run_of_all_workers(home: Path, factory: Callable[[], nn.Module], budget: str, **more: object) -> Run:
    """The first worker that asks makes it, the others wait."""
    with FileLock(home.with_suffix(".lock")):
        if not (home / "done").exists():
            home.mkdir(exist_ok=True)
            finished_run(home, factory, budget, **more)
            (home / "done").touch()
    return Run.open(home / "run")


def finished_run(home: Path, factory: Callable[[], nn.Module], budget: str, **more: object) -> Run:
    """A run of a tiny network, `tests.tiny:NAME`, in a folder of `home`."""
    wanted = {
        "name": "tiny",
        "model.name": f"tests.tiny:{factory.__name__}",
        "model.weights": str(trained_weights(home / "dense.safetensors", factory)),
        "data.name": "tests.tiny:pictures",
        "budget": [budget],
        "out": str(home / "run"),
        "search.study": "run",
        "search.trials": 10,
        "search.candidates": 2,
        "search.batch_size": 50,
        "recovery.moment_images": 200,
        "recovery.batchnorm_images": 100,
        "finetune.epochs": 0.2,
        "finetune.batch_size": 50,
        **more,
    }
    return compress(load_recipe(None, wanted))
