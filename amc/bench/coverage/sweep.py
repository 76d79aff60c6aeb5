"""Many networks, each examined in a child process of its own; what was found is kept line by line.

The parent imports torch and the zoo once and never computes, so that every fork of it is safe and starts at once.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from amc.bench.coverage.network_list import Entry
from amc.system.errors import AmcError
from amc.system.files import write_json
from amc.system.isolation import POLL_SECONDS, Child, LimitExceeded, Limits
from amc.system.progress import Progress

Record = dict[str, Any]
RECORD = "record.json"


def sweep(
    entries: Sequence[Entry],
    examine: Callable[[Entry], Record],
    limits: Limits,
    journal: Path,
    title: str,
    progress: Progress,
    jobs: int = 1,
) -> dict[str, Record]:
    """Examine every entry that has no line in `journal` yet; name -> record, of all entries.

    Args:
        examine: called in a child process; its record must be JSON.
        limits: of each child; one that goes beyond them, or fails, is recorded as `ok` False with the reason.
        journal: one line a network, appended and synced as soon as it is done.
        jobs: children at a time.
    """
    found = read_journal(journal)
    waiting = deque(entry for entry in entries if entry.name not in found)
    stage = progress.stage(title, len(waiting))
    running: list[tuple[Entry, Child]] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                entry = waiting.popleft()
                running.append((entry, Child(_writing(examine, entry), limits)))
            ended = [pair for pair in running if pair[1].poll()]
            for entry, child in ended:
                running.remove((entry, child))
                record = _record_of(child)
                child.close()
                append_line(journal, entry.name, record)
                found[entry.name] = record
                stage.advance(1, entry.name if record["ok"] else f"{entry.name}: {record['reason']}")
            if not ended:
                time.sleep(POLL_SECONDS)
    finally:
        for _, child in running:
            child.close()
    return {entry.name: found[entry.name] for entry in entries}


def _writing(examine: Callable[[Entry], Record], entry: Entry) -> Callable[[Path], None]:
    return lambda folder: write_json(folder / RECORD, examine(entry))


def _record_of(child: Child) -> Record:
    try:
        child.raise_if_failed()
    except AmcError as error:
        record: Record = {"ok": False, "reason": str(error)}
        return record | ({"limit": error.limit} if isinstance(error, LimitExceeded) else {})
    done: Record = json.loads((child.folder / RECORD).read_text(encoding="utf-8"))
    return done


def read_journal(path: Path) -> dict[str, Record]:
    """The whole lines of a journal, the last one of each network; a line cut short by a crash is skipped."""
    found: dict[str, Record] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                name, record = json.loads(line)
            except ValueError:
                continue
            found[name] = record
    return found


def append_line(path: Path, name: str, record: Record) -> None:
    """Add a line and see it onto the disk; a torn last line is closed first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0, os.SEEK_END)
        if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            file.write(b"\n")
        file.write(json.dumps([name, record], allow_nan=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
