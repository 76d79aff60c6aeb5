"""Worker processes on this machine, and the one that looks after them.

Each worker has a process group of its own, so that Ctrl-C reaches only who looks after them, and a watchdog: a pipe on
its standard input that nobody writes to. When the other end goes, however it goes, the worker ends at once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Thread
from types import TracebackType
from typing import IO, Self

from amc.system.errors import AmcError, BudgetUnreachable, ModelError, StorageError, UsageError

DEATHS_IN_A_ROW = 8  # without one trial between them: then it is not chance that kills
FAREWELL_SECONDS = 5.0
FOREIGN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # torchrun's


@dataclass
class Worker:
    """One process and where its complaints go."""

    number: int
    process: subprocess.Popen[bytes]
    complaints: IO[bytes]

    @property
    def last_words(self) -> str:
        """The last line it wrote to its standard error."""
        self.complaints.seek(0)
        lines = self.complaints.read().decode(errors="replace").strip().splitlines()
        return lines[-1].removeprefix("amc: ") if lines else ""

    def close(self) -> None:
        """Let go of a process that has ended."""
        if self.process.stdin:
            self.process.stdin.close()
        self.complaints.close()


@dataclass
class WorkerPool:
    """Keeps `number` processes of one command at work as long as it is entered.

    Attributes:
        command: what each runs; it must call `start_watchdog`.
        on_death: called with the process id of every worker that died.
        environment: what differs from this process's, by the worker's number.
    """

    command: Sequence[str]
    number: int
    on_death: Callable[[int], None]
    environment: Callable[[int], Mapping[str, str]] = lambda number: {}
    workers: list[Worker] = field(default_factory=list)
    deaths: int = 0
    measured: int = -1

    def __enter__(self) -> Self:
        try:
            for number in range(self.number):
                self.workers.append(self._start(number))
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def poll(self, measured: int) -> None:
        """Replace workers that died; `measured` is how many trials there are.

        Raises:
            AmcError: a worker ended with an error of its own, or they keep dying without a trial between.
        """
        if measured > self.measured:
            self.measured, self.deaths = measured, 0
        for place, worker in enumerate(self.workers):
            code = worker.process.poll()
            if code is None:
                continue
            self.on_death(worker.process.pid)
            words = worker.last_words
            worker.close()
            if code > 0:
                raise _relayed(code, words)
            self.deaths += code != 0
            if self.deaths >= DEATHS_IN_A_ROW:
                raise ModelError(
                    f"worker processes must live to measure a policy, but {self.deaths} in a row were killed (signal "
                    f"{-code}); if memory ran out, give fewer --workers or a smaller search.batch_size"
                )
            self.workers[place] = self._start(worker.number)

    def _start(self, number: int) -> Worker:
        places = os.pathsep.join(path or os.getcwd() for path in sys.path)
        inherited = {key: value for key, value in os.environ.items() if key not in FOREIGN}
        complaints = tempfile.TemporaryFile()
        process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=complaints,
            env={**inherited, "PYTHONPATH": places, **self.environment(number)},
            start_new_session=True,
        )
        return Worker(number, process, complaints)

    def _stop(self) -> None:
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.process.terminate()
        for worker in self.workers:
            try:
                worker.process.wait(FAREWELL_SECONDS)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            worker.close()
            self.on_death(worker.process.pid)


def start_watchdog() -> None:
    """End this process at once when the process that started it closes its end of our standard input, or dies."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os._exit(1)

    Thread(target=wait, daemon=True).start()


def _relayed(code: int, words: str) -> AmcError:
    """A worker's own error as ours."""
    kinds: dict[int, type[AmcError]] = {kind.exit_code: kind for kind in (UsageError, BudgetUnreachable, StorageError)}
    if code in kinds:
        return kinds[code](words)
    return ModelError(words or f"a worker process must end with a reason, but one ended with code {code} and without")
