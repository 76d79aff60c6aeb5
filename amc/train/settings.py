"""How networks are trained and recovered: three tables of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from amc.system.settings import Settings


class Schedule(Settings):
    """How a network is trained; the defaults are those of `amc train`, from scratch."""

    epochs: float = Field(
        default=15.0, ge=0, le=10_000, description="passes over the train split; parts of one are allowed"
    )
    optimizer: Literal["sgd", "adamw"] = Field(
        default="sgd", description="SGD with Nesterov momentum, or AdamW, which transformers need"
    )
    lr: float = Field(default=0.2, gt=0, le=100, description="largest learning rate")
    batch_size: int = Field(default=128, ge=1, description="examples in a step, over all processes")
    weight_decay: float = Field(default=5e-4, ge=0, le=1, description="weight decay")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum; AdamW's first decay")
    warmup: float = Field(default=0.25, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    schedule: Literal["onecycle", "cosine"] = Field(default="onecycle", description="how the learning rate falls")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="share of the label given to all classes alike")
    ema: float = Field(default=0.0, ge=0, lt=1, description="decay of the running mean of the weights; 0 = none")


class FinetuneSchedule(Schedule):
    """How the cut network is trained on, taught by the dense one."""

    epochs: float = Field(
        default=4.0, ge=0, le=10_000, description="passes over the train split; 0 releases it without any"
    )
    lr: float = Field(default=0.02, gt=0, le=100, description="largest learning rate")
    warmup: float = Field(default=0.1, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    distill: float = Field(
        default=0.9, ge=0, le=1, description="share of the loss that comes from the dense network's outputs"
    )
    temperature: float = Field(default=3.0, gt=0, le=100, description="temperature of the distillation")
    uniform: bool = Field(default=True, description="fine-tune the uniform baseline too, for the report")


class RecoverySettings(Settings):
    """What is done to a cut network before it is measured."""

    fold: bool = Field(default=True, description="fold removed channels into the layers that read them")
    moment_images: int = Field(default=2048, ge=1, description="training examples for the moments that folding needs")
    batchnorm_images: int = Field(
        default=512, ge=0, description="training examples for new BatchNorm statistics; 0 keeps the old"
    )
    steps: int = Field(
        default=0, ge=0, le=100_000, description="steps of training, by the loss of [finetune], before a trial is "
        "measured"
    )  # fmt: skip
    lr: float | None = Field(
        default=None, gt=0, le=100, description="largest learning rate of these steps; default: 0.4 of [finetune]'s"
    )
    step_images: int = Field(default=128, ge=1, description="training examples in such a step")
