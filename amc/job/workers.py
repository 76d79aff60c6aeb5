"""The search of a run, by this process alone or by worker processes that it starts and looks after."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from amc.job.job import Job
from amc.study.heartbeat import name_of
from amc.study.search import run_search
from amc.study.sensitivity import measure_sensitivity
from amc.study.trials import Study
from amc.study.worker_pool import WorkerPool
from amc.system.progress import Progress


def search_with_workers(job: Job, study: Study, folder: Path, progress: Progress) -> None:
    """Measure until the study holds the recipe's trials; the folder must be held by this process.

    Raises:
        AmcError: the network cannot be measured, or its study not be written; what was measured is kept.
    """
    wanted = job.recipe.search
    if wanted.workers == 1 or len(study.trials) >= wanted.trials:
        run_search(study, job.caps, wanted, progress)
        return
    measure_sensitivity(study, wanted, progress)  # once, and not by every worker
    with worker_pool(study, folder, wanted.workers, job.recipe.threads or 1) as pool:
        study.follow(wanted.trials, progress, pool.poll)


def worker_pool(study: Study, folder: Path, number: int, threads: int) -> WorkerPool:
    """Workers for the study of a run folder that this process holds, each on so many threads."""
    name = f"amc-{study.protocol.digest}"  # a shared storage may hold others
    command = [sys.executable, "-m", "amc.cli", "worker", str(folder), "--study", name, "--supervised", "--quiet"]

    def environment(place: int) -> dict[str, str]:
        device = {"LOCAL_RANK": str(place % torch.cuda.device_count())} if torch.cuda.is_available() else {}
        return {"OMP_NUM_THREADS": str(threads), **device}

    def mark_failed(pid: int) -> None:
        dead = name_of(folder, pid)
        study.mark_failed(lambda owner: owner is not None and owner.startswith(dead))

    return WorkerPool(command, number, mark_failed, environment)
