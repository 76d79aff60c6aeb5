"""Children with limits: what ends them is told, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from amc.job.recipe import load_recipe
from amc.surgery.channel_table import kept_channels
from amc.surgery.cutting import cut_channels
from amc.surgery.grouping import trace_groups, trace_isolated
from amc.surgery.importance import rank_channels
from amc.system.errors import DataError, ModelError
from amc.system.isolation import GRACE_SECONDS, LimitExceeded, Limits, isolated
from amc.zoo.call import Call
from amc.zoo.networks.source import build_model
from tests import unruly

PLENTY = Limits(60, 4)
INPUTS = torch.zeros(1, 3, 8, 8)


def children() -> set[int]:
    listing = subprocess.run(["ps", "-o", "pid=", "--ppid", str(os.getpid())], capture_output=True, text=True).stdout
    return {int(pid) for pid in listing.split() if Path(f"/proc/{pid}").exists()}


def test_what_a_child_writes_is_there_and_then_gone() -> None:
    """The folder holds the child's files inside the `with`, and is removed after it."""
    others = children()  # of tests before this one
    with isolated(lambda folder: (folder / "found").write_text("42") and None, PLENTY) as folder:
        assert (folder / "found").read_text() == "42"
    assert not folder.exists() and children() <= others


def test_time_is_limited_and_the_message_says_where() -> None:
    """A network that sleeps for minutes is ended before; the message names the limit, the module and the mend."""
    others, model, start = children(), unruly.slow(), time.monotonic()
    with pytest.raises(LimitExceeded, match=r"within 1 s.*at 2 \(Slow\).*--ignore.*trace_seconds") as caught:
        with isolated(lambda _: model(INPUTS), Limits(1, 4)):
            pass
    assert time.monotonic() - start < 60 and "\n" not in str(caught.value) and caught.value.limit == "1 s"
    assert children() <= others


def test_a_network_that_swallows_exceptions_is_ended_too() -> None:
    """No exception is thrown into the network: one that catches all would live on."""
    model = unruly.stubborn()
    with pytest.raises(LimitExceeded, match="Stubborn"), isolated(lambda _: model(INPUTS), Limits(0.5, 4)):
        pass


def test_a_child_that_cannot_be_asked_is_killed() -> None:
    """One long call that hears no signal ends some seconds later, by force."""
    mask, start = signal.pthread_sigmask(signal.SIG_BLOCK, []), time.monotonic()

    def deaf(_: Path) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        time.sleep(600)

    with pytest.raises(LimitExceeded, match=r"within 0\.5 s"), isolated(deaf, Limits(0.5, 4)):
        pass
    assert time.monotonic() - start < GRACE_SECONDS + 60 and signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask


def test_memory_is_limited_and_the_message_says_where() -> None:
    """A network that allocates without end is ended; the message names the limit, the module and the mend."""
    model = unruly.greedy()
    with pytest.raises(LimitExceeded, match=r"within 0\.5 GB.*at 2 \(Greedy\).*trace_gigabytes") as caught:
        with isolated(lambda _: model(INPUTS), Limits(60, 0.5)):
            pass
    assert caught.value.limit == "0.5 GB"


def test_errors_of_the_child_are_those_of_the_parent() -> None:
    """An error of ours keeps its kind and its text; any other is told in one line."""

    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(DataError, match="no pictures"), isolated(lambda _: fail(DataError("no pictures")), PLENTY):
        pass
    with pytest.raises(ModelError, match="KeyError: 'x'"), isolated(lambda _: fail(KeyError("x")), PLENTY):
        pass
    with pytest.raises(ModelError, match="exit code 7"), isolated(lambda _: os._exit(7), PLENTY):
        pass
    with pytest.raises(ModelError, match="SIGUSR1"), isolated(lambda _: os.kill(os.getpid(), signal.SIGUSR1), PLENTY):
        pass


def test_a_child_computes_after_its_parent_used_many_threads() -> None:
    """Threads that the parent had started do not make the child hang."""
    code = (
        "import os, torch\nfrom amc.system.isolation import Limits, isolated\ntorch.set_num_threads(2)\n"
        "layer, big = torch.nn.Conv2d(8, 64, 3), torch.randn(4, 8, 128, 128)\n"
        "layer(big).sum().backward(); torch.randn(800, 800) @ torch.randn(800, 800)\n"
        "def work(folder):\n"
        "    layer(big).sum().backward(); torch.randn(800, 800) @ torch.randn(800, 800); big.sum()\n"
        "with isolated(work, Limits(30, 4)): print('done')\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout == "done\n", done.stderr


def test_a_killed_parent_leaves_no_child() -> None:
    """The child goes with its parent, even one that could not say goodbye."""
    code = (
        "import os, sys, time\nfrom amc.system.isolation import Child, Limits\n"
        "child = Child(lambda _: time.sleep(600), Limits(600, 4))\nprint(child.pid, flush=True)\ntime.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        if not _runs(child):
            return
        time.sleep(0.05)
    pytest.fail("the child is still there")


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_table_traced_apart_is_the_same() -> None:
    """What comes back from the child cuts as what is traced here does; outputs agree to the rounding of float32."""
    recipe, example = load_recipe(None), Call((torch.randn(1, 3, 32, 32),))
    here, there = (build_model("resnet20", in_channels=3) for _ in range(2))
    ours, theirs = (
        trace_groups(here, example, recipe.model.ignore, recipe.surgery.step),
        trace_isolated(there, example, recipe.model.ignore, recipe.surgery.step, recipe.surgery.limits),
    )
    assert ours.groups == theirs.groups and ours.frozen == theirs.frozen
    assert np.array_equal(ours.channel_group, theirs.channel_group)
    policy = ours.space.nearest(ours.space.high * 0.5)
    kept = kept_channels(ours, rank_channels(here, ours, "magnitude"), policy)
    call = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(cut_channels(here, ours, kept)(call), cut_channels(there, theirs, kept)(call))


def test_a_trace_that_takes_too_long_is_one_line() -> None:
    """Tracing is limited by the recipe."""
    recipe = load_recipe(None, {"surgery.trace_seconds": 0.5})
    model = unruly.slow()
    with pytest.raises(LimitExceeded, match=r"within 0\.5 s"):
        trace_isolated(model, Call((INPUTS,)), recipe.model.ignore, recipe.surgery.step, recipe.surgery.limits)
    assert isinstance(model, nn.Module)
