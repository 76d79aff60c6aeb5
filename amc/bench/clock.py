"""Seconds of a piece of work, as a benchmark needs them."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter


def seconds(work: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    start = perf_counter()
    work()
    return perf_counter() - start
