"""The networks that `amc doctor --zoo` goes through: lists shipped with the package (`amc.bench.coverage.sample`)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amc import UsageError

ZOOS = ("torchvision", "timm")


@dataclass(frozen=True)
class Entry:
    """A network of a zoo and how it is examined.

    Attributes:
        name: as `--model` takes it.
        family: the library's module that it comes from.
        size: height and width of its images in pixels.
        options: arguments of its factory.
    """

    name: str
    family: str
    size: int
    options: dict[str, Any] = field(default_factory=dict)


def entries(zoo: str) -> tuple[Entry, ...]:
    """The networks of a zoo. Raises `UsageError` for a zoo that is not known."""
    if zoo not in ZOOS:
        raise UsageError(f"--zoo must be {' or '.join(ZOOS)}, but is {zoo!r}")
    return tuple(Entry(**record) for record in json.loads(networks_file(zoo).read_text(encoding="utf-8")))


def networks_file(zoo: str) -> Path:
    """Where a zoo's list is kept."""
    return Path(__file__).parent / "networks" / f"{zoo}.json"
