"""A network and data so small that a whole run takes seconds; named in recipes as `tests.tiny:network` and so on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from amc.job.recipe import resolved_toml
from amc.job.run import Run
from amc.release.report_inputs import ReportInputs
from amc.study.optimize import Fit
from amc.zoo.data.sources import load_splits
from amc.zoo.data.splits import MemorySplit, Splits
from amc.zoo.networks.msdnet import MSDNet, Sizes


def report_inputs_of(run: Run, metrics: dict[str, Any] | None = None, recipe: str = "") -> ReportInputs:
    """What the report and the card of a finished run are made from, with other metrics or another recipe."""
    learned = len(run.predictor.ranks.accuracy) - 1  # beside the dense network; candidates were measured later
    job, fit = run.job, Fit(run.predictor, tuple(run.study.trials[:learned]))
    recipe = recipe or resolved_toml(run.recipe)
    return ReportInputs(job.measure, job.data, run.study, fit, metrics or run.metrics, run.policy, recipe)


class TinyNet(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, pictures: Tensor) -> Tensor:
        features = torch.relu(self.bn1(self.conv1(pictures)))
        features = torch.relu(self.bn2(self.conv2(features)))
        logits: Tensor = self.fc(features.mean((2, 3)))
        return logits


def network(num_classes: int = 10, in_channels: int = 1) -> nn.Module:
    return TinyNet(num_classes, in_channels)


class ResidualNet(nn.Module):
    """A convolution, two blocks with an identity path each, and a linear layer."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(8, 16, 3, padding=1, bias=False),
                nn.BatchNorm2d(16),
                nn.ReLU(),
                nn.Conv2d(16, 8, 3, padding=1),
            )
            for _ in range(2)
        )
        self.fc = nn.Linear(8, num_classes)

    def forward(self, pictures: Tensor) -> Tensor:
        features: Tensor = self.stem(pictures)
        for block in self.blocks:
            features = features + block(features)
        logits: Tensor = self.fc(features.mean((2, 3)))
        return logits


def residual(num_classes: int = 10, in_channels: int = 1) -> nn.Module:
    """A network whose `blocks.0.0` and `blocks.1.0` may keep no channel."""
    return ResidualNet(num_classes, in_channels)


def multi_exit(num_classes: int = 10, in_channels: int = 1) -> nn.Module:
    """A network with three exits of its own."""
    sizes = Sizes(exits=3, first=1, steps=1, growing=False, channels=4, growth=2, classifier=16)
    return MSDNet(sizes, num_classes, in_channels)


def pictures() -> Splits:
    """600 of the embedded pictures: 400 to train, 100 to validate, 100 to test."""
    whole = load_splits("fashion-mnist-10k")
    parts = {"train": 400, "validation": 100, "test": 100}
    return replace(whole, **{name: _first(getattr(whole, name), count) for name, count in parts.items()})


def _first(split: MemorySplit, count: int) -> MemorySplit:
    return replace(split, images=split.images[:count].clone(), labels=split.labels[:count].clone())


def trained_weights(path: Path, factory: Callable[[], nn.Module] = network) -> Path:
    """Weights that know a little: a few passes over the train split."""
    torch.manual_seed(0)
    model, splits = factory(), pictures()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for epoch in range(6):
        for inputs, labels in splits.train.batches(50, seed=epoch):
            optimiser.zero_grad()
            cross_entropy(model(inputs), labels).backward()
            optimiser.step()
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return path
