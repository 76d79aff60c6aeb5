"""The global random states of torch, numpy and Python, put aside and put back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RandomState:
    """What the next numbers of the three sources depend on; torch's is that of the CPU."""

    torch: Tensor
    numpy: Any
    python: Any

    @classmethod
    def now(cls) -> RandomState:
        """The states as they are."""
        return cls(torch.get_rng_state(), np.random.get_state(), random.getstate())

    @classmethod
    def of_seed(cls, seed: int) -> RandomState:
        """The states that `seed` starts the sources in; they themselves are left as they are."""
        with seeded(seed):
            return cls.now()

    def restore(self) -> None:
        """Set the states back to these."""
        torch.set_rng_state(self.torch)
        np.random.set_state(self.numpy)
        random.setstate(self.python)


def set_seeds(seed: int) -> None:
    """Start the three sources from `seed`; GPUs' states stay as they are."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, the three sources are those of `seed`; after it, they are what they were before."""
    before = RandomState.now()
    set_seeds(seed)
    try:
        yield
    finally:
        before.restore()
