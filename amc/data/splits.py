"""The three splits every job works on, and how batches come out of them.

`train` feeds moments, BatchNorm statistics and gradients; `measure` is the accuracy the search sees; `test` is touched
once, at the end. Pictures that fit in memory are kept there as uint8 and turned into floats one batch at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]


class Split(Protocol):
    """Pictures with labels, seen one batch at a time."""

    def __len__(self) -> int: ...

    @property
    def digest(self) -> str:
        """A hash of all that the split holds: two splits with one digest give the same batches."""
        ...

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
        """Yield float (B, C, H, W) inputs, normalised, and int64 (B,) labels.

        `seed` shuffles (and drives `augment`); None keeps the order. `limit` stops after that many pictures.
        `rank` of `world` processes yields its own share of every global batch of `size * world` pictures; a last one
        of fewer pictures than processes is left out, so that all ranks take the same number of steps.
        """
        ...


@dataclass(frozen=True)
class Splits:
    """One data set, divided once: no picture stands in two splits."""

    name: str
    train: Split
    measure: Split
    test: Split
    input_shape: tuple[int, int, int]  # channels, height, width
    num_classes: int

    @cached_property
    def digest(self) -> str:
        """Hash of the two splits that a trial depends on; `test` never decides anything, so it is left out."""
        return hashlib.sha256(f"{self.train.digest} {self.measure.digest}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Augmentation:
    """Random left-right flip, shift of up to `shift` pixels, and a square of side `erase` blanked out (0 = none)."""

    flip: bool = True
    shift: int = 2
    erase: int = 0


@dataclass(frozen=True, eq=False)
class MemorySplit:
    """Pictures held in memory: uint8 (N, C, H, W), labels int64 (N,), and the mean and std (in 0..1) per channel."""

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation = Augmentation()

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def digest(self) -> str:
        digest = hashlib.sha256(repr((tuple(self.images.shape), self.mean, self.std, self.augmentation)).encode())
        digest.update(self.images.numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()[:16]

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
        generator = torch.Generator().manual_seed(seed or 0)
        count = min(len(self), limit or len(self))
        order = torch.arange(len(self)) if seed is None else torch.randperm(len(self), generator=generator)
        order = order[:count]
        if augment:  # every rank draws its own noise
            generator.manual_seed((seed or 0) * 1009 + rank)
        for start in range(0, count, size * world):
            share = order[start : start + size * world]
            if len(share) < world:
                break
            index = share[rank::world]
            images = self.images[index]
            if augment:
                images = self._augment(images, generator)
            yield self._normalise(images), self.labels[index]

    def _normalise(self, images: Tensor) -> Tensor:
        mean = torch.tensor(self.mean).view(1, -1, 1, 1) * 255
        std = torch.tensor(self.std).view(1, -1, 1, 1) * 255
        floats: Tensor = (images.float() - mean) / std
        return floats.contiguous(memory_format=torch.channels_last)

    def _augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Flip and shift by one gather of rows and columns per picture; (B, C, H, W) uint8 in and out."""
        kind, (number, _, height, width) = self.augmentation, images.shape

        def draw(low: int, high: int) -> Tensor:
            return torch.randint(low, high + 1, (number, 1), generator=generator)

        rows = torch.arange(height) + draw(0, 2 * kind.shift)
        columns = torch.arange(width).expand(number, width)
        if kind.flip:
            columns = torch.where(draw(0, 1).bool(), columns.flip(1), columns)
        columns = columns + draw(0, 2 * kind.shift)
        padded = torch.nn.functional.pad(images, [kind.shift] * 4)
        moved = padded[torch.arange(number)[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (B, H, W, C)
        if kind.erase:
            row = torch.arange(height) - draw(0, height - 1) + kind.erase // 2  # within the square: 0 to erase - 1
            column = torch.arange(width) - draw(0, width - 1) + kind.erase // 2
            inside_rows, inside_columns = ((place >= 0) & (place < kind.erase) for place in (row, column))
            moved[inside_rows[:, :, None] & inside_columns[:, None, :]] = round(255 * sum(self.mean) / len(self.mean))
        return moved.permute(0, 3, 1, 2)
