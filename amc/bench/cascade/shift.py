"""Inputs that are no longer like those a cascade was certified on: noise and blur."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from amc import Split


@dataclass(frozen=True, eq=False)
class Shifted:
    """A split whose inputs (n, channels, ...) have been disturbed, by the same draws each time.

    Attributes:
        noise: standard deviation of Gaussian noise, in units of the normalised inputs.
        blur: standard deviation of a Gaussian blur along every dimension after the channels, in samples.
    """

    split: Split
    noise: float = 0.0
    blur: float = 0.0

    def __len__(self) -> int:
        return len(self.split)

    @property
    def digest(self) -> str:
        return f"{self.split.digest}-noise{self.noise:g}-blur{self.blur:g}"

    def batches(
        self,
        size: int,
        *,
        seed: int | None = None,
        augment: bool = False,
        limit: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> Iterator[Any]:
        draw = torch.Generator().manual_seed(rank)
        for inputs, labels in self.split.batches(size, seed=seed, augment=augment, limit=limit, rank=rank, world=world):
            noise = torch.randn(inputs.shape, generator=draw).to(inputs.device)
            yield blurred(inputs, self.blur) + self.noise * noise, labels


def blurred(inputs: Tensor, spread: float) -> Tensor:
    """Gaussian blur of standard deviation `spread` along all dimensions but the first two; edges are repeated."""
    if spread == 0:
        return inputs
    reach = math.ceil(3 * spread)
    steps = torch.arange(-reach, reach + 1, device=inputs.device)
    weights = torch.exp(-0.5 * (steps.to(inputs.dtype) / spread) ** 2)
    for dimension in range(2, inputs.ndim):
        length = inputs.shape[dimension]
        index = (torch.arange(length, device=inputs.device)[:, None] + steps).clamp(0, length - 1)
        inputs = (inputs.movedim(dimension, -1)[..., index] @ (weights / weights.sum())).movedim(-1, dimension)
    return inputs
