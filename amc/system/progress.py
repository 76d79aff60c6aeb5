"""Telling people what is being done: bars on a terminal, plain lines elsewhere, nothing in a library call."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Protocol


class Stage(Protocol):
    """One piece of work of a known length."""

    def advance(self, amount: float = 1, note: str = "") -> None: ...


class Progress(Protocol):
    """Where stages are shown. `say` is for what should stay readable after the bars are gone."""

    def stage(self, title: str, total: float) -> Stage: ...

    def say(self, text: str) -> None: ...


class Silent:
    """Shows nothing."""

    def stage(self, title: str, total: float) -> Stage:
        return self

    def advance(self, amount: float = 1, note: str = "") -> None:
        return None

    def say(self, text: str) -> None:
        return None


class PlainStage:
    """A line at the start, at most one every ten seconds, and one at the end."""

    EVERY_SECONDS = 10.0

    def __init__(self, title: str, total: float) -> None:
        self.title, self.total, self.done = title, total, 0.0
        self.started = self.last = monotonic()
        print(f"{title} ...", file=sys.stderr, flush=True)

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.done += amount
        now = monotonic()
        finished = self.done >= self.total
        if not finished and now - self.last < self.EVERY_SECONDS:
            return
        self.last = now
        left = "" if finished else f", {(self.total - self.done) * (now - self.started) / self.done:.0f} s left"
        note = f", {note}" if note else ""
        print(f"{self.title}: {self.done:g}/{self.total:g}{note}{left}", file=sys.stderr, flush=True)


class Plain:
    """Lines on stderr, for logs and pipelines."""

    def stage(self, title: str, total: float) -> Stage:
        return PlainStage(title, total)

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


@contextmanager
def shown(*, quiet: bool = False) -> Iterator[Progress]:
    """Bars when stderr is a terminal, plain lines otherwise, nothing when `quiet`."""
    if quiet:
        yield Silent()
    elif not sys.stderr.isatty():
        yield Plain()
    else:
        from rich import progress as rich_progress
        from rich.console import Console

        console = Console(stderr=True)
        columns = (
            rich_progress.SpinnerColumn(),
            rich_progress.TextColumn("[bold]{task.description}"),
            rich_progress.BarColumn(bar_width=30),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TimeRemainingColumn(),
            rich_progress.TextColumn("{task.fields[note]}"),
        )
        with rich_progress.Progress(*columns, console=console) as bars:
            yield _Bars(bars)


class _Bars:
    def __init__(self, bars) -> None:  # type: ignore[no-untyped-def]
        self.bars = bars

    def stage(self, title: str, total: float) -> Stage:
        return _Bar(self.bars, self.bars.add_task(title, total=total, note=""))

    def say(self, text: str) -> None:
        self.bars.console.print(text, highlight=False, markup=False)


class _Bar:
    def __init__(self, bars, task: int) -> None:  # type: ignore[no-untyped-def]
        self.bars, self.task = bars, task

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.bars.update(self.task, advance=amount, **({"note": note} if note else {}))
