"""Images for benchmarks of networks that need them larger and in colour than those that are shipped."""

from __future__ import annotations

from dataclasses import replace

from torch.nn.functional import interpolate

from amc import MemorySplit, Splits, load_splits

SIZE = 64
LARGEST = {"train": 2048, "validation": 1000, "test": 200}  # images of each split: enough for a trial


def resized(size: int | None = None) -> Splits:
    """The embedded images as `size` x `size` pixels (default: 64) in three equal channels; fewer of them."""
    whole = load_splits("fashion-mnist-10k")
    side = size or SIZE
    train, validation, test = (_enlarged(getattr(whole, name), count, side) for name, count in LARGEST.items())
    return Splits("resized", train, validation, test, (3, side, side), whole.num_classes)


def _enlarged(split: object, count: int, side: int) -> MemorySplit:
    assert isinstance(split, MemorySplit)
    images = interpolate(split.images[:count].float(), size=(side, side), mode="bilinear", antialias=True)
    colour = images.round().byte().expand(-1, 3, -1, -1).contiguous()
    return replace(split, images=colour, labels=split.labels[:count].clone(), mean=split.mean * 3, std=split.std * 3)
