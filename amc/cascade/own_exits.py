"""Networks that have exits of their own, such as MSDNet: trained with all of them, as their authors do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amc.cascade.exits import OwnExits, every_own_exit
from amc.cascade.recording import record
from amc.system.device import Compute
from amc.zoo.data.splits import Batch, Split
from amc.zoo.task import Task


class EveryExit(nn.Module):
    """A network with exits of its own: logits (B, classes) of each exit while it trains, of the last one else."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor | list[Tensor]:
        if not self.training:
            logits: Tensor = self.network(inputs)
            return logits
        assert isinstance(self.network, OwnExits)
        state: Any = inputs
        outputs = []
        for part, head in zip(*self.network.exit_parts(), strict=True):
            state = part(state)
            outputs.append(head(state))
        return outputs


@dataclass(frozen=True, eq=False)
class EveryExitTask(Task):
    """A task whose loss is the sum of the exits' losses: each counts as much as the last one."""

    def loss(self, outputs: Any, batch: Batch, label_smoothing: float = 0.0) -> Tensor | None:
        """As for `Task`, of each exit's outputs; None where there is none."""
        if not isinstance(outputs, list):
            return super().loss(outputs, batch, label_smoothing)
        losses = [super(EveryExitTask, self).loss(logits, batch, label_smoothing) for logits in outputs]
        found = [loss for loss in losses if loss is not None]
        return torch.stack(found).sum() if len(found) == len(losses) else None


def with_every_exit(model: nn.Module, task: Task) -> tuple[nn.Module, Task]:
    """What to train, and for what: the network with all of its exits where it has its own, else both as they are."""
    if not isinstance(model, OwnExits):
        return model, task
    return EveryExit(model), EveryExitTask(**vars(task))


def exit_accuracies(model: nn.Module, split: Split, compute: Compute) -> list[float]:
    """Of every exit on a split, the last one being the network's own; [] for a network without exits."""
    if not isinstance(model, OwnExits):
        return []
    inputs = next(iter(split.batches(1, limit=1)))[0].to(compute.device)
    found = record(every_own_exit(model, inputs, "network").stages(), split, compute)
    return [float(accuracy) for accuracy in found.accuracies]
