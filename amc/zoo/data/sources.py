"""From the name of a data set to its splits.

Names are `fashion-mnist-10k`, `fashion-mnist`, or KIND:FOLDER with the kinds of `LOADERS`, or the user's own
`package.module:factory`, a function that returns `Splits`, or train, validation and test as loaders, data sets or
lists of batches.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from amc.system.errors import DataError
from amc.system.factory import FACTORY, call_factory, import_factory, one_line
from amc.zoo.data.cifar import TEST_FILES, TRAIN_FILES, find_cifar, read_cifar
from amc.zoo.data.division import hold_out
from amc.zoo.data.idx import read_images
from amc.zoo.data.loaders import as_splits
from amc.zoo.data.splits import Augmentation, MemorySplit, Splits

EMBEDDED = Path(__file__).parent / "embedded"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
VALIDATION_MOST = 5000  # images held out of a train split: a tenth of it, at most this
FASHION_MEAN, FASHION_STD = (0.2860,), (0.3530,)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

Images = tuple[Tensor, Tensor]  # uint8 (N, C, H, W), int64 (N,)


@dataclass(frozen=True)
class Request:
    """What a loader is asked for: a data set's whole name, the folder in it, and how to divide it."""

    name: str
    folder: Path | None
    size: int | None
    split_seed: int
    cache: Path | None

    def need_folder(self) -> Path:
        """The folder of the name. Raises `DataError` when there is none, or it is no folder."""
        if self.folder is None:
            raise DataError(f"data {self.name!r} needs a folder: write {self.name.split(':')[0]}:/folder")
        if not self.folder.is_dir():
            raise DataError(f"data {self.name!r} needs a folder, but there is no folder {self.folder}; check the path")
        return self.folder


def load_splits(name: str, *, size: int | None = None, split_seed: int = 0, cache: str | Path | None = None) -> Splits:
    """Load a data set and divide it by a fixed seed.

    Args:
        name: a name as this module's docstring lists them.
        size: height and width in pixels; None keeps the images' own (224 for `imagefolder` and `images`).
        split_seed: what decides which image stands in which split.
        cache: where downloads are kept; None: the user's cache folder.

    Raises:
        DataError: the name is unknown, or the data are missing, empty, malformed, or of one class only.
    """
    kind, _, place = name.partition(":")
    if kind not in LOADERS and FACTORY.fullmatch(name):
        return _from_factory(name, {"size": size, "split_seed": split_seed, "cache": cache})
    if kind not in LOADERS:
        near = difflib.get_close_matches(kind, LOADERS, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise DataError(
            f"data must be one of {', '.join(LOADERS)} or package.module:factory, but is {name!r}; {hint}"
            "give e.g. imagefolder:/data/imagenet"
        )
    folder = Path(place).expanduser() if place else None
    return LOADERS[kind](Request(name, folder, size, split_seed, Path(cache) if cache else None))


def fashion_mnist_10k(request: Request) -> Splits:
    """Fashion-MNIST's official test split, shipped with AMC, as train 6,000, validation 2,000, test 2,000; balanced."""
    images, labels = read_images(EMBEDDED, "t10k")
    rest, test = hold_out(labels, 2000, request.split_seed)
    train, validation = hold_out(labels[rest], 2000, request.split_seed)
    parts = [(images[index], labels[index]) for index in (rest[train], rest[validation], test)]
    return _in_memory(request, parts, FASHION_MEAN, FASHION_STD, Augmentation(erase=8))


def fashion_mnist(request: Request) -> Splits:
    """The whole of Fashion-MNIST: train 55,000, validation 5,000 (both of the official train split), test 10,000."""
    folder = find_fashion_mnist(request)
    return _in_memory(
        request,
        _official(request, read_images(folder, "train"), read_images(folder, "t10k")),
        FASHION_MEAN,
        FASHION_STD,
        Augmentation(erase=8),
    )


def idx(request: Request) -> Splits:
    """Any data set in the files of MNIST: train-*, t10k-*. No flips: these may be digits or letters."""
    folder = request.need_folder()
    train, test = read_images(folder, "train"), read_images(folder, "t10k")
    shades = torch.bincount(train[0].flatten(), minlength=256).double() / train[0].numel()
    levels = torch.arange(256).double() / 255
    mean = float(shades @ levels)
    std = float((shades @ (levels - mean) ** 2).sqrt())
    if std < 1e-4:
        raise DataError(f"{folder} must hold images, but all its train pixels are alike; check the files")
    return _in_memory(
        request, _official(request, train, test), (round(mean, 4),), (round(std, 4),), Augmentation(flip=False)
    )


def cifar10(request: Request) -> Splits:
    """CIFAR-10 from the files of its binary version: train 45,000, validation 5,000, test 10,000."""
    folder = find_cifar(request.need_folder())
    train, test = read_cifar(folder, TRAIN_FILES), read_cifar(folder, TEST_FILES)
    return _in_memory(request, _official(request, train, test), CIFAR_MEAN, CIFAR_STD, Augmentation(shift=4))


def image_folder(request: Request) -> Splits:
    """One folder a class, below train/ and val/ or alone; decoded on the fly."""
    from amc.zoo.data.image_folder import load_folders  # torchvision takes a second to import

    return load_folders(request.name, request.need_folder(), request.size or 224, request.split_seed)


def unlabelled(request: Request) -> Splits:
    """Images anywhere below a folder, without labels; decoded on the fly."""
    from amc.zoo.data.image_folder import load_images  # likewise

    return load_images(request.name, request.need_folder(), request.size or 224, request.split_seed)


def hapt(request: Request) -> Splits:
    """Windows of a phone's sensors, people held out; `size` is the window's length, 128 where it is not given."""
    from amc.zoo.data.hapt import load_hapt

    return load_hapt(request.name, request.need_folder(), request.size, request.split_seed)


def shakespeare(request: Request) -> Splits:
    """Stretches of plays, character by character, whole plays held out; `size` is their length, 128 if not given."""
    from amc.zoo.data.shakespeare import load_shakespeare

    return load_shakespeare(request.name, request.need_folder(), request.size, request.split_seed)


LOADERS: dict[str, Callable[[Request], Splits]] = {
    "fashion-mnist-10k": fashion_mnist_10k,
    "fashion-mnist": fashion_mnist,
    "idx": idx,
    "cifar10": cifar10,
    "imagefolder": image_folder,
    "images": unlabelled,
    "hapt": hapt,
    "shakespeare": shakespeare,
}


def find_fashion_mnist(request: Request) -> Path:
    """The folder with the four files: the one named, AMC_DATA's, the Debian package's, or a download's.

    Raises:
        DataError: the folder named has no such files, or nothing was found and the download failed.
    """
    marker = "train-images-idx3-ubyte"
    if request.folder is not None:
        return request.need_folder()
    places = [DEBIAN]
    if own := os.environ.get("AMC_DATA"):
        places = [Path(own), Path(own) / "fashion-mnist", DEBIAN]
    for place in places:
        if (place / marker).is_file() or (place / f"{marker}.gz").is_file():
            return place
    return _download_fashion_mnist(request.cache or _cache_folder())


def _download_fashion_mnist(cache: Path) -> Path:
    """Fetch by torchvision, which checks MD5 sums and keeps what it has."""
    from torchvision.datasets import FashionMNIST

    from amc.zoo.networks.hub import short_sockets

    try:
        with short_sockets():
            FashionMNIST(str(cache), download=True)
    except (OSError, RuntimeError) as cause:
        raise DataError(
            "Fashion-MNIST was not found and its download was refused "
            f"({one_line(cause)[:80]}); `apt-get install dataset-fashion-mnist`, or give a folder "
            "with the four files: fashion-mnist:/folder, or AMC_DATA=/folder"
        ) from None
    return cache / "FashionMNIST" / "raw"


def _cache_folder() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("amc")


def _official(request: Request, train: Images, test: Images) -> list[Images]:
    """Hold the validation split out of an official train split."""
    images, labels = train
    count = min(VALIDATION_MOST, len(labels) // 10)
    rest, held = hold_out(labels, count, request.split_seed)
    return [(images[rest], labels[rest]), (images[held], labels[held]), test]


def _in_memory(
    request: Request, parts: list[Images], mean: tuple[float, ...], std: tuple[float, ...], augmentation: Augmentation
) -> Splits:
    """Splits of train, validation and test, resized where asked. Raises `DataError` for what cannot be learnt from."""
    shapes = {tuple(images.shape[1:]) for images, _ in parts}
    if len(shapes) > 1:
        raise DataError(
            f"data {request.name!r} must have images of one size, but has {sorted(shapes)}; check the files"
        )
    for part, (_, labels) in zip(("train", "validation", "test"), parts, strict=True):
        if len(labels) == 0:
            raise DataError(
                f"data {request.name!r} must leave images in every split, but {part} is empty; "
                "at least 10 training images and a test image are needed"
            )
    num_classes = 1 + max(int(labels.max()) for _, labels in parts)
    if int(parts[0][1].min()) == int(parts[0][1].max()):
        raise DataError(
            f"data {request.name!r} must have at least two classes, but every train label is "
            f"{int(parts[0][1][0])}; check the label file"
        )
    train, validation, test = (
        MemorySplit(_resized(images, request.size), labels, mean, std, augmentation) for images, labels in parts
    )
    channels, height, width = train.images.shape[1:]
    return Splits(request.name, train, validation, test, (channels, height, width), num_classes)


def _resized(images: Tensor, size: int | None) -> Tensor:
    """Uint8 (N, C, H, W) scaled to (N, C, size, size), a thousand at a time to spare memory."""
    if size is None or tuple(images.shape[2:]) == (size, size):
        return images
    scaled = [
        torch.nn.functional.interpolate(part.float(), (size, size), mode="bilinear", antialias=True)
        .round_()
        .clamp_(0, 255)
        .byte()
        for part in torch.split(images, 1000)
    ]
    return torch.cat(scaled)


def _from_factory(name: str, given: dict[str, object]) -> Splits:
    splits = call_factory(name, import_factory(name, DataError), given, {}, DataError)
    if isinstance(splits, (tuple, list)) and len(splits) == 3:
        splits = as_splits(*splits)
    if not isinstance(splits, Splits):
        raise DataError(
            f"{name} must return (train, validation, test), each a DataLoader, a data set or a list of batches, or "
            f"Splits, but returned {type(splits).__name__}"
        )
    return replace(splits, name=name)
