"""Networks that have exits of their own, such as MSDNet: trained with all of them, as their authors do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from amc.system.device import Compute
from amc.zoo.data.splits import Batch, Split
from amc.zoo.task import Task


@runtime_checkable
class OwnExits(Protocol):
    """A network that has exits of its own."""

    def exit_parts(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """As many segments as heads, in order; a segment's output, a tensor or tuple, goes to its head and the next."""
        ...


def exit_outputs(network: OwnExits, inputs: Tensor) -> list[Any]:
    """What each exit answers to inputs (b, ...), the last one being the network's own answer."""
    state: Any = inputs
    outputs = []
    for part, head in zip(*network.exit_parts(), strict=True):
        state = part(state)
        outputs.append(head(state))
    return outputs


class EveryExit(nn.Module):
    """A network with exits of its own: logits (b, classes) of each exit while it trains, of the last one else."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor | list[Tensor]:
        if self.training:
            assert isinstance(self.network, OwnExits)
            return exit_outputs(self.network, inputs)
        logits: Tensor = self.network(inputs)
        return logits


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


@torch.inference_mode()
def exit_accuracies(model: nn.Module, split: Split, compute: Compute, batch_size: int = 250) -> list[float]:
    """Accuracy of every exit of a classifier in `eval` mode on a split; [] for a network without exits of its own."""
    if not isinstance(model, OwnExits):
        return []
    right, number = torch.zeros(len(model.exit_parts()[1]), dtype=torch.float64), 0
    with compute.autocast():
        for inputs, labels in split.batches(batch_size):
            outputs = exit_outputs(model, inputs.to(compute.device))
            right += torch.stack([(logits.argmax(1).cpu() == labels).sum() for logits in outputs])
            number += len(labels)
    return [float(each) for each in right / number]
