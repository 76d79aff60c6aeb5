"""Training exits: heads alone on features that are computed once, or heads and backbone together.

The deepest exit teaches the others (Phuong and Lampert 2019, "Distillation-Based Training for Multi-Exit
Architectures"): soft targets beside the labels. Only the train split is seen: nothing is chosen on held-out examples.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from amc.cascade.methods.exits.exit_network import ExitNetwork
from amc.cascade.methods.exits.heads import ExitHead
from amc.system.device import Compute
from amc.system.errors import ModelError, UsageError
from amc.system.progress import Progress, Silent
from amc.train.settings import Schedule
from amc.train.training import optimizer_of, set_learning_rate
from amc.zoo.data.splits import Split

HALF_MOST = float(torch.finfo(torch.float16).max)


@dataclass(frozen=True)
class ExitSchedule:
    """How exits are trained.

    Attributes:
        epochs: of the heads alone.
        distill: share of the loss that comes from the deepest exit's outputs.
        temperature: of these soft targets.
        joint_epochs: of backbone and heads together, afterwards; 0 leaves the backbone as it is.
        joint_optimizer: sgd or adamw, as in a recipe.
        joint_lr: largest learning rate of these.
        joint_augment: augment their examples, as a long training from scratch wants.
    """

    epochs: int = 30
    lr: float = 3e-3
    batch_size: int = 256
    weight_decay: float = 0.05
    distill: float = 0.5
    temperature: float = 2.0
    joint_epochs: float = 0.0
    joint_optimizer: Literal["sgd", "adamw"] = "sgd"
    joint_lr: float = 0.01
    joint_augment: bool = False
    joint_batch_size: int = 128
    joint_weight_decay: float = 5e-4


@dataclass(frozen=True, eq=False)
class BackboneOutputs:
    """What a frozen backbone makes of the train split: pooled features of each exit, (n, F) float16, and its answers.

    Attributes:
        labels: (n,) int64.
        teacher_logits: (n, classes) float32, the deepest exit's logits.
    """

    features: tuple[Tensor, ...]
    labels: Tensor
    teacher_logits: Tensor


def train_exits(
    network: ExitNetwork,
    train: Split,
    compute: Compute,
    schedule: ExitSchedule | None = None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[float]:
    """Train the heads of `network` with its backbone frozen, then, if the schedule says so, all of it jointly.

    In joint training the network as it was before gives the soft targets; for a network with exits of its own, which
    may know nothing yet, it is the deepest exit at each step, which then learns from the labels alone.

    Args:
        network: on `compute.device`; left in `eval` mode. Joint training changes its backbone.

    Returns:
        The mean loss of the last epoch: of each head, or of all exits together after joint training.

    Raises:
        UsageError: a network with exits of its own is to be trained with its backbone frozen.
        ModelError: the loss is not finite.
    """
    schedule, progress, losses = schedule or ExitSchedule(), progress or Silent(), list[float]()
    heads = [head for head in network.heads if isinstance(head, ExitHead)]
    own = len(heads) < len(network.heads)
    network.eval()
    if not own and schedule.epochs:
        seen = collect(network, heads, train, compute)
        stage = progress.stage("train exits", len(heads))
        for index, (head, features) in enumerate(zip(heads, seen.features, strict=True)):
            losses.append(_fit(head, features, seen, schedule, compute, seed + index))
            stage.advance(1, f"{network.names[index]}: loss {losses[-1]:.3f}")
    elif not schedule.joint_epochs:
        raise UsageError(
            f"the exits of {type(network.backbone).__name__} are its own and are trained with it, but joint_epochs is "
            "0; give joint_epochs"
        )
    if schedule.joint_epochs:
        teacher = None if own else copy.deepcopy(nn.Sequential(*network.segments)).requires_grad_(False).eval()
        losses = [_train_jointly(network, train, compute, schedule, seed, teacher, progress)]
    return losses


@torch.inference_mode()
def collect(network: ExitNetwork, heads: Sequence[ExitHead], train: Split, compute: Compute) -> BackboneOutputs:
    """What the network, in `eval` mode, makes of the train split."""
    pooled: list[list[Tensor]] = [[] for _ in heads]
    labels, teacher_logits = [], []
    with compute.autocast():
        for inputs, answers in train.batches(250):
            features = inputs.to(compute.device)
            for head, segment, kept in zip(heads, network.segments, pooled, strict=False):
                features = segment(features)
                kept.append(head.pool(features).float().clamp(-HALF_MOST, HALF_MOST).half().cpu())
            teacher_logits.append(network.segments[-1](features).float().cpu())
            labels.append(answers.cpu())
    return BackboneOutputs(tuple(torch.cat(kept) for kept in pooled), torch.cat(labels), torch.cat(teacher_logits))


def _fit(
    head: ExitHead, features: Tensor, seen: BackboneOutputs, schedule: ExitSchedule, compute: Compute, seed: int
) -> float:
    """Fit one head; returns the mean loss of the last epoch."""
    device, draw = compute.device, torch.Generator().manual_seed(seed)
    x, labels, teacher_logits = features.to(device), seen.labels.to(device), seen.teacher_logits.to(device)
    plan = Schedule(epochs=schedule.epochs, optimizer="adamw", lr=schedule.lr, weight_decay=schedule.weight_decay)
    optimizer = optimizer_of(head, plan)
    size = min(schedule.batch_size, len(labels))
    steps, step, total = schedule.epochs * (len(labels) // size), 0, 0.0
    head.train()
    for _ in range(schedule.epochs):
        order, total = torch.randperm(len(labels), generator=draw).to(device), 0.0
        for index in order[: len(order) // size * size].view(-1, size):
            set_learning_rate(optimizer, plan, step, steps)
            with compute.autocast():
                logits = head.classify(x[index].float())
            loss = _loss(logits.float(), labels[index], teacher_logits[index], schedule)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total, step = total + float(loss.detach()) * size, step + 1
        _check(total, step)
    head.eval().zero_grad(set_to_none=True)
    return total / (len(labels) // size * size)


def _loss(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None, schedule: ExitSchedule) -> Tensor:
    """Cross-entropy with the labels, and with the soft targets where there are any."""
    loss = cross_entropy(logits, labels)
    if teacher_logits is None or not schedule.distill:
        return loss
    t = schedule.temperature
    soft = (
        kl_div(log_softmax(logits / t, 1), log_softmax(teacher_logits / t, 1), reduction="batchmean", log_target=True)
        * t**2
    )
    return (1 - schedule.distill) * loss + schedule.distill * soft


def _train_jointly(
    network: ExitNetwork,
    train: Split,
    compute: Compute,
    schedule: ExitSchedule,
    seed: int,
    teacher: nn.Module | None,
    progress: Progress,
) -> float:
    """Train segments and heads on the mean of the exits' losses; returns the mean loss of the last epoch."""
    plan = Schedule(
        epochs=schedule.joint_epochs, optimizer=schedule.joint_optimizer, lr=schedule.joint_lr,
        batch_size=schedule.joint_batch_size, weight_decay=schedule.joint_weight_decay, warmup=0.1,
    )  # fmt: skip
    optimizer = optimizer_of(network, plan)
    per_epoch = max(1, len(train) // plan.batch_size)
    steps, step, losses = max(1, round(plan.epochs * per_epoch)), 0, list[float]()
    stage = progress.stage("train network and exits", steps)
    network.train()
    network.joint = True
    while step < steps:
        order = seed * 100_003 + step + 1
        for inputs, labels in train.batches(plan.batch_size, seed=order, augment=schedule.joint_augment):
            if step == steps or (len(labels) < plan.batch_size and len(train) >= plan.batch_size):
                break
            set_learning_rate(optimizer, plan, step, steps)
            inputs, labels = inputs.to(compute.device), labels.to(compute.device)
            loss = _joint_loss(network, inputs, labels, compute, schedule, teacher)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
            _check(losses[-1], step)
            step += 1
            stage.advance(1)
    network.eval().zero_grad(set_to_none=True)
    last = losses[-per_epoch:]
    return sum(last) / len(last)


def _joint_loss(
    network: ExitNetwork,
    inputs: Tensor,
    labels: Tensor,
    compute: Compute,
    schedule: ExitSchedule,
    teacher: nn.Module | None,
) -> Tensor:
    with compute.autocast():
        outputs = network.outputs(inputs)
        with torch.no_grad():
            teacher_logits = outputs[-1].detach() if teacher is None else teacher(inputs)
    losses = [_loss(logits.float(), labels, teacher_logits.float(), schedule) for logits in outputs[:-1]]
    own = None if teacher is None else teacher_logits.float()
    return torch.stack([*losses, _loss(outputs[-1].float(), labels, own, schedule)]).mean()


def _check(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise ModelError(f"the loss must stay finite, but is {loss} at step {step}; lower the learning rate")
