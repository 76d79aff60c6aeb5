"""A split whose batches stay in memory once they were made: every trial sees the same ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor
from torch.utils._pytree import tree_leaves

from amc.zoo.data.splits import Batch, Split, groups_of

SHARE = 0.25  # of the memory that is free, for one split: several workers may stand on one machine

Way = tuple[int, int | None, int | None]  # batch size, seed, limit


@dataclass(eq=False)
class KeptSplit:
    """Gives the batches of `split`; plain ones are kept for the next time, as far as memory allows."""

    split: Split
    _kept: dict[Way, list[Batch]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.split)

    @property
    def digest(self) -> str:
        return self.split.digest

    @property
    def groups(self) -> Tensor | None:
        return groups_of(self.split)

    def batches(
        self,
        size: int,
        *,
        seed: int | None = None,
        augment: bool = False,
        limit: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> Iterator[Batch]:
        way = (size, seed, limit)
        if augment or world > 1:
            yield from self.split.batches(size, seed=seed, augment=augment, limit=limit, rank=rank, world=world)
            return
        if way in self._kept:
            yield from self._kept[way]
            return
        made: list[Batch] | None = []
        room = SHARE * free_bytes()
        for batch in self.split.batches(size, seed=seed, limit=limit):
            if made is not None:
                room -= _bytes(batch)
                if room >= 0:
                    made.append(batch)
                else:
                    made = None
            yield batch
        if made is not None:  # a pass that was broken off never comes here
            self._kept[way] = made


def _bytes(batch: Batch) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))


def free_bytes() -> int:
    """Memory that a process may still take, in bytes: the system's estimate, or its free pages."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            table = dict(line.split(":", 1) for line in file)
        return int(table["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0
