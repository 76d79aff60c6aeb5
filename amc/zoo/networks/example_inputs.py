"""What to call a network with when there are no data: the shape it usually reads, and noise in that shape.

torchvision's detectors take a list of images, its optical-flow networks two batches of them, its video networks
clips. All others are called with one tensor: of numbers, or of tokens for a network that reads text.
"""

from __future__ import annotations

import torch
from torch import nn

from amc.system.factory import FACTORY
from amc.zoo.call import Call
from amc.zoo.networks.char_transformer import CharTransformer
from amc.zoo.networks.sensor_net import SensorNet
from amc.zoo.networks.source import ModelSource, torchvision_all

VIDEO_FRAMES, VIDEO_SIZE = 16, 112  # of torchvision's 3-D ResNets
VIDEO_SIZES = {"mvit": 224, "s3d": 224, "swin3d": 224}
FLOW_SIZE = 128  # the smallest image RAFT reads
PICTURE_SIZE = 224


def family_of(name: str) -> str:
    """The part of torchvision that a network stands in (detection, segmentation, video, ...), "" for all others."""
    from torchvision.models import get_model_builder

    plain = name.removeprefix("torchvision:")
    if plain not in torchvision_all():
        return ""
    parts = get_model_builder(plain).__module__.split(".")
    return parts[2] if len(parts) > 3 else ""


def usual_shape(source: ModelSource, size: int | None = None) -> tuple[int, ...]:
    """The shape of one example of a network, by its family; `size` in pixels, where it is given.

    A network of the user's own is built to see how many channels its first convolution reads.
    """
    family = family_of(source.name)
    if family == "video":
        own = next((pixels for stem, pixels in VIDEO_SIZES.items() if stem in source.name), VIDEO_SIZE)
        return (3, VIDEO_FRAMES, size or own, size or own)
    if family == "optical_flow":
        return (3, size or FLOW_SIZE, size or FLOW_SIZE)
    if source.name == "sensor_net":
        return (source.in_channels or 6, size or SensorNet.LENGTH)
    if source.name == "char_transformer":
        return (size or CharTransformer.CONTEXT,)
    channels = 3
    if FACTORY.fullmatch(source.name):
        first = next((m for m in source.build().modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))), None)
        channels = first.in_channels if isinstance(first, nn.Conv2d) else channels
    return (channels, size or PICTURE_SIZE, size or PICTURE_SIZE)


def example_of(
    name: str, shape: tuple[int, ...], number: int = 1, seed: int = 0, num_classes: int | None = None
) -> Call:
    """Noise for `number` examples of `shape`, as the network of that name takes them; tokens below `num_classes`."""
    generator, family = torch.Generator().manual_seed(seed), family_of(name)
    if name == "char_transformer":
        return Call((torch.randint(num_classes or CharTransformer.CHARACTERS, (number, *shape), generator=generator),))
    if family == "detection":
        return Call(([torch.rand(shape, generator=generator) for _ in range(number)],))
    tensors = [torch.randn(number, *shape, generator=generator) for _ in range(2 if family == "optical_flow" else 1)]
    return Call(tuple(tensors))
