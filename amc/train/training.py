"""Training, from scratch or after a cut: one loop for a CPU, a GPU and many processes under `torchrun`.

The dense network may teach the cut one (distillation, Hinton et al. 2015, arXiv 1503.02531). The weights kept are those
with the best accuracy on the validation split; the test split is never seen here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from amc.system.device import Compute
from amc.system.errors import ModelError, UsageError
from amc.system.files import write_whole
from amc.system.progress import Progress, Silent
from amc.train.evaluation import evaluate
from amc.train.settings import FinetuneSchedule, Schedule
from amc.zoo.call import Call
from amc.zoo.data.splits import Batch, Splits
from amc.zoo.task import CLASSIFICATION, Task

ADAM_SECOND = 0.99  # decay of AdamW's squared gradients: short schedules have no time for the usual 0.999


@dataclass
class TrainingHistory:
    """How a training went: measured accuracy after each epoch, the best of them, and what it took."""

    accuracies: list[float] = field(default_factory=list)
    best_accuracy: float = -1.0
    steps: int = 0
    seconds: float = 0.0


def learning_rate_factor(schedule: Schedule, step: int, steps: int) -> float:
    """Share of the largest learning rate at `step` of `steps`: a rise (onecycle only), then half a cosine to zero."""
    rise = schedule.warmup * steps if schedule.schedule == "onecycle" else 0.0
    if step < rise:
        return 0.04 + 0.96 * step / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise)))


def optimizer_of(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """What changes the parameters that are not frozen; only those with more than one dimension decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": schedule.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=schedule.lr, betas=(schedule.momentum, ADAM_SECOND))
    return torch.optim.SGD(groups, lr=schedule.lr, momentum=schedule.momentum, nesterov=schedule.momentum > 0)


def set_learning_rate(optimizer: torch.optim.Optimizer, schedule: Schedule, step: int, steps: int) -> None:
    """What holds for `step` of `steps`."""
    for group in optimizer.param_groups:
        group["lr"] = schedule.lr * learning_rate_factor(schedule, step, steps)


def teacher_share(schedule: Schedule) -> float:
    """Share of the loss that comes from a teacher, where there is one."""
    return schedule.distill if isinstance(schedule, FinetuneSchedule) else 0.0


def loss_of(
    outputs: Any, batch: Batch, task: Task, schedule: Schedule, teacher_outputs: Callable[[], Any] | None = None
) -> Tensor:
    """The task's loss, the teacher's share in it, or the teacher alone where the task knows no loss.

    Without a teacher and without labels it is the task's distance from the dense network.

    `teacher_outputs` gives them; it is called only where they count.

    Raises:
        UsageError: there is neither a loss nor a teacher whose outputs could be matched.
    """
    loss, share = task.loss(outputs, batch, schedule.label_smoothing), teacher_share(schedule)
    soft = None
    if teacher_outputs is not None and share > 0:
        assert isinstance(schedule, FinetuneSchedule)
        soft = task.distil(outputs, teacher_outputs(), schedule.temperature, batch)
    if loss is None and soft is None:
        loss = task.agreement_loss(outputs, batch)
    if loss is None and soft is None:
        raise UsageError(
            "training needs a loss, but none can be derived from these outputs and batches; give --loss "
            "package.module:function"
        )
    if soft is None or loss is None:
        return loss if soft is None else soft  # type: ignore[return-value]
    return (1 - share) * loss + share * soft


def train(
    model: nn.Module,
    splits: Splits,
    schedule: Schedule,
    compute: Compute,
    *,
    seed: int = 0,
    teacher: nn.Module | None = None,
    checkpoint: Path | None = None,
    title: str = "train",
    progress: Progress | None = None,
    task: Task = CLASSIFICATION,
    start: float | None = None,
) -> TrainingHistory:
    """Train `model` in place and leave it with the best weights seen, in the training mode it came in.

    Args:
        model: on `compute.device`; frozen parameters stay frozen.
        splits: `train` is learned from, `validation` picks the best epoch.
        schedule: epochs, learning rate and the rest.
        compute: where, and in which number format.
        seed: order and augmentation of the images.
        teacher: gives soft targets; its share and temperature stand in a `FinetuneSchedule`.
        checkpoint: written after every epoch; the same call with the same file goes on where it stopped.
        title: what the progress is called.
        progress: where it is shown; None shows nothing.
        task: how batches are given to the network, and what is made small.
        start: accuracy on the validation split of the weights that `model` comes with: these are given back where no
            epoch comes up to it. None: they do not count.

    Raises:
        ModelError: the loss is not finite.
        UsageError: there is neither a loss nor a teacher whose outputs could be matched.
    """
    loop = _Loop(model, splits, schedule, compute, seed, teacher, task)
    if loop.steps == 0:
        return loop.training
    first = _copied(model) if start is not None else {}
    loop.restore(checkpoint)
    progress = progress or Silent()
    stage = progress.stage(title, loop.steps)
    stage.advance(loop.step)
    modes = [(module, module.training) for module in model.modules()]
    try:
        while loop.step < loop.steps:
            done = loop.run_epoch()
            if checkpoint is not None and loop.is_leader:
                loop.save(checkpoint)
            stage.advance(done, f"measured {loop.training.best_accuracy:.2%} at best")
    finally:
        for module, mode in modes:
            module.training = mode
    if start is not None and loop.training.best_accuracy < start:
        progress.say(
            f"{title}: it made the network worse ({start:.2%} before, {loop.training.best_accuracy:.2%} after, on the "
            "validation split), so the weights before it are kept; try a smaller finetune.lr, or more epochs"
        )
        loop.best, loop.training.best_accuracy = first, start
    loop.finish()
    return loop.training


def _copied(model: nn.Module) -> dict[str, Tensor]:
    """The weights as they are now."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


class _Loop:
    """The state of one training."""

    def __init__(
        self,
        model: nn.Module,
        splits: Splits,
        schedule: Schedule,
        compute: Compute,
        seed: int,
        teacher: nn.Module | None,
        task: Task,
    ) -> None:
        from accelerate import Accelerator

        self.accelerator = Accelerator(cpu=compute.device.type == "cpu")
        self.model, self.splits, self.schedule, self.compute, self.seed = model, splits, schedule, compute, seed
        self.teacher, self.task = teacher.eval() if teacher is not None else None, task
        whole, rest = divmod(len(splits.train), schedule.batch_size)
        self.per_epoch = max(1, whole + (rest >= 2 * self.world))  # BatchNorm cannot train on one image
        self.steps, self.step = round(schedule.epochs * self.per_epoch), 0
        self.training = TrainingHistory(steps=self.steps)
        self.optimizer = optimizer_of(model, schedule)
        self.running = model if self.world == 1 else self.accelerator.prepare_model(model)
        self.average: AveragedModel | None = None
        if schedule.ema:
            self.average = AveragedModel(
                model,
                multi_avg_fn=get_ema_multi_avg_fn(schedule.ema),  # type: ignore[no-untyped-call]
                use_buffers=True,
            )
        self.best: dict[str, Tensor] = {}

    @property
    def world(self) -> int:
        return int(self.accelerator.num_processes)

    @property
    def is_leader(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def run_epoch(self) -> int:
        """Train to the end of the epoch or of the schedule, measure, keep the best; returns the steps done."""
        start, before = perf_counter(), self.step
        self.running.train()
        epoch = self.step // self.per_epoch
        for batch in self._batches(epoch):
            if self.step >= min(self.steps, (epoch + 1) * self.per_epoch):
                break
            self._take_step(batch)
            self.step += 1
        judged = self.average.module if self.average is not None else self.model
        accuracy = self._from_leader(evaluate(judged, self.splits.validation, self.compute, task=self.task).accuracy)
        self.training.accuracies.append(accuracy)
        if accuracy > self.training.best_accuracy:
            self.training.best_accuracy = accuracy
            self.best = _copied(judged)
        self.training.seconds += perf_counter() - start
        return self.step - before

    def _from_leader(self, value: Any) -> Any:
        """The first process's `value`: BatchNorm statistics, and so accuracies, differ a little between processes."""
        shared = [value]
        if self.world > 1:
            torch.distributed.broadcast_object_list(shared, src=0)
        return shared[0]

    def _batches(self, epoch: int) -> Iterator[Batch]:
        return self.splits.train.batches(
            max(1, self.schedule.batch_size // self.world),
            seed=self.seed * 100_003 + epoch + 1,
            augment=True,
            rank=int(self.accelerator.process_index),
            world=self.world,
        )

    def _take_step(self, batch: Batch) -> None:
        set_learning_rate(self.optimizer, self.schedule, self.step, self.steps)
        call = self.task.call(batch).to(self.compute.device)
        with self.compute.autocast():
            outputs = call.on(self.running)
        outputs_of = partial(self._teacher_outputs, call) if self.teacher is not None else None
        loss = loss_of(outputs, batch, self.task, self.schedule, outputs_of)
        if not math.isfinite(loss.item()):
            raise ModelError(f"the loss must stay finite, but is {loss.item()} at step {self.step}; lower `lr`")
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)

    def _teacher_outputs(self, call: Call) -> Any:
        assert self.teacher is not None
        with torch.no_grad(), self.compute.autocast():
            return call.on(self.teacher)

    def finish(self) -> None:
        self.model.load_state_dict(self.best)
        self.model.zero_grad(set_to_none=True)

    def save(self, path: Path) -> None:
        state = {
            "schedule": self.schedule.model_dump_json(), "seed": self.seed, "step": self.step,
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "best": self.best,
            "average": self.average.state_dict() if self.average is not None else {},
            "accuracies": self.training.accuracies, "best_accuracy": self.training.best_accuracy,
            "seconds": self.training.seconds,
        }  # fmt: skip
        write_whole(path, lambda file: torch.save(state, file))

    def restore(self, path: Path | None) -> None:
        """Go on from `path` if it holds a checkpoint of this very training; start anew otherwise.

        The first process reads it and hands it to the others, so that all of them stand at the same step.
        """
        state = self._from_leader(self._read(path) if path is not None and self.is_leader else None)
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.step, self.best = state["step"], state["best"]
        self.training.accuracies, self.training.seconds = state["accuracies"], state["seconds"]
        self.training.best_accuracy = state["best_accuracy"]

    def _read(self, path: Path) -> dict[str, Any] | None:
        """The checkpoint in `path` if it is one of this training."""
        if not path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location=self.compute.device, weights_only=True)
            mine = self.schedule.model_dump_json(), self.seed, _shapes(self.model.state_dict())
            return state if (state["schedule"], state["seed"], _shapes(state["model"])) == mine else None
        except Exception:  # no checkpoint of ours: what reading it raises depends on what it is
            return None


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
