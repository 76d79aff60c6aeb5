"""Segmentation and detection, worked out: images of discs and squares, drawn anew from a seed, and how to judge them.

What to name in a recipe's [data] and [task]:

- segmentation: `amc.zoo.examples.shapes:segmentation`, metric `mean_iou`, loss `pixel_loss`;
- detection: `amc.zoo.examples.shapes:detection`, batch `with_boxes`, metric `box_f1`, loss `detector_loss`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from amc.zoo.data.splits import ListSplit, Split, Splits, TensorSplit

SIZE = 64  # pixels
CLASSES = 3  # background, disc, square
NUMBERS = {"train": 400, "validation": 100, "test": 100}
SURE = 0.5  # boxes of a lower score are not counted
MATCHED = 0.5  # boxes that overlap so much are the same

Example = tuple[Tensor, Tensor, Tensor, Tensor]  # image (3, S, S), mask (S, S), boxes (n, 4), labels (n,)


def draw(rng: np.random.Generator, size: int) -> Example:
    """One to three shapes of any colour on noise; a later one hides an earlier one."""
    rows, columns = np.mgrid[:size, :size]
    image = rng.normal(0, 0.3, (3, size, size)) + rng.uniform(-1, 1, (3, 1, 1))
    mask, boxes, labels = np.zeros((size, size), dtype=np.int64), [], []
    for _ in range(rng.integers(1, 4)):
        label, radius = int(rng.integers(1, CLASSES)), int(rng.integers(size // 10, size // 5))
        row, column = rng.integers(radius, size - radius, 2)
        across, down = np.abs(columns - column), np.abs(rows - row)
        inside = across**2 + down**2 <= radius**2 if label == 1 else np.maximum(across, down) <= radius
        image[:, inside] = rng.uniform(-2, 2, (3, 1)) + rng.normal(0, 0.1, (3, int(inside.sum())))
        mask[inside] = label
        boxes.append([column - radius, row - radius, column + radius, row + radius])
        labels.append(label)
    arrays = (image.astype(np.float32), mask, np.array(boxes, dtype=np.float32), np.array(labels))
    first, second, third, fourth = (torch.from_numpy(array) for array in arrays)
    return first, second, third, fourth


def segmentation(split_seed: int = 0, size: int = SIZE) -> Splits:
    """Batches of images (B, 3, S, S) and the class of every pixel (B, S, S)."""
    return _splits("segmentation", split_seed, size, (3, size, size), _with_masks)


def detection(split_seed: int = 0, size: int = SIZE) -> Splits:
    """Batches of a list of images (3, S, S) in 0..1 and a list of {boxes (n, 4), labels (n,)}."""
    return _splits("detection", split_seed, size, (), _as_lists)


def _splits(name: str, seed: int, size: int, shape: tuple[int, ...], make: Callable[[list[Example]], Split]) -> Splits:
    rng = np.random.default_rng(seed)
    parts = {part: make([draw(rng, size) for _ in range(number)]) for part, number in NUMBERS.items()}
    return Splits(name, **parts, input_shape=shape, num_classes=CLASSES)


def _with_masks(examples: list[Example]) -> Split:
    return TensorSplit(torch.stack([e[0] for e in examples]), torch.stack([e[1] for e in examples]))


def _as_lists(examples: list[Example]) -> Split:
    images = [(image / 4 + 0.5).clamp(0, 1) for image, *_ in examples]
    return ListSplit(images, [{"boxes": boxes, "labels": labels} for _, _, boxes, labels in examples])


def mean_iou(outputs: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    """Intersection over union of each image, averaged over the classes in it or found in it: (n,)."""
    found, wanted = outputs["out"].argmax(1), batch[1]
    classes = torch.arange(CLASSES).view(-1, 1, 1, 1)
    both = ((found == classes) & (wanted == classes)).flatten(2).sum(2)
    either = ((found == classes) | (wanted == classes)).flatten(2).sum(2)
    return (both / either.clamp(min=1)).sum(0) / (either > 0).sum(0)


def pixel_loss(outputs: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy over all pixels."""
    return cross_entropy(outputs["out"].float(), batch[1])


def with_boxes(batch: tuple[list[Tensor], list[dict[str, Tensor]]]) -> tuple[Any, ...]:
    """The arguments of torchvision's detectors: images, and boxes, which they read while they train."""
    return batch


def box_f1(outputs: list[dict[str, Tensor]], batch: tuple[list[Tensor], list[dict[str, Tensor]]]) -> Tensor:
    """Harmonic mean of precision and recall in each image, (n,): boxes are matched greedily, the surest first."""
    return torch.tensor([_f1(found, wanted) for found, wanted in zip(outputs, batch[1], strict=True)])


def _f1(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    from torchvision.ops import box_iou

    sure = found["scores"] >= SURE  # torchvision gives the surest first
    overlaps = box_iou(found["boxes"][sure], wanted["boxes"])
    overlaps[found["labels"][sure][:, None] != wanted["labels"]] = 0
    matched = 0
    for row in range(len(overlaps)):
        best = int(overlaps[row].argmax())
        if overlaps[row, best] >= MATCHED:
            matched += 1
            overlaps[:, best] = 0
    return 2 * matched / (len(overlaps) + len(wanted["boxes"]))


def detector_loss(outputs: dict[str, Tensor], batch: Any) -> Tensor:
    """The sum of the losses that a torchvision detector gives while it trains."""
    return torch.stack(list(outputs.values())).sum()
