"""What a benchmark has measured, kept for ever in one SQLite file.

Every record is written in one transaction and synced: a process killed at any time loses the measurement that it was
at, and no more.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amc import RunError, StorageError

FILE = "measured.db"
OLDER = "labels.db"  # the file of versions before this format
WAIT_SECONDS = 60.0  # for another process that writes


class Store:
    """JSON records by kind and key. Processes may share the file."""

    def __init__(self, folder: Path) -> None:
        """Open or begin the store of a folder.

        Raises:
            RunError: the folder's records are of an older format.
            StorageError: the file cannot be read or written.
        """
        self.path = folder / FILE
        if (folder / OLDER).is_file():
            raise RunError(f"{folder} was measured by an older version of AMC (it holds {OLDER}); give another --out")
        with self._explained():
            folder.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=WAIT_SECONDS)
            self._connection.execute("PRAGMA journal_mode = WAL")  # one sync a record, and one file again when closed
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS record (kind TEXT, key TEXT, value TEXT NOT NULL, PRIMARY KEY (kind, key))"
            )

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def get(self, kind: str, *key: Any) -> Any:
        """The record of a JSON-able key; None where there is none."""
        with self._explained():
            row = self._connection.execute(
                "SELECT value FROM record WHERE kind = ? AND key = ?", (kind, json.dumps(key))
            ).fetchone()
        return None if row is None else json.loads(row[0])

    def all(self, kind: str) -> list[Any]:
        """The records of one kind."""
        with self._explained():
            rows = self._connection.execute("SELECT value FROM record WHERE kind = ?", (kind,)).fetchall()
        return [json.loads(value) for (value,) in rows]

    def put(self, kind: str, *key: Any, value: Any) -> None:
        """Write a JSON-able record, in the place of an earlier one. Raises `StorageError`; nothing is written then."""
        with self._explained(), self._connection:
            row = (kind, json.dumps(key), json.dumps(value))
            self._connection.execute("INSERT OR REPLACE INTO record VALUES (?, ?, ?)", row)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StorageError(
                f"{self.path} must be readable and writable, but: {error}; check the disk and the folder's rights"
            ) from error
