"""Work done in a child process that may take only so long and so much memory, whatever it does.

The child is a fork where that is safe (Linux): it has the network already and starts at once. It computes on one
thread, because a pool of threads does not survive a fork, and never touches a GPU. What it finds comes back as files in
a folder of its own; nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

from amc.system import errors
from amc.system.errors import AmcError, ModelError
from amc.system.factory import one_line
from amc.system.files import write_json

FAILURE = "failure.json"
GRACE_SECONDS = 5.0  # beyond its time, for a child inside one long call that cannot say where it is
POLL_SECONDS = 0.01
OUT_OF_MEMORY = ("can't allocate memory", "Cannot allocate memory", "not enough memory", "Unable to allocate")


@dataclass(frozen=True)
class Limits:
    """What a child may take: seconds on the clock, and gigabytes (10^9 bytes) beyond what it was started with."""

    seconds: float
    gigabytes: float


class LimitExceeded(ModelError):
    """A child took more time or memory than it may; `limit` is what it may, e.g. "120 s"."""

    def __init__(self, message: str, limit: str) -> None:
        super().__init__(message)
        self.limit = limit


class Child:
    """A running child process; `work` is given the folder that its results go to."""

    def __init__(self, work: Callable[[Path], None], limits: Limits) -> None:
        self.limits = limits
        self.folder = Path(tempfile.mkdtemp(prefix="amc-"))
        self.started = time.monotonic()
        self.killed = False
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other threads: the child computes on its own one
            parent, self.pid = os.getpid(), os.fork()
        if self.pid == 0:
            _be_the_child(parent, work, self.folder, limits)

    def poll(self) -> bool:
        """Whether the child has ended; one that is far beyond its time is killed."""
        try:
            ended, self.status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:  # somebody else's `wait` took it
            ended, self.status = self.pid, 0
        if ended:
            return True
        if time.monotonic() - self.started > self.limits.seconds + GRACE_SECONDS and not self.killed:
            os.kill(self.pid, signal.SIGKILL)
            self.killed = True
        return False

    def raise_if_failed(self) -> None:
        """The child's own error, or the limit that ended it; for a child that has ended.

        Raises:
            LimitExceeded: it took too long, or too much memory.
            AmcError: what `work` raised.
        """
        path = self.folder / FAILURE
        if path.is_file():
            failure = json.loads(path.read_text(encoding="utf-8"))
            kind = {"time": _too_long, "memory": _too_much}.get(failure["kind"])
            if kind:
                raise kind(self.limits, failure["where"])
            raise getattr(errors, failure["kind"], ModelError)(failure["message"])
        if self.killed:
            raise _too_long(self.limits, "")
        signalled = os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else 0
        if signalled == signal.SIGKILL:  # the kernel's, when the whole machine has no memory left
            raise _too_much(self.limits, "")
        if signalled == signal.SIGINT or os.waitstatus_to_exitcode(self.status) == 130:
            raise KeyboardInterrupt
        if self.status:
            what = signal.Signals(signalled).name if signalled else f"exit code {self.status >> 8}"
            raise ModelError(f"the network must not end the process it runs in, but it ended by {what}")

    def close(self) -> None:
        """End the child if it still runs and remove its folder."""
        while not self.poll():
            os.kill(self.pid, signal.SIGKILL)
            self.killed = True
            time.sleep(POLL_SECONDS)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def isolated(work: Callable[[Path], None], limits: Limits) -> Iterator[Path]:
    """Do `work` in a child process; the folder with what it wrote, removed afterwards.

    Where no fork is safe, `work` is done in this process without limits.

    Raises:
        LimitExceeded: it took too long, or too much memory; the message says what the network was doing.
        AmcError: what `work` raised.
    """
    if not can_isolate():
        with tempfile.TemporaryDirectory(prefix="amc-") as folder:
            work(Path(folder))
            yield Path(folder)
        return
    child = Child(work, limits)
    try:
        while not child.poll():
            time.sleep(POLL_SECONDS)
        child.raise_if_failed()
        yield child.folder
    finally:
        child.close()


def isolated_each(
    works: Mapping[str, Callable[[Path], None]], limits: Limits, jobs: int = 1
) -> Iterator[tuple[str, Path | AmcError]]:
    """Do many works by name, each in a child process of its own; yield each as it ends.

    Args:
        works: each is given a folder for what it finds. One that catches every error must let those pass of which
            `is_out_of_memory` holds.
        limits: of each child.
        jobs: children at a time.

    Yields:
        The name, and the folder, which is removed when the next one is asked for, or the error that `isolated` raises.

    Raises:
        UsageError: no fork is safe here.
    """
    if not can_isolate():
        raise errors.UsageError(f"child processes must be forked safely, as on Linux, but this is {sys.platform}")
    waiting, running = deque(works.items()), dict[str, Child]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name, work = waiting.popleft()
                running[name] = Child(work, limits)
            ended = [name for name, child in running.items() if child.poll()]
            for name in ended:
                child = running.pop(name)
                try:
                    yield name, _outcome(child)
                finally:
                    child.close()
            if not ended:
                time.sleep(POLL_SECONDS)
    finally:
        for child in running.values():
            child.close()


def _outcome(child: Child) -> Path | AmcError:
    try:
        child.raise_if_failed()
    except AmcError as error:
        return error
    return child.folder


def can_isolate() -> bool:
    """Whether a fork is safe here: elsewhere system libraries do not survive it."""
    return sys.platform.startswith("linux")


def _be_the_child(parent: int, work: Callable[[Path], None], folder: Path, limits: Limits) -> None:
    """Do the work and leave without any of the parent's clean-up; never returns."""
    code = 1
    try:
        _die_with(parent)
        import torch  # here, so that settings that name limits are read without it

        os.dup2(2, 1)  # stdout is the command's own: what a factory prints goes to stderr
        sys.stdout = sys.stderr
        torch.set_num_threads(1)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, lambda _, frame: _stop(folder, frame))
        signal.setitimer(signal.ITIMER_REAL, limits.seconds)
        _limit_memory(limits.gigabytes)
        work(folder)
        code = 0
    except BaseException as error:
        signal.setitimer(signal.ITIMER_REAL, 0)
        code = 130 if isinstance(error, KeyboardInterrupt) else 0 if _tell(folder, error) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _die_with(parent: int) -> None:
    """A parent that is killed leaves no child behind, not even one that has only begun."""
    import ctypes

    set_death_signal = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # killed before the signal was set
        os._exit(1)


def _limit_memory(gigabytes: float) -> None:
    """Refuse memory beyond `gigabytes` more than there is now: torch and Python then raise, and can say where."""
    import resource

    status = Path("/proc/self/status").read_text().splitlines()
    held = next((int(line.split()[1]) for line in status if line.startswith("VmData:")), 0)
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = held * 1024 + int(gigabytes * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _stop(folder: Path, frame: FrameType | None) -> None:
    """When the time is over: say where, and go at once, for an exception could be caught by the network."""
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    write_json(folder / FAILURE, {"kind": "time", "where": _where(frames[::-1])})
    os._exit(0)


def _tell(folder: Path, error: BaseException) -> bool:
    """Write the error for the parent; whether that worked."""
    try:
        if is_out_of_memory(error):
            _give_back_memory()
            failure = {"kind": "memory", "where": where_raised(error)}
        elif isinstance(error, AmcError):
            failure = {"kind": type(error).__name__, "message": str(error)}
        else:
            failure = {"kind": "ModelError", "message": str(failed_run(error))}
        write_json(folder / FAILURE, failure)
    except Exception:
        return False
    return True


def _give_back_memory() -> None:
    """Lift the limit again: the last words need a little memory too."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that memory was refused."""
    while error is not None:
        if isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


def failed_run(error: BaseException) -> ModelError:
    """Whatever a network raised while it ran, as one line that says where."""
    where = where_raised(error)
    at = f" at {where}" if where else ""
    return ModelError(f"the network must run, but failed{at} with {one_line(error)}")


def where_raised(error: BaseException) -> str:
    """The module of a network in which an error was raised; empty where there is none."""
    while (error.__cause__ or error.__context__) is not None:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    frames, step = [], error.__traceback__
    while isinstance(step, TracebackType):
        frames.append(step.tb_frame)
        step = step.tb_next
    return _where(frames)


def _where(frames: list[FrameType]) -> str:
    """The innermost module that runs in a stack, outermost frame first: its name in the outermost and its class."""
    from torch import nn

    running = [m for frame in frames if isinstance(m := frame.f_locals.get("self"), nn.Module)]
    if not running:
        return ""
    names = {id(module): name for name, module in running[0].named_modules()}
    name = next((names[id(module)] for module in reversed(running) if names.get(id(module))), "")
    kind = type(running[-1]).__name__
    return f"{name} ({kind})" if name else kind


def _too_long(limits: Limits, where: str) -> LimitExceeded:
    at = f" and was at {where}" if where else ""
    return LimitExceeded(
        f"the network must be traced within {limits.seconds:g} s, but took longer{at}; take smaller images, leave "
        "modules alone by --ignore NAME, or allow more by --set surgery.trace_seconds=SECONDS",
        f"{limits.seconds:g} s",
    )


def _too_much(limits: Limits, where: str) -> LimitExceeded:
    at = f" at {where}" if where else ""
    return LimitExceeded(
        f"the network must be traced within {limits.gigabytes:g} GB of memory, but asked for more{at}; take smaller "
        "images, leave modules alone by --ignore NAME, or allow more by --set surgery.trace_gigabytes=GIGABYTES",
        f"{limits.gigabytes:g} GB",
    )
