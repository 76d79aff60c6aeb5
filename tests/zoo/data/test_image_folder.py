import dataclasses
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from amc.system.device import Compute
from amc.system.errors import DataError
from amc.zoo.data.image_folder import FEW, FolderSplit
from amc.zoo.data.sources import load_splits
from amc.zoo.data.splits import Split, Splits
from amc.zoo.task import CLASSIFICATION


def write_images(folder: Path, classes: tuple[str, ...] = ("cat", "dog"), number: int = 10) -> Path:
    """Small PNG images of random noise, one folder a class."""
    source = torch.Generator().manual_seed(len(str(folder)))
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(number):
            pixels = torch.randint(0, 256, (20, 24, 3), dtype=torch.uint8, generator=source)
            Image.fromarray(pixels.numpy()).save(folder / name / f"{index}.png")
    return folder


def folder_split(split: Split) -> FolderSplit:
    assert isinstance(split, FolderSplit)
    return split


def images(split: Split, **arguments: object) -> Tensor:
    return torch.cat([batch for batch, _ in split.batches(7, **arguments)])  # type: ignore[arg-type]


def complaint(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        splits = load_splits(f"imagefolder:{folder}", size=16)
        list(splits.train.batches(4))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def splits(tmp_path: Path) -> Splits:
    return load_splits(f"imagefolder:{write_images(tmp_path / 'images', number=50)}", size=16)


def test_class_folders_alone_are_divided(splits: Splits) -> None:
    """Four fifths train, a tenth measure, a tenth test; balanced, disjoint, whole."""
    parts = [folder_split(part) for part in (splits.train, splits.validation, splits.test)]
    assert [len(part) for part in parts] == [81, 9, 10]
    assert len({path for part in parts for path, _ in part.samples}) == 100
    assert abs(sum(label for _, label in parts[1].samples) - 4.5) <= 1
    assert (splits.num_classes, splits.input_shape) == (2, (3, 16, 16))


def test_train_and_val_folders(tmp_path: Path) -> None:
    """Measure is held out of train, and test is val."""
    for part in ("train", "val"):
        write_images(tmp_path / part)
    splits = load_splits(f"imagefolder:{tmp_path}")
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [18, 2, 20]
    assert all(Path(path).is_relative_to(tmp_path / "val") for path, _ in folder_split(splits.test).samples)
    assert splits.input_shape == (3, 224, 224)


def test_batches_are_like_those_in_memory(splits: Splits) -> None:
    """Normalised floats of the size asked, int64 labels, a fair first few, and `limit` holds."""
    batch, labels = next(splits.train.batches(7))
    assert batch.shape == (7, 3, 16, 16)
    assert (batch.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert set(labels.tolist()) == {0, 1}
    assert len(images(splits.train, limit=10)) == 10


def test_ranks_partition_the_batches(splits: Splits) -> None:
    """Two processes see together what one sees, each image once."""
    whole = images(splits.validation, seed=1)
    shares = torch.cat([images(splits.validation, seed=1, rank=rank, world=2) for rank in range(2)])
    assert sorted(whole.sum((1, 2, 3)).tolist()) == sorted(shares.sum((1, 2, 3)).tolist())


def test_noise_is_fixed_by_the_seed_with_any_number_of_workers(splits: Splits) -> None:
    """Which process decodes a image has no say in how it is cropped; torch's own random state is left alone."""
    train = folder_split(splits.train)
    assert len(train) > FEW
    state = torch.get_rng_state()
    alone = images(dataclasses.replace(train, workers=0), seed=3, augment=True)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(alone, images(dataclasses.replace(train, workers=1), seed=3, augment=True))
    assert not torch.equal(alone, images(dataclasses.replace(train, workers=0), seed=4, augment=True))
    assert alone.shape == (81, 3, 16, 16)


def test_digest_changes_with_the_files(splits: Splits) -> None:
    """An image that was written anew is another data set."""
    train = folder_split(splits.train)
    assert dataclasses.replace(train).digest == train.digest
    path = train.samples[0][0]
    os.utime(path, ns=(1, 1))
    assert dataclasses.replace(train).digest != train.digest
    os.unlink(path)
    with pytest.raises(DataError, match="must stay where it was found"):
        _ = dataclasses.replace(train).digest


@pytest.mark.parametrize("workers", [0, 1])
def test_a_image_that_cannot_be_read_is_named(splits: Splits, workers: int) -> None:
    """The line names the file, whichever process met it."""
    train = dataclasses.replace(folder_split(splits.train), workers=workers)
    path = Path(train.samples[70][0])
    for content in (b"", b"no image", path.read_bytes()[:200]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"{path.name} must be an image") as caught:
            list(train.batches(8))
        assert "\n" not in str(caught.value)


def test_folders_without_what_is_needed(tmp_path: Path) -> None:
    """Empty folders, empty classes, one class, few images, half a division, unlike classes: one line each."""
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "one folder a class" in complaint(empty)
    (empty / "cat").mkdir()
    assert "has none" in complaint(empty)
    assert "at least two classes" in complaint(write_images(tmp_path / "one", ("cat",)))
    assert "at least 10" in complaint(write_images(tmp_path / "few", number=2))
    write_images(tmp_path / "half" / "train")
    assert "no val/" in complaint(tmp_path / "half")
    write_images(tmp_path / "half" / "val", ("cat", "cow"))
    assert "same classes" in complaint(tmp_path / "half")


def test_images_without_labels_are_divided_and_agreement_judges_them(tmp_path: Path) -> None:
    """Found in every folder, each in one split, in batches without labels, fixed by the seed."""
    folder = write_images(tmp_path / "images", number=30)
    splits, again, other = (load_splits(f"images:{folder}", size=16, split_seed=seed) for seed in (0, 0, 1))
    parts = [folder_split(part) for part in (splits.train, splits.validation, splits.test)]
    paths = [path for part in parts for path, _ in part.samples]
    assert len(paths) == len(set(paths)) == sum(len(part) for part in parts) and len(parts[1]) == len(paths) * 9 // 100
    assert splits.digest == again.digest != other.digest
    batch = next(iter(splits.validation.batches(2)))
    assert len(batch) == 1 and batch[0].shape == (2, 3, 16, 16) and splits.num_classes is None
    assert CLASSIFICATION.bound(nn.Flatten(), Compute.detect(), batch).metric_name == "agreement"
    (tmp_path / "few").mkdir()
    with pytest.raises(DataError, match="at least 10 images"):
        load_splits(f"images:{tmp_path / 'few'}")
