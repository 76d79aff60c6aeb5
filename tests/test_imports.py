"""Imports run one way, and heavy ones wait until they are needed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IMPORT = re.compile(r"^\s*(import|from) torch_pruning", re.MULTILINE)
BESIDE = {
    "amc/bench/cut.py",
    "amc/bench/search_methods/magnitude.py",
    "amc/bench/coverage/half_pruned.py",
    "amc/job/doctor/second_opinion.py",
}  # where it is compared with
PLACES = os.pathsep.join(str(place) for place in (ROOT, ROOT / "search", ROOT / "predictor"))


def imported(statement: str) -> set[str]:
    """The top-level packages that a fresh process holds after `statement`."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": PLACES})  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("statement", ["import amc", "import amc.cli"])
def test_the_front_door_opens_without_torch(statement: str) -> None:
    """`amc --help` needs none of the heavy packages."""
    heavy = {"torch", "torchvision", "timm", "optuna", "deap", "accelerate", "scipy", "plotly", "torch_pruning"}
    assert not imported(statement) & heavy


def test_torch_pruning_is_met_by_the_benchmarks_alone() -> None:
    """Tracing and cutting are our own: its pruner runs only beside ours, to be compared."""
    sources = [path for package in ("amc", "search", "predictor") for path in (ROOT / package).rglob("*.py")]
    knowing = {path.relative_to(ROOT).as_posix() for path in sources if IMPORT.search(path.read_text())}
    assert knowing <= BESIDE


def test_cuts_and_costs_need_no_tracer() -> None:
    """Everything but tracing itself works without torch-pruning."""
    modules = ("amc.surgery.cutting", "amc.surgery.folding", "amc.cost.counts", "amc.cost.activations", "amc.job.job")
    assert "torch_pruning" not in imported(f"import {', '.join(modules)}")
