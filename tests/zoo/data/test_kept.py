from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from amc.zoo.data import kept
from amc.zoo.data.kept import KeptSplit, free_bytes
from amc.zoo.data.splits import MemorySplit


class Counting(MemorySplit):
    """Counts the batches that were made."""

    made: int = 0

    def batches(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        for batch in super().batches(*args, **kwargs):
            object.__setattr__(self, "made", self.made + 1)
            yield batch


def split() -> Counting:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 1, 8, 8), generator=draw, dtype=torch.uint8)
    return Counting(images, torch.arange(50), (0.5,), (0.25,))


def same(left: list[Any], right: list[Any]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a, b) for one, other in zip(left, right, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_batches_are_those_of_the_split_and_are_made_once() -> None:
    """The second pass gives the same batches and makes none; another seed or limit is another pass."""
    plain, counted = split(), split()
    keeping = KeptSplit(counted)
    assert len(keeping) == 50 and keeping.digest == plain.digest
    for way in ({"seed": 1}, {"seed": 2}, {"limit": 30}, {}):
        before = counted.made
        first, second = list(keeping.batches(16, **way)), list(keeping.batches(16, **way))  # type: ignore[arg-type]
        assert same(first, list(plain.batches(16, **way))) and same(first, second)  # type: ignore[arg-type]
        assert counted.made - before == len(first)


def test_a_pass_that_was_broken_off_is_not_kept() -> None:
    """Early stopping must not leave half a split behind."""
    keeping = KeptSplit(split())
    next(iter(keeping.batches(16)))
    assert len(list(keeping.batches(16))) == 4


def test_nothing_is_kept_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches come all the same, made anew each time."""
    monkeypatch.setattr(kept, "free_bytes", lambda: 1000)
    counted = split()
    keeping = KeptSplit(counted)
    assert same(list(keeping.batches(16)), list(keeping.batches(16))) and counted.made == 8


def test_augmented_batches_are_never_kept() -> None:
    """Noise is drawn anew for every pass, and other processes have their own shares."""
    counted = split()
    keeping = KeptSplit(counted)
    for _ in range(2):
        list(keeping.batches(16, seed=0, augment=True)), list(keeping.batches(16, rank=1, world=2))
    assert counted.made == 2 * (4 + 2)
    assert free_bytes() > 0
