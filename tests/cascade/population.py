"""Answers of a made-up cascade: examples easy and hard, stages of growing skill, cheap ones too sure."""

from __future__ import annotations

import torch

from amc.cascade.stages.records import Records

ADDED = [1.0, 3.0, 6.0]


def population(number: int, seed: int, noise: float = 1.0, classes: int = 5) -> Records:
    """Records of three stages; `noise` above 1 is a shift under which all stages err more."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (number,), generator=draw)
    truth = torch.nn.functional.one_hot(labels, classes).double()
    ease = torch.rand(number, 1, generator=draw, dtype=torch.float64)
    shared = torch.randn(number, classes, generator=draw, dtype=torch.float64)
    logits = []
    for skill, sureness in ((4.0, 2.0), (5.5, 1.5), (7.0, 1.0)):
        own = torch.randn(number, classes, generator=draw, dtype=torch.float64)
        logits.append(sureness * (skill * ease * truth + noise * (0.7 * shared + 0.5 * own)))
    return Records(("small", "middle", "large"), torch.stack(logits).float(), labels)
