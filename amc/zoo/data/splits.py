"""The three splits every job works on, and how batches come out of them.

`train` feeds moments, BatchNorm statistics and gradients; the search sees the accuracy on `validation`; `test` is
touched once, at the end. Images that fit in memory are kept there as uint8, turned into floats one batch at a time.

A data factory of the user's returns `Splits` of any class that keeps to `Split`; `TensorSplit` and `ListSplit` are
ready-made for what fits in memory.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

Batch = Any  # (inputs, labels) for classification; whatever the task's functions can read otherwise


class Split(Protocol):
    """Examples with what is known of them, seen one batch at a time."""

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
        """Yield batches of `size` examples: normalised inputs (B, C, H, W) and int64 labels (B,), or any others.

        `seed` shuffles (and drives `augment`); None keeps the order. `limit` stops after that many examples.
        `rank` of `world` processes yields its own share of every global batch of `size * world` examples; a last one
        of fewer examples than processes is left out, so that all ranks take the same number of steps. `plan_batches`
        does all that.
        """
        ...


@dataclass(frozen=True)
class Splits:
    """One data set, divided once: no example stands in two splits.

    Attributes:
        name: of the data set; that of a user's factory is put in for it.
        input_shape: of one example, e.g. (channels, height, width) or (channels, length), or (length,) of tokens; ()
            where the network's input is not one tensor. One that is no lone tensor of floats is traced on the first
            training example.
        num_classes: the outputs that the network needs; None where the data do not say.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    input_shape: tuple[int, ...] = ()
    num_classes: int | None = None

    @property
    def has_test(self) -> bool:
        """Whether there is a test split of its own; else the validation split stands in for it."""
        return self.test is not self.validation

    @cached_property
    def digest(self) -> str:
        """Hash of the two splits that a trial depends on; `test` never decides anything, so it is left out."""
        return hashlib.sha256(f"{self.train.digest} {self.validation.digest}".encode()).hexdigest()[:16]


def groups_of(split: Split) -> Tensor | None:
    """(n,) int64, which examples belong together, as one person's do: a split may have them as its `groups`."""
    groups: Tensor | None = getattr(split, "groups", None)
    return groups


def plan_batches(
    number: int, size: int, *, seed: int | None = None, limit: int | None = None, rank: int = 0, world: int = 1
) -> Iterator[Tensor]:
    """Yield the indices of each batch of a split of `number` examples, int64, as `Split.batches` promises them."""
    order = torch.arange(number)
    if seed is not None:
        order = torch.randperm(number, generator=torch.Generator().manual_seed(seed))
    chosen = order[: limit or number]
    for start in range(0, len(chosen), size * world):
        share = chosen[start : start + size * world]
        if len(share) >= world:
            yield share[rank::world]


class IndexedSplit(ABC):
    """A split whose examples are read by their numbers: what `Split.batches` promises, in terms of `_read`."""

    @abstractmethod
    def __len__(self) -> int: ...

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
        plan = plan_batches(len(self), size, seed=seed, limit=limit, rank=rank, world=world)
        generator = torch.Generator().manual_seed((seed or 0) * 1009 + rank)  # every rank draws its own
        yield from self._read(plan, seed or 0, generator if augment else None)

    @abstractmethod
    def _read(self, plan: Iterator[Tensor], seed: int, generator: torch.Generator | None) -> Iterator[Batch]:
        """Yield the batch of each (B,) int64 in `plan`; `generator`, where there is one, augments."""


@dataclass(frozen=True)
class Augmentation:
    """Random left-right flip, shift of up to `shift` pixels, and a square of side `erase` blanked out (0 = none)."""

    flip: bool = True
    shift: int = 2
    erase: int = 0


@dataclass(frozen=True, eq=False)
class MemorySplit(IndexedSplit):
    """Images held in memory: uint8 (N, C, H, W), labels int64 (N,), and the mean and std (in 0..1) per channel."""

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

    def _read(self, plan: Iterator[Tensor], seed: int, generator: torch.Generator | None) -> Iterator[Batch]:
        for index in plan:
            images = self.images[index]
            if generator is not None:
                images = self._augment(images, generator)
            yield self._normalise(images), self.labels[index]

    def _normalise(self, images: Tensor) -> Tensor:
        mean = torch.tensor(self.mean).view(1, -1, 1, 1) * 255
        std = torch.tensor(self.std).view(1, -1, 1, 1) * 255
        floats: Tensor = (images.float() - mean) / std
        return floats.contiguous(memory_format=torch.channels_last)

    def _augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Flip and shift by one gather of rows and columns per image; (B, C, H, W) uint8 in and out.

        `torchvision.transforms.v2` draws once a call, so it must be called image by image: an augmented pass over 6,000
        images of 28 x 28 then takes 6.5 s, and 0.18 s here (one thread, busy cores).
        """
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


@dataclass(frozen=True, eq=False)
class TensorSplit(IndexedSplit):
    """Examples held in memory as tensors: batches are (inputs[i], targets[i]), never augmented.

    `inputs` and `targets` are a tensor (N, ...), or a tuple or dict of such, all of one length; `mean` and `std` are
    what the inputs were normalised with, per channel, for the record of a release. `groups` (N,) int64 tells which
    examples belong together, as one person's do: a cascade is tested on other groups than it was planned on. They
    change no batch, so the digest is without them.
    """

    inputs: Any
    targets: Any
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    groups: Tensor | None = None

    def __len__(self) -> int:
        return len(tree_flatten(self.inputs)[0][0])

    @cached_property
    def digest(self) -> str:
        return _digest((self.inputs, self.targets))

    def _read(self, plan: Iterator[Tensor], seed: int, generator: torch.Generator | None) -> Iterator[Batch]:
        for index in plan:
            yield tree_map(lambda tensor: tensor[index], (self.inputs, self.targets))  # noqa: B023 - called at once


@dataclass(frozen=True, eq=False)
class ListSplit(IndexedSplit):
    """Examples of many sizes held in memory: batches are (list of inputs, list of targets), as detectors take them."""

    inputs: Sequence[Any]
    targets: Sequence[Any]

    def __len__(self) -> int:
        return len(self.inputs)

    @cached_property
    def digest(self) -> str:
        return _digest((list(self.inputs), list(self.targets)))

    def _read(self, plan: Iterator[Tensor], seed: int, generator: torch.Generator | None) -> Iterator[Batch]:
        for index in plan:
            chosen = index.tolist()
            yield [self.inputs[i] for i in chosen], [self.targets[i] for i in chosen]


def _digest(tree: Any) -> str:
    """A hash of the structure and the values of a tree of tensors."""
    leaves, structure = tree_flatten(tree)
    digest = hashlib.sha256(str(structure).encode())
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            digest.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            digest.update(leaf.contiguous().numpy().tobytes())
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()[:16]
