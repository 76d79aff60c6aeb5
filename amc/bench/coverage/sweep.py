"""Many networks, each examined in a child process of its own; what was found is kept line by line.

The parent imports torch and the zoo once and never computes, so that every fork of it is safe and starts at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from amc import AmcError, LimitExceeded, Limits, Progress, isolated_each, write_json
from amc.bench.coverage.network_list import Entry

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
    waiting = {entry.name: _writing(examine, entry) for entry in entries if entry.name not in found}
    stage = progress.stage(title, len(waiting))
    for name, outcome in isolated_each(waiting, limits, jobs):
        record = found[name] = _record_of(outcome)
        append_line(journal, name, record)
        stage.advance(1, name if record["ok"] else f"{name}: {record['reason']}")
    return {entry.name: found[entry.name] for entry in entries}


def _writing(examine: Callable[[Entry], Record], entry: Entry) -> Callable[[Path], None]:
    return lambda folder: write_json(folder / RECORD, examine(entry))


def _record_of(outcome: Path | AmcError) -> Record:
    if isinstance(outcome, AmcError):
        record: Record = {"ok": False, "reason": str(outcome)}
        return record | ({"limit": outcome.limit} if isinstance(outcome, LimitExceeded) else {})
    done: Record = json.loads((outcome / RECORD).read_text(encoding="utf-8"))
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
