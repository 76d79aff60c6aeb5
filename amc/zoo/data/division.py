"""Dividing labelled images by a fixed seed, so that every class keeps its share in each part."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def hold_out(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Divide the images with `labels` (N,) in two: (indices of the rest, indices of `count` held out), both shuffled.

    Each class loses its share of `count`, to within one image. Both parts are shuffled, so that their first n
    images are a fair sample of them.
    """
    number = len(labels)
    # RandomState, because numpy promises that its numbers never change between versions: a split is for ever.
    source = np.random.RandomState(seed)
    order = source.permutation(number)
    by_class = torch.from_numpy(order[np.argsort(labels.numpy()[order], kind="stable")])
    steps = torch.arange(number + 1) * count // max(number, 1)
    held = steps[1:] > steps[:-1]  # `count` positions, evenly spaced over the classes
    parts = [by_class[~held], by_class[held]]
    rest, out = (part[torch.from_numpy(source.permutation(len(part)))] for part in parts)
    return rest, out
