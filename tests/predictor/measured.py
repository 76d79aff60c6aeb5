"""SeerNet's published measurements, and a made-up network whose accuracy is known everywhere."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@cache
def seernet(network: str) -> tuple[Tensor, Tensor]:
    """Kept fractions and bits / 8 (n, d), accuracy (n,) in [0, 1], of "resnet20" (400, 36) or "resnet18" (237, 57)."""
    with np.load(Path(__file__).with_name("seernet.npz")) as arrays:
        kept = 1 - arrays[f"{network}_removed"] / 4
        policies = np.concatenate([kept, arrays[f"{network}_bits"] / 8], axis=1)
        return torch.from_numpy(policies), torch.from_numpy(arrays[f"{network}_accuracy"] / 100).double()


def sigmoid_network(count: int, groups: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Policies (count, groups) in [0.3, 0.9] and accuracies between chance, 0.1, and a dense accuracy of 0.93."""
    generator = torch.Generator().manual_seed(seed)
    policies = 0.3 + 0.6 * torch.rand(count, groups, generator=generator, dtype=torch.float64)
    harm = torch.linspace(0.5, 1.5, groups, dtype=torch.float64)
    score = 4 - (harm * (-3 * policies).exp()).sum(dim=1) * 20 / groups
    noise = 0.003 * torch.randn(count, generator=generator, dtype=torch.float64)
    return policies, (0.1 + 0.83 * score.sigmoid() + noise).clamp(0, 1)
