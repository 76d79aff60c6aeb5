"""Which running trials are alive: each has a heartbeat, and everyone watches the others'.

Optuna's own heartbeats compare clocks of the database and work with `optimize` alone; these count.

While a trial is measured, a thread writes an ever-growing count on it. A trial whose count has not changed while a
watcher's own steady clock ran `GRACE_SECONDS` is dead. No two clocks are ever compared, so a clock that
jumps, on a worker or at the database, kills nothing; and it works the same with every storage, through a proxy too.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from types import TracebackType
from typing import Self
from uuid import uuid4

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

HEARTBEAT = "amc:pulse"  # system attribute: who measures, and the count
BEAT_SECONDS = 10.0
GRACE_SECONDS = 60.0


def name_of(folder: Path | None, pid: int | None = None) -> str:
    """What the names of all who measure for a run folder begin with, or of those in one process."""
    home = f"{socket.gethostname()}:{folder.absolute() if folder else ''}:"
    return home if pid is None else f"{home}{pid}:"


def new_name(folder: Path | None) -> str:
    """A name for who measures: host, run folder, process, and what tells it from others in this process."""
    return f"{name_of(folder, os.getpid())}{uuid4().hex[:8]}"


def measured_by(trial: FrozenTrial) -> str | None:
    """Who measures a running trial, if it is one of ours."""
    beat = trial.system_attrs.get(HEARTBEAT)
    return str(beat[0]) if beat else None


class Heartbeat:
    """Beats on a trial as long as it is entered."""

    def __init__(self, storage: BaseStorage, trial_id: int, name: str) -> None:
        self.storage, self.trial_id, self.name = storage, trial_id, name
        self._over = Event()
        self._thread = Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        count = 0
        while not self._over.wait(BEAT_SECONDS):
            count += 1
            try:
                self.storage.set_trial_system_attr(self.trial_id, HEARTBEAT, [self.name, count])
            except Exception:
                continue  # the storage is away, or took the trial for dead: whoever ends the trial will see
        self.storage.remove_session()


class HeartbeatMonitor:
    """The heartbeats that this process has seen, and for how long each stood still."""

    def __init__(self) -> None:
        self._still: dict[int, tuple[object, float]] = {}
        self._looked = monotonic()

    def dead(self, trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        """The running ones among `trials`, freshly read, that have not beaten for too long.

        Between two looks at most half the grace counts: after an outage, or a sleep of this machine, the others get
        the time to beat again.
        """
        now = monotonic()
        passed, self._looked = min(now - self._looked, GRACE_SECONDS / 2), now
        still: dict[int, tuple[object, float]] = {}
        dead = []
        for trial in trials:
            if trial.state != TrialState.RUNNING:
                continue
            beat = trial.system_attrs.get(HEARTBEAT)
            before, seconds = self._still.get(trial._trial_id, (beat, -passed))
            seconds = seconds + passed if before == beat else 0.0
            still[trial._trial_id] = (beat, seconds)
            if seconds >= GRACE_SECONDS:
                dead.append(trial)
        self._still = still
        return dead
