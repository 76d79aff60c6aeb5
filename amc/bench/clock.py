"""Seconds of a piece of work, as a benchmark needs them."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter


def seconds(work: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    start = perf_counter()
    work()
    return perf_counter() - start


def least_seconds(*works: Callable[[], object], rounds: int) -> tuple[float, ...]:
    """The least wall seconds of each call over `rounds` in which all take turns: what else runs here adds only."""
    times = [[seconds(work) for work in works] for _ in range(rounds)]
    return tuple(min(column) for column in zip(*times, strict=True))
