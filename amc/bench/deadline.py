"""When a benchmark stops for now: between two trials, or between two epochs of a fine-tune."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from amc import AmcError, Progress, Stage


class Paused(BaseException):
    """The time is over. No `Exception`: as with an interrupt, no method that catches errors may swallow it."""


class Unfinished(AmcError):
    """A benchmark stopped at its deadline; the same command goes on."""

    exit_code = 130


class Deadline:
    """A moment after which nothing new is begun."""

    def __init__(self, minutes: float, clock: Callable[[], float] = monotonic) -> None:
        self._clock, self._end = clock, clock() + 60 * minutes

    def check(self) -> None:
        """Raises `Paused` once the moment has passed."""
        if self._clock() >= self._end:
            raise Paused


class PausingProgress:
    """Shows what another one shows; pauses after a step of a stage, when a training has just written its checkpoint."""

    def __init__(self, shown: Progress, deadline: Deadline) -> None:
        self.shown, self.deadline = shown, deadline

    def stage(self, title: str, total: float) -> Stage:
        return _PausingStage(self.shown.stage(title, total), self.deadline)

    def say(self, text: str) -> None:
        self.shown.say(text)


class _PausingStage:
    def __init__(self, shown: Stage, deadline: Deadline) -> None:
        self.shown, self.deadline = shown, deadline

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.shown.advance(amount, note)
        self.deadline.check()
