"""CIFAR-10's binary version: records of one label byte and 3 x 32 x 32 image bytes (Krizhevsky 2009)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from amc.system.errors import DataError

SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILES = ("test_batch.bin",)
ARCHIVE = "cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html"


def find_cifar(folder: Path) -> Path:
    """The folder that holds the binary files: `folder` itself, or `cifar-10-batches-bin` in it.

    The "python version" is a set of pickles, which may run anything when loaded: it is refused.

    Raises:
        DataError: there is no such folder, or only the python version is in it.
    """
    for place in (folder, folder / "cifar-10-batches-bin"):
        if (place / TEST_FILES[0]).is_file():
            return place
    if any((place / "data_batch_1").exists() for place in (folder, folder / "cifar-10-batches-py")):
        raise DataError(
            f"CIFAR-10 is read from its binary version, but {folder} holds the python version (pickles, "
            f"which AMC never loads); fetch {ARCHIVE} and unpack it there"
        )
    raise DataError(
        f"cifar10:FOLDER must hold {TRAIN_FILES[0]} to {TEST_FILES[0]}, but {folder} does not; "
        f"fetch {ARCHIVE} and unpack it there"
    )


def read_cifar(folder: Path, files: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Read some binary files: uint8 (N, 3, 32, 32) and int64 (N,). Raises `DataError` for a missing or broken file."""
    images, labels = [], []
    for name in files:
        path = folder / name
        if not path.is_file():
            raise DataError(f"CIFAR-10 needs {name}, but {folder} has none; fetch {ARCHIVE} and unpack it whole")
        data = np.fromfile(path, dtype=np.uint8)
        if data.size == 0 or data.size % RECORD:
            raise DataError(f"{path} must be whole records of {RECORD} bytes, but has {data.size}; fetch it again")
        records = torch.from_numpy(data).view(-1, RECORD)
        if int(records[:, 0].max()) > 9:
            raise DataError(f"{path} must have labels 0 to 9, but has {int(records[:, 0].max())}; is it CIFAR-100?")
        images.append(records[:, 1:].reshape(-1, *SHAPE))
        labels.append(records[:, 0].long())
    return torch.cat(images), torch.cat(labels)
