"""Many processes under `torchrun`: the first one searches, all of them fine-tune."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta

import numpy as np
import torch
from numpy.typing import NDArray

PATIENCE = timedelta(days=7)  # the others wait at the door while the first process searches


def rank() -> int:
    """The number of this process, 0 when it is alone."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes `torchrun` started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join() -> None:
    """Join the process group of `torchrun`, if there is one and it is not joined yet."""
    if world() > 1 and not torch.distributed.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, timeout=PATIENCE)


def from_leader(length: int, decide: Callable[[], NDArray[np.int64]]) -> NDArray[np.int64]:
    """What the first process decides, (length,) int64, in every process.

    If the first process fails, it raises its own error and `torchrun` ends the others.
    """
    if world() == 1:
        return decide()
    join()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    values = decide() if rank() == 0 else np.zeros(length, dtype=np.int64)
    shared = torch.from_numpy(values).to(device)
    torch.distributed.broadcast(shared, src=0)
    return shared.cpu().numpy()


def wait_for_all() -> None:
    """Return when every process has come here."""
    if world() > 1:
        torch.distributed.barrier()
