from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from amc.flow import compress
from amc.recipe import load_recipe
from amc.run import Run
from tests.tiny import trained_weights


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Small tensors are slower on many threads, most of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A real, finished run of a tiny network at 50 % of its MACs. Shared: read it, do not write into it."""
    home: Path = tmp_path_factory.mktemp("tiny")
    wanted = {
        "name": "tiny",
        "model.name": "tests.tiny:network",
        "model.weights": str(trained_weights(home / "dense.safetensors")),
        "data.name": "tests.tiny:pictures",
        "budget": ["50%"],
        "out": str(home / "run"),
        "search.trials": 10,
        "search.candidates": 2,
        "search.batch_size": 50,
        "recovery.moment_images": 200,
        "recovery.batchnorm_images": 100,
        "finetune.epochs": 0.2,
        "finetune.batch_size": 50,
    }
    return compress(load_recipe(None, wanted))
