"""Which network, which data, and how its outputs are judged: three tables of a recipe."""

from __future__ import annotations

from pydantic import Field, JsonValue

from amc.system.settings import Settings


class ModelSettings(Settings):
    """The dense network."""

    name: str = Field(
        default="resnet20",
        min_length=1,
        description="resnet20, resnet56, mobilenet_v2_small, vgg_small, sensor_net, char_transformer, msdnet, a "
        "torchvision name, timm:NAME, or package.module:factory",
    )
    weights: str = Field(
        default="default", min_length=1, description="default, none (random), or a file: .safetensors, .pth, .pt"
    )
    num_classes: int | None = Field(default=None, ge=1, description="outputs; default: as many as the data has classes")
    options: dict[str, JsonValue] = Field(default={}, description="keyword arguments for the network's factory")
    ignore: list[str] = Field(default=[], description="names of modules whose channels are never cut")


class DataSettings(Settings):
    """The data and how they are divided."""

    name: str = Field(
        default="fashion-mnist-10k",
        min_length=1,
        description="fashion-mnist-10k, fashion-mnist, idx:FOLDER, cifar10:FOLDER, imagefolder:FOLDER, "
        "images:FOLDER (no labels), hapt:FOLDER, shakespeare:FOLDER, or package.module:factory",
    )
    size: int | None = Field(
        default=None, ge=8, le=4096, description="height and width in pixels; default: the data's own"
    )
    split_seed: int = Field(default=0, ge=0, lt=2**32, description="what decides which example stands in which split")
    cache: str | None = Field(default=None, description="folder for downloads; default: the user's cache folder")


class TaskSettings(Settings):
    """How batches are given to the network and how its outputs are judged; default: classification."""

    batch: str | None = Field(
        default=None,
        min_length=1,
        description="package.module:function from a batch to what the network is called with; default: its first part",
    )
    metric: str | None = Field(
        default=None,
        min_length=1,
        description="package.module:function from outputs and batch to a score from 0 to 1 for each example; default: "
        "accuracy",
    )
    loss: str | None = Field(
        default=None,
        min_length=1,
        description="package.module:function from outputs and batch to what training makes small; default: "
        "cross-entropy",
    )
