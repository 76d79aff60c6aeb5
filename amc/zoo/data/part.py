"""Some examples of a split as a split of their own: what is held out twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from amc.zoo.data.splits import Batch, Split, TensorSplit, groups_of


@dataclass(frozen=True, eq=False)
class PartSplit:
    """The examples of `split` at the places `index`, (k,) int64 ascending; never augmented.

    In their own order they stream through, in batches of at most `size`; to be shuffled they are held in memory.
    """

    split: Split
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    @property
    def groups(self) -> Tensor | None:
        found = groups_of(self.split)
        return None if found is None else found[self.index]

    @cached_property
    def digest(self) -> str:
        places = hashlib.sha256(self.index.numpy().tobytes()).hexdigest()
        return hashlib.sha256(f"{self.split.digest} {places}".encode()).hexdigest()[:16]

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
        if seed is None and limit is None and world == 1:
            yield from self._streamed(size)
            return
        inputs, targets = zip(*self._streamed(size), strict=True)
        whole = TensorSplit(*(tree_map(lambda *leaves: torch.cat(leaves), *trees) for trees in (inputs, targets)))
        yield from whole.batches(size, seed=seed, limit=limit, rank=rank, world=world)

    def _streamed(self, size: int) -> Iterator[Batch]:
        wanted = torch.zeros(len(self.split), dtype=torch.bool)
        wanted[self.index] = True
        start = 0
        for batch in self.split.batches(size):
            count = len(batch[1])
            here = wanted[start : start + count]
            start += count
            if bool(here.any()):
                yield tree_map(lambda tensor: tensor[here], tuple(batch))  # noqa: B023 - called at once
