import gzip
from pathlib import Path

import pytest
import torch
from torch import Tensor

from amc.system.errors import DataError
from amc.zoo.data.cifar import RECORD
from amc.zoo.data.sources import EMBEDDED, load_splits
from amc.zoo.data.splits import MemorySplit, Split, Splits


def write_idx(path: Path, data: Tensor) -> None:
    header = bytes([0, 0, 8, data.ndim]) + b"".join(n.to_bytes(4, "big") for n in data.shape)
    path.write_bytes(gzip.compress(header + data.numpy().tobytes(), 1))


def write_mnist_like(folder: Path, train: int = 60, test: int = 20, classes: int = 4) -> Path:
    """Random pictures in the four files of MNIST."""
    folder.mkdir(exist_ok=True)
    source = torch.Generator().manual_seed(0)
    for part, number in (("train", train), ("t10k", test)):
        images = torch.randint(0, 256, (number, 12, 12), dtype=torch.uint8, generator=source)
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", (torch.arange(number) % classes).byte())
    return folder


def write_cifar(folder: Path, number: int = 20) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    source = torch.Generator().manual_seed(0)
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        records = torch.randint(0, 256, (number, RECORD), dtype=torch.uint8, generator=source)
        records[:, 0] = torch.arange(number) % 10
        (folder / name).write_bytes(records.numpy().tobytes())
    return folder


def memory(split: Split) -> MemorySplit:
    assert isinstance(split, MemorySplit)
    return split


def complaint(name: str, **arguments: object) -> str:
    with pytest.raises(DataError) as caught:
        load_splits(name, **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_embedded_fashion_mnist_is_divided_as_promised() -> None:
    """6,000 / 2,000 / 2,000 pictures, every class alike in each, no picture left out or used twice."""
    splits = load_splits("fashion-mnist-10k")
    parts = [memory(part) for part in (splits.train, splits.validation, splits.test)]
    assert [len(part) for part in parts] == [6000, 2000, 2000]
    for part in parts:
        assert part.labels.bincount().tolist() == [len(part) // 10] * 10
    assert (splits.input_shape, splits.num_classes) == ((1, 28, 28), 10)
    together = sorted(image.numpy().tobytes() for part in parts for image in part.images)
    raw = gzip.decompress((EMBEDDED / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    assert together == sorted(raw[start : start + 784] for start in range(0, len(raw), 784))


def test_no_embedded_picture_stands_in_two_splits() -> None:
    """Not even as a copy: a picture seen in training would flatter the measure."""
    splits = load_splits("fashion-mnist-10k")
    train, validation, test = (
        {image.numpy().tobytes() for image in memory(part).images}
        for part in (splits.train, splits.validation, splits.test)
    )
    assert len(train & validation) == len(train & test) == len(validation & test) == 0


def test_same_seed_same_splits() -> None:
    """The split seed alone decides which picture stands where."""
    one, again, other = (load_splits("fashion-mnist-10k", split_seed=seed) for seed in (0, 0, 1))
    assert one.digest == again.digest
    assert one.test.digest == again.test.digest
    assert one.digest != other.digest


def test_the_licence_stands_beside_the_embedded_data() -> None:
    """Fashion-MNIST's licence asks for its notice in all copies."""
    text = (EMBEDDED / "LICENSE").read_text(encoding="utf-8")
    assert "2017 Zalando SE" in text
    assert "Permission is hereby granted, free of charge" in text


def test_fashion_mnist_is_found_in_a_folder_and_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder named, else AMC_DATA's: validation is held out of train, test is the official one."""
    folder = write_mnist_like(tmp_path / "fashion-mnist")
    named = load_splits(f"fashion-mnist:{folder}")
    monkeypatch.setenv("AMC_DATA", str(tmp_path))
    found = load_splits("fashion-mnist")
    assert named.digest == found.digest
    assert [len(part) for part in (named.train, named.validation, named.test)] == [54, 6, 20]
    assert memory(named.train).mean == (0.2860,)


def test_files_without_gzip_are_read_too(tmp_path: Path) -> None:
    """Unpacked IDX files give the same splits."""
    folder = write_mnist_like(tmp_path / "packed")
    digest = load_splits(f"idx:{folder}").digest
    for path in folder.glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert load_splits(f"idx:{folder}").digest == digest


def test_idx_pictures_are_normalised_by_their_own_shades(tmp_path: Path) -> None:
    """Mean and deviation come from the train files, and digits are not mirrored."""
    train = memory(load_splits(f"idx:{write_mnist_like(tmp_path / 'd')}").train)
    assert abs(train.mean[0] - 0.5) < 0.02
    assert abs(train.std[0] - 0.29) < 0.02
    assert not train.augmentation.flip


def test_pictures_are_resized_where_asked(tmp_path: Path) -> None:
    """`size` is the side of all splits' pictures."""
    splits = load_splits(f"idx:{write_mnist_like(tmp_path / 'd')}", size=16)
    assert splits.input_shape == (1, 16, 16)
    assert all(memory(part).images.shape[1:] == (1, 16, 16) for part in (splits.train, splits.validation, splits.test))


def test_cifar_is_read_from_its_binary_version(tmp_path: Path) -> None:
    """One label byte, then red, green and blue planes."""
    folder = write_cifar(tmp_path / "cifar-10-batches-bin")
    splits = load_splits(f"cifar10:{tmp_path}")
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [90, 10, 20]
    raw = (folder / "test_batch.bin").read_bytes()
    test = memory(splits.test)
    assert int(test.labels[7]) == raw[7 * RECORD] == 7
    assert test.images[7, 2, 31, 31] == raw[8 * RECORD - 1]


def test_cifar_pickles_are_never_loaded(tmp_path: Path) -> None:
    """The python version is refused with the archive to fetch instead."""
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"\x80\x04.")
    assert "cifar-10-binary.tar.gz" in complaint(f"cifar10:{tmp_path}")


def test_broken_cifar_files_are_named(tmp_path: Path) -> None:
    """Cut-off, missing and foreign files are each one line."""
    folder = write_cifar(tmp_path / "c")
    (folder / "data_batch_2.bin").write_bytes(b"\x0a" + bytes(RECORD - 1))
    assert "labels 0 to 9" in complaint(f"cifar10:{folder}")
    (folder / "data_batch_2.bin").write_bytes(bytes(100))
    assert "data_batch_2.bin" in complaint(f"cifar10:{folder}")
    (folder / "data_batch_2.bin").unlink()
    assert "needs data_batch_2.bin" in complaint(f"cifar10:{folder}")
    assert "test_batch.bin" in complaint(f"cifar10:{tmp_path}")


def test_broken_idx_files_are_named(tmp_path: Path) -> None:
    """Each way in which an IDX file can be broken is one line with the file's name."""
    folder = write_mnist_like(tmp_path / "d")
    path = folder / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    plain = gzip.decompress(whole)
    for content in (
        b"",
        b"no gzip",
        whole[:-20],
        gzip.compress(b"\0\0\x08"),
        gzip.compress(plain[:9]),
        gzip.compress(b"\0\0\x0d\x03" + plain[4:]),
        gzip.compress(plain[:-1]),
        gzip.compress(plain + b"\0"),
    ):
        path.write_bytes(content)
        assert "train-images" in complaint(f"idx:{folder}")
    write_idx(path, torch.zeros(59, 12, 12, dtype=torch.uint8))
    assert "one label per image" in complaint(f"idx:{folder}")
    path.write_bytes((folder / "train-labels-idx1-ubyte.gz").read_bytes())
    assert "swapped" in complaint(f"idx:{folder}")
    path.unlink()
    assert "there is none" in complaint(f"idx:{folder}")


@pytest.mark.parametrize(
    ("train", "test", "classes", "part"),
    [
        (60, 20, 1, "two classes"),
        (0, 20, 2, "empty"),
        (9, 20, 2, "validation is empty"),
        (60, 0, 2, "test is empty"),
    ],
)
def test_data_that_cannot_be_learnt_from(tmp_path: Path, train: int, test: int, classes: int, part: str) -> None:
    """Empty splits and a single class are told before any work."""
    assert part in complaint(f"fashion-mnist:{write_mnist_like(tmp_path / 'd', train, test, classes)}")


def test_pictures_without_any_contrast(tmp_path: Path) -> None:
    """All-black pictures have no deviation to divide by."""
    folder = write_mnist_like(tmp_path / "d")
    write_idx(folder / "train-images-idx3-ubyte.gz", torch.zeros(60, 12, 12, dtype=torch.uint8))
    assert "alike" in complaint(f"idx:{folder}")


def test_unknown_names_and_missing_folders(tmp_path: Path) -> None:
    """A name is answered with the nearest one, a kind without a folder with its form."""
    assert "did you mean fashion-mnist" in complaint("fashon-mnist")
    assert "write idx:/folder" in complaint("idx")
    assert "no folder" in complaint(f"imagefolder:{tmp_path / 'nowhere'}")
    assert "must be one of" in complaint("")


def test_a_factory_of_the_user_gives_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found in the working folder and given what its signature takes; anything else than Splits is refused."""
    (tmp_path / "my_own_data.py").write_text(
        "from amc.zoo.data.sources import load_splits\n"
        "def make(split_seed): return load_splits('fashion-mnist-10k', split_seed=split_seed)\n"
        "def broken(): raise OSError('two\\nlines')\n"
        "def other(**anything): return sorted(anything)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [])
    splits = load_splits("my_own_data:make", split_seed=3)
    assert isinstance(splits, Splits)
    assert splits.digest == load_splits("fashion-mnist-10k", split_seed=3).digest
    assert splits.name == "my_own_data:make"
    assert "OSError: two lines" in complaint("my_own_data:broken")
    assert "returned list" in complaint("my_own_data:other")
    assert "no callable 'nothing'" in complaint("my_own_data:nothing")
    assert "can be imported" in complaint("my_own_dat:make")


def test_a_refused_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a folder, the Debian package or a network, the line names all three ways out."""
    monkeypatch.delenv("AMC_DATA", raising=False)
    monkeypatch.setattr("amc.zoo.data.sources.DEBIAN", tmp_path)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    message = complaint("fashion-mnist", cache=tmp_path)
    assert "apt-get install dataset-fashion-mnist" in message
    assert "fashion-mnist:/folder" in message
    assert "AMC_DATA" in message


def three_loaders() -> tuple[object, object, object]:
    """What a user's data factory may return."""
    batches = [(torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 0, 1]))]
    return batches, batches, batches


def test_a_factory_may_return_three_loaders() -> None:
    """Train, validation and test in any form that the library takes as well."""
    splits = load_splits("tests.zoo.data.test_sources:three_loaders")
    assert (len(splits.train), len(splits.test), splits.input_shape) == (4, 4, (1, 8, 8))
