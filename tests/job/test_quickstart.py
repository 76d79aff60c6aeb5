"""What the README promises of the embedded default, run for real. Minutes: marked slow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import torch

import amc
from amc.job.compress import compress
from amc.job.recipe import load_recipe
from amc.job.run import Run
from tests.interrupts import heed_interrupts

ROOT = Path(__file__).parents[2]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
COMMAND = [sys.executable, "-m", "amc.cli", "compress", "--quiet", "--study", "run"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The recipe as it ships, on one thread: a second one that waits for a busy core would slow it down."""
    return compress(load_recipe("quickstart", {"out": str(tmp_path_factory.mktemp("quickstart") / "run")}))


def test_the_quickstart_measures_enough_and_fits_its_cap(quickstart: Run) -> None:
    """At least 48 trials; 7.7 to 8 % of the multiply-adds; the test accuracy within 6 points of the dense one."""
    metrics = quickstart.metrics
    assert metrics["trials"] >= 48 and metrics["failed_trials"] == 0
    assert 0.077 <= metrics["released"]["macs"] / metrics["dense"]["macs"] <= 0.08
    assert metrics["dense"]["test_accuracy"] - metrics["released"]["test_accuracy"] <= 0.06


def test_the_quickstart_beats_uniform_ratios_before_and_after_the_fine_tune(quickstart: Run) -> None:
    """On the same test images: better by far before the fine-tune, and still better after it."""
    comparison = quickstart.metrics["comparison"]
    assert comparison["before_finetune"]["low"] > 0.1
    assert comparison["after_finetune"]["difference"] > 0


def test_the_release_is_what_the_metrics_say(quickstart: Run) -> None:
    """The loaded network has the cost written down, by torch's own counter."""
    from amc.surgery.flop_counter import count_cut_macs

    model = amc.load(quickstart.folder)
    assert count_cut_macs(model, torch.zeros(1, 1, 28, 28)) == quickstart.metrics["released"]["macs"]


@pytest.mark.parametrize("budget", ["20%", "30%", "40%", "60%", "75%"])
def test_a_retarget_is_legal_and_uses_its_cap(quickstart: Run, budget: str) -> None:
    """Another budget is used to at least 97 %, and never exceeded."""
    found = quickstart.retarget(budget)
    use = found.costs["macs"] / (float(budget[:-1]) / 100 * quickstart.metrics["dense"]["macs"])
    assert 0.97 <= use <= 1
    assert quickstart.job.space.is_legal(found.policy.array).all()


def test_a_search_killed_in_the_middle_goes_on_where_it_was(tmp_path: Path) -> None:
    """Kill -9 during the search, then the same command: every finished trial is there, none measured twice."""
    out = tmp_path / "run"
    arguments = [*COMMAND, "--out", str(out), "--trials", "24", "--set", "finetune.epochs=0.5", "--json"]
    first = subprocess.Popen(arguments, cwd=ROOT, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    finished = _wait_for_trials(out, 6, first)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    kept = _trials(out)
    assert len(kept) >= finished
    done = subprocess.run(arguments, cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    after = _trials(out)
    policies = [tuple(sorted(trial.params.items())) for trial in after]
    assert {trial.number for trial in kept} <= {trial.number for trial in after}
    assert len(policies) == len(set(policies))
    metrics = json.loads(done.stdout)
    assert metrics["trials"] >= 24 and metrics["trials"] - metrics["stopped"] == len(after)


def test_an_interrupt_is_one_line_and_exit_code_130(tmp_path: Path) -> None:
    """Ctrl-C keeps what was measured and says how to go on."""
    out = tmp_path / "run"
    process = subprocess.Popen(
        [*COMMAND, "--out", str(out)],
        cwd=ROOT,
        env=ONE_THREAD,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    _wait_for_trials(out, 2, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(err.splitlines()) == 1 and "the same command goes on" in err
    assert len(_trials(out)) >= 2


def test_many_processes_make_one_release(tmp_path: Path) -> None:
    """`torchrun` on two processes: the first searches, both fine-tune, one speaks."""
    arguments = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "amc.cli",
        "compress", "--quiet", "--json", "--out", str(tmp_path / "run"), "--budget", "50%", "--trials", "12",
        "--set", "finetune.epochs=1", "--set", "finetune.uniform=false",
    ]  # fmt: skip
    done = subprocess.run(arguments, cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)
    assert metrics["released"]["test_accuracy"] > 0.85
    assert metrics["comparison"]["after_finetune"] is None
    assert Run.open(tmp_path / "run").metrics == metrics


def _trials(out: Path) -> list[optuna.trial.FrozenTrial]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url = f"sqlite:///{out / 'study.db'}"
    try:
        names = optuna.get_all_study_names(url)
    except Exception:  # the file is being made
        return []
    found = [trial for name in names for trial in optuna.load_study(study_name=name, storage=url).trials]
    return [trial for trial in found if trial.state == optuna.trial.TrialState.COMPLETE]


def _wait_for_trials(out: Path, number: int, process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> int:
    """Wait until `number` trials are finished; returns how many are."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if (out / "study.db").is_file() and len(_trials(out)) >= number:
            return len(_trials(out))
        time.sleep(0.3)
    raise AssertionError(f"the command ended or took too long, exit code {process.poll()}")
