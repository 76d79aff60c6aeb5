"""What to call a network with when there are no data: the shape it usually reads, and noise in that shape.

torchvision's detectors take a list of pictures, its optical-flow networks two batches of them, its video networks
clips. All others are called with one tensor.
"""

from __future__ import annotations

import torch
from torch import nn

from amc.call import Call
from amc.models.sensor_net import SensorNet

VIDEO_FRAMES, VIDEO_SIZE = 16, 112  # of torchvision's 3-D ResNets
VIDEO_SIZES = {"mvit": 224, "s3d": 224, "swin3d": 224}
FLOW_SIZE = 128  # the smallest picture RAFT reads
PICTURE_SIZE = 224


def usual_shape(name: str, model: nn.Module, size: int | None = None) -> tuple[int, ...]:
    """The shape of one example of a torchvision network, by its family; `size` in pixels, where it is given.

    Networks of other origin are asked for as many channels as their first convolution reads.
    """
    family = _family(model)
    if family == "video":
        own = next((pixels for stem, pixels in VIDEO_SIZES.items() if stem in name), VIDEO_SIZE)
        return (3, VIDEO_FRAMES, size or own, size or own)
    if family == "optical_flow":
        return (3, size or FLOW_SIZE, size or FLOW_SIZE)
    if isinstance(model, SensorNet):
        return (model.in_channels, size or model.LENGTH)
    first = next((m for m in model.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))), None)
    channels = first.in_channels if isinstance(first, nn.Conv2d) else 3
    return (channels, size or PICTURE_SIZE, size or PICTURE_SIZE)


def example_of(model: nn.Module, shape: tuple[int, ...], seed: int = 0) -> Call:
    """Noise for one example of `shape`, as `model` takes it."""
    generator = torch.Generator().manual_seed(seed)
    family = _family(model)
    if family == "detection":
        return Call(([torch.rand(shape, generator=generator)],))
    tensors = [torch.randn(1, *shape, generator=generator) for _ in range(2 if family == "optical_flow" else 1)]
    return Call(tuple(tensors))


def _family(model: nn.Module) -> str:
    """The part of torchvision that a network's class stands in."""
    parts = type(model).__module__.split(".")
    return parts[2] if parts[:2] == ["torchvision", "models"] and len(parts) > 2 else ""
