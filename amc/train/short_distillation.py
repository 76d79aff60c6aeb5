"""A cut network's short training before it is measured: a few steps towards the dense network's outputs.

All policies of a study learn from the same batches in the same order, and what the dense network makes of these is
computed once, not for each of them. Images are not augmented: few steps see few of them twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amc.system.device import Compute
from amc.system.errors import ModelError
from amc.system.eval_mode import evaluating
from amc.train.settings import FinetuneSchedule, RecoverySettings
from amc.train.training import loss_of, optimizer_of, set_learning_rate
from amc.zoo.data.kept import KeptSplit
from amc.zoo.data.splits import Batch
from amc.zoo.task import Task
from amc.zoo.teacher import RememberingTeacher

FIRST = 4  # the seed of the first pass; the following ones are those of the next passes

# Of the fine-tune's learning rate: on ResNet-20 at 15 % of its multiply-adds, 20 steps at 0.4 of it left policies that
# are any good at losses of 0.40 to 0.53, at twice of it at 0.60 to 0.73; degenerate ones prefer more.
LESS = 0.4

# What of a fine-tune's settings holds for the short one too.
SHARED = {"optimizer", "momentum", "weight_decay", "warmup", "schedule", "label_smoothing", "distill", "temperature"}


def short_schedule(recovery: RecoverySettings, finetune: FinetuneSchedule) -> FinetuneSchedule:
    """The recipe's fine-tune with the learning rate and the batches of the short one."""
    rate = recovery.lr or LESS * finetune.lr
    return finetune.model_copy(update={"lr": rate, "batch_size": recovery.step_images, "ema": 0.0})


def short_record(recovery: RecoverySettings, finetune: FinetuneSchedule, task: Task) -> str:
    """All that the short training depends on, as JSON; empty where there is none."""
    if not recovery.steps:
        return ""
    record = finetune.model_dump(include=SHARED)
    rate = short_schedule(recovery, finetune).lr
    record |= {"steps": recovery.steps, "lr": rate, "images": recovery.step_images}
    return json.dumps(record | {"loss": task.loss_fingerprint}, sort_keys=True)


@dataclass(eq=False)
class ShortDistillation:
    """The short training of one dense network's offspring.

    Attributes:
        teacher: the dense network, on the device of `compute`.
        split: what is learned from.
        schedule: learning rate, batch size and loss; its epochs play no part.
        steps: how many.
        seed: of what a network draws while it trains (dropout).
    """

    teacher: nn.Module
    split: KeptSplit
    schedule: FinetuneSchedule
    steps: int
    compute: Compute
    task: Task
    seed: int = 0

    def __post_init__(self) -> None:
        self._remembering = RememberingTeacher(self.teacher)

    def __call__(self, model: nn.Module) -> None:
        """Train `model` in place; it is left in the training modes it came in, without gradients.

        The global random state is left as it was.

        Raises:
            ModelError: the loss is not finite.
            UsageError: there is neither a loss nor an output to match.
        """
        modes = [(module, module.training) for module in model.modules()]
        devices = [self.compute.device] if self.compute.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices), torch.enable_grad():
                torch.manual_seed(self.seed)
                loss = self._train(model.train())
        finally:
            for module, mode in modes:
                module.training = mode
            model.zero_grad(set_to_none=True)
        left = torch.stack([loss, *torch._foreach_norm(list(model.parameters()))]).detach()
        if not bool(left.isfinite().all()):
            raise ModelError(
                f"weights must stay finite in the {self.steps} steps of recovery, but did not; lower recovery.lr"
            )

    def prepare(self) -> None:
        """Ask the teacher about all batches now, as the first call would."""
        for batch in self._batches() if self.schedule.distill else ():
            self._teacher_outputs(batch)

    def _train(self, model: nn.Module) -> Tensor:
        """The loss of the last step."""
        optimizer, device, loss = optimizer_of(model, self.schedule), self.compute.device, torch.zeros(())
        for step, batch in enumerate(self._batches()):
            set_learning_rate(optimizer, self.schedule, step, self.steps)
            with self.compute.autocast():
                outputs = self.task.call(batch).to(device).on(model)
            loss = loss_of(outputs, batch, self.task, self.schedule, lambda: self._teacher_outputs(batch))  # noqa: B023
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return loss.detach()

    def _batches(self) -> Iterator[Batch]:
        """As many batches as there are steps: pass after pass over the split, each in an order of its own."""
        size, seed, left = self.schedule.batch_size, FIRST, self.steps
        whole, rest = divmod(len(self.split), size)
        a_pass = max(1, whole + (rest >= 2))  # BatchNorm cannot train on one image
        while left:
            here = min(left, a_pass)
            yield from self.split.batches(size, seed=seed, limit=here * size)
            seed, left = seed + 1, left - here

    def _teacher_outputs(self, batch: Batch) -> Any:
        """What the teacher makes of a batch; asked once a study, as far as memory allows."""
        with torch.no_grad(), evaluating(self.teacher), self.compute.autocast():
            return self._remembering.outputs(self.task.call(batch).to("cpu"), self.compute.device)
