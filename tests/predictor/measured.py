"""Made-up networks whose accuracy is known everywhere, and SeerNet's measurements where a folder of them is named."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

LAYERS = 10
BITS = tuple(range(LAYERS, 2 * LAYERS))  # the columns of `mixed_network` that are bits
FILES = {
    "resnet20": ("res20_sample_result_400.npy", "res20_acc_result_400.npy"),
    "resnet18": ("resnet18_sample.npy", "resnet18_acc.npy"),
}


@cache
def mixed_network(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Policies (count, 20), ten kept fractions in {1/4, 1/2, 3/4}, ten bits from 2 to 5, and accuracies about 0.85."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.randint(1, 4, (count, LAYERS), generator=generator).double() / 4
    bits = torch.randint(2, 6, (count, LAYERS), generator=generator).double()
    weak = 0.5 + torch.rand(2, LAYERS, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    lost = (weak[0] * (-3 * kept).exp()).mean(dim=1) / 4 + (weak[1] * 4**-bits).mean(dim=1)
    noise = 0.002 * torch.randn(count, generator=generator, dtype=torch.float64)
    return torch.cat([kept, bits], dim=1), 0.93 - lost - 2 * lost.square() + noise


def sigmoid_network(count: int, groups: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Policies (count, groups) in [0.3, 0.9] and accuracies between chance, 0.1, and a dense accuracy of 0.93."""
    generator = torch.Generator().manual_seed(seed)
    policies = 0.3 + 0.6 * torch.rand(count, groups, generator=generator, dtype=torch.float64)
    harm = torch.linspace(0.5, 1.5, groups, dtype=torch.float64)
    score = 4 - (harm * (-3 * policies).exp()).sum(dim=1) * 20 / groups
    noise = 0.003 * torch.randn(count, generator=generator, dtype=torch.float64)
    return policies, (0.1 + 0.83 * score.sigmoid() + noise).clamp(0, 1)


def published(network: str) -> tuple[Path, Path]:
    """SeerNet's files of policies and accuracies for "resnet20" or "resnet18", from the folder AMC_SEERNET names."""
    folder = os.environ.get("AMC_SEERNET")
    if folder is None:
        pytest.skip("AMC_SEERNET names no folder with SeerNet's measurements")
    policies, accuracy = (Path(folder) / name for name in FILES[network])
    return policies, accuracy


def written(folder: Path, count: int = 40, percent: bool = True) -> tuple[Path, Path]:
    """`mixed_network` as files of pruned fractions and bits, and of accuracies."""
    policies, accuracy = mixed_network(count)
    rows = policies.numpy().copy()
    rows[:, :LAYERS] = 1 - rows[:, :LAYERS]
    np.save(folder / "policies.npy", rows)
    np.save(folder / "accuracy.npy", accuracy.numpy() * (100 if percent else 1))
    return folder / "policies.npy", folder / "accuracy.npy"
