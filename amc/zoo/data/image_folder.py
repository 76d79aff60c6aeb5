"""Images in one folder a class, or without labels, decoded on the fly by torch's DataLoader."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from amc.system.errors import DataError
from amc.system.factory import one_line
from amc.zoo.data.division import hold_out
from amc.zoo.data.splits import Batch, IndexedSplit, Splits

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HELD_MOST = 10_000  # images held out: a tenth, at most this
MOST_WORKERS = 8
FEW = 64  # images for which starting worker processes takes longer than decoding

Sample = tuple[str, int]  # path, label


@dataclass(frozen=True, eq=False)
class FolderSplit(IndexedSplit):
    """Image files with labels, in a fixed order; a `Split` whose batches are decoded as they are needed.

    `size` is the side of the square given to the network; `workers` processes decode (0: this one). Without labels
    (`labelled` False) a batch is a tuple of the images alone.
    """

    root: Path
    samples: tuple[Sample, ...]
    size: int
    workers: int
    labelled: bool = True

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def digest(self) -> str:
        """Hash of names, labels, file sizes and times: the pixels are not read."""
        digest = hashlib.sha256(repr((self.size, MEAN, STD)).encode())
        for path, label in self.samples:
            try:
                state = os.stat(path)
            except OSError as error:
                raise DataError(f"{path} must stay where it was found, but: {error.strerror}") from None
            name = os.path.relpath(path, self.root)
            digest.update(f"{name}\0{label}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]

    def _read(self, plan: Iterator[Tensor], seed: int, generator: torch.Generator | None) -> Iterator[Batch]:
        batches = [index.tolist() for index in plan]
        loader = DataLoader(
            _Images(self.samples, self.size, seed, generator is not None),
            batch_sampler=batches,
            num_workers=self.workers if sum(map(len, batches)) > FEW else 0,
            collate_fn=_collate,
            generator=torch.Generator().manual_seed(seed),
        )
        for batch in loader:
            if isinstance(batch, str):  # an exception out of a worker would bring its whole traceback into the message
                raise DataError(batch)
            yield batch if self.labelled else batch[:1]


class _Images(Dataset[Any]):
    """One decoded image with its label, or the text of what is wrong with it."""

    def __init__(self, samples: Sequence[Sample], size: int, seed: int, augment: bool) -> None:
        self.samples, self.seed, self.augment = samples, seed, augment
        finish = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        start = (
            [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
            if augment
            else [transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size)]
        )
        self.transform = transforms.Compose(start + finish)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | str:
        path, label = self.samples[index]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow warns of odd metadata that do not change the pixels
                with Image.open(path) as opened:
                    rgb = opened.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            return f"{path} must be an image, but cannot be decoded: {one_line(error)}; replace or remove it"
        if not self.augment:
            return self.transform(rgb), label
        with torch.random.fork_rng(devices=[]):  # each image has its own noise, whichever process decodes it
            torch.manual_seed(self.seed * 1_000_003 + index)
            return self.transform(rgb), label


def _collate(items: list[tuple[Tensor, int] | str]) -> Batch | str:
    images, labels = [], []
    for item in items:
        if isinstance(item, str):
            return item
        images.append(item[0])
        labels.append(item[1])
    return torch.stack(images).contiguous(memory_format=torch.channels_last), torch.tensor(labels)


def load_folders(name: str, root: Path, size: int, split_seed: int) -> Splits:
    """Divide the images below `root`.

    With train/ and val/: validation is held out of train (a tenth, at most 10,000), test is val. With class folders
    alone: 80 % train, 10 % validation, 10 % test.

    Raises:
        DataError: no images, an empty class, one class only, or val/ has other classes than train/.
    """
    if (root / "train").is_dir() or (root / "val").is_dir():
        for part in ("train", "val"):
            if not (root / part).is_dir():
                raise DataError(f"an image folder with train/ or val/ needs both, but {root} has no {part}/")
        classes, samples = _find(root / "train")
        test_classes, found = _find(root / "val")
        if classes != test_classes:
            odd = sorted(set(classes) ^ set(test_classes))
            raise DataError(
                f"train/ and val/ of {root} must have the same classes, but {odd[0]!r} is in one only ({len(odd)} such)"
            )
        order, _ = hold_out(torch.zeros(len(found)), 0, split_seed)  # shuffled: its first n are a fair sample
        tested = [found[index] for index in order.tolist()]
    else:
        classes, samples = _find(root)
        samples, tested = _hold_out(root, samples, split_seed)
    kept, held = _hold_out(root, samples, split_seed)
    workers = min(MOST_WORKERS, _processors())
    train, validation, test = (FolderSplit(root, tuple(part), size, workers) for part in (kept, held, tested))
    return Splits(name, train, validation, test, (3, size, size), len(classes))


def load_images(name: str, root: Path, size: int, split_seed: int) -> Splits:
    """Divide the images anywhere below `root`, which have no labels: 80 % train, 10 % validation, 10 % test.

    Raises:
        DataError: fewer than 10 images.
    """
    paths = sorted(str(path) for path in root.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS and path.is_file())
    rest, tested = _hold_out(root, [(path, 0) for path in paths], split_seed)
    kept, held = _hold_out(root, rest, split_seed)
    workers = min(MOST_WORKERS, _processors())
    train, validation, test = (FolderSplit(root, tuple(part), size, workers, False) for part in (kept, held, tested))
    return Splits(name, train, validation, test, (3, size, size))


def _find(folder: Path) -> tuple[list[str], list[Sample]]:
    """The names of the class folders, sorted, and the images in them with the number of their class."""
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))
    if not classes:
        raise DataError(
            f"an image folder must hold one folder a class, but {folder} holds none; make e.g. cat/ and dog/ in it"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    samples: list[Sample] = make_dataset(str(folder), numbers, extensions=IMG_EXTENSIONS, allow_empty=True)
    missing = sorted(set(range(len(classes))) - {label for _, label in samples})
    if missing:
        raise DataError(
            f"every class folder must hold images ({', '.join(IMG_EXTENSIONS)}), but "
            f"{folder / classes[missing[0]]} has none ({len(missing)} of {len(classes)} such)"
        )
    if len(classes) < 2:
        raise DataError(f"an image folder must hold at least two classes, but {folder} holds only {classes[0]!r}")
    return classes, samples


def _hold_out(root: Path, samples: list[Sample], seed: int) -> tuple[list[Sample], list[Sample]]:
    count = min(HELD_MOST, len(samples) // 10)
    if count == 0:
        raise DataError(f"an image folder must hold at least 10 images to train on, but {root} holds {len(samples)}")
    rest, held = hold_out(torch.tensor([label for _, label in samples]), count, seed)
    return [samples[i] for i in rest.tolist()], [samples[i] for i in held.tolist()]


def _processors() -> int:
    """Processors this process may use, which is what DataLoader warns by."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
