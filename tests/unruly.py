"""Networks that misbehave, and one that does not; named in recipes as `tests.unruly:sleepy` and so on."""

from __future__ import annotations

import os
import time

import torch
from torch import Tensor, nn


class Slow(nn.Module):
    """Never gives an answer."""

    def forward(self, inputs: Tensor) -> Tensor:
        time.sleep(600)
        return inputs


class Stubborn(nn.Module):
    """Catches whatever is raised in it and goes on."""

    def forward(self, inputs: Tensor) -> Tensor:
        while True:
            try:
                time.sleep(600)
            except Exception:
                continue


class Greedy(nn.Module):
    """Asks for all the memory that there is."""

    def forward(self, inputs: Tensor) -> Tensor:
        held = []
        while True:
            held.append(torch.ones(25_000_000))


def _around(middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), middle, nn.Conv2d(16, 8, 3), nn.Flatten())


def sleepy() -> nn.Module:
    """Takes for ever to be built."""
    time.sleep(600)
    return nn.Identity()


def slow() -> nn.Module:
    return _around(Slow())


def stubborn() -> nn.Module:
    return _around(Stubborn())


def greedy() -> nn.Module:
    return _around(Greedy())


def deadly() -> nn.Module:
    """Ends the process."""
    os._exit(7)


def uncuttable() -> nn.Module:
    """Its only layer gives its output."""
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 5))


def talkative() -> nn.Module:
    """Prints where only the command's own result belongs."""
    print("hello from the factory")
    return _around(nn.BatchNorm2d(16))
