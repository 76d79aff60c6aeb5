"""The labels taken, for ever: one SQLite file, a row a policy, kind and seed, written whole or not at all."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amc.system.errors import RunError, StorageError
from amc.system.files import explain_storage

SCHEMA = """
CREATE TABLE IF NOT EXISTS condition (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS plan (cap TEXT, number INTEGER, policies TEXT NOT NULL, PRIMARY KEY (cap, number));
CREATE TABLE IF NOT EXISTS label (policy TEXT, kind TEXT, seed INTEGER, record TEXT NOT NULL,
    PRIMARY KEY (policy, kind, seed));
"""
WAIT_SECONDS = 60.0  # for another process that writes

Policy = NDArray[np.int64]


class LabelStore:
    """Labels of one network under one set of conditions; processes may share it."""

    def __init__(self, path: Path, conditions: Mapping[str, Any]) -> None:
        """Open or begin the store.

        Raises:
            RunError: it holds labels that were taken under other conditions.
            StorageError: it cannot be written.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(explain_storage(path.parent, error)) from error
        with self._transaction() as database:
            database.executescript(SCHEMA)
            rows = [(name, json.dumps(value, sort_keys=True)) for name, value in conditions.items()]
            database.executemany("INSERT OR IGNORE INTO condition VALUES (?, ?)", rows)
            held = dict(database.execute("SELECT name, value FROM condition"))
        for name, value in rows:
            if held[name] != value:
                raise RunError(
                    f"labels compare only if taken alike, but in {path.parent} {name} is {held[name][:60]} and here "
                    f"{value[:60]}; give another --out"
                )

    def plan(self, cap: str, number: int) -> list[tuple[Policy, str]] | None:
        """The policies that stand for a cap and where each came from; None before they were chosen."""
        with self._transaction() as database:
            row = database.execute("SELECT policies FROM plan WHERE cap = ? AND number = ?", (cap, number)).fetchone()
        return None if row is None else [(np.array(policy, dtype=np.int64), of) for policy, of in json.loads(row[0])]

    def keep_plan(self, cap: str, number: int, policies: list[tuple[Policy, str]]) -> None:
        """Keep the policies of a cap."""
        text = json.dumps([[policy.tolist(), origin] for policy, origin in policies])
        with self._transaction() as database:
            database.execute("INSERT OR REPLACE INTO plan VALUES (?, ?, ?)", (cap, number, text))

    def label(self, policy: Policy, kind: str, seed: int = 0) -> dict[str, Any] | None:
        """What was measured; None where nothing was."""
        key = json.dumps(policy.tolist()), kind, seed
        with self._transaction() as database:
            row = database.execute(
                "SELECT record FROM label WHERE policy = ? AND kind = ? AND seed = ?", key
            ).fetchone()
        return None if row is None else json.loads(row[0])

    def keep(self, policy: Policy, kind: str, record: Mapping[str, Any], seed: int = 0) -> None:
        """Keep what was measured; NaN is refused."""
        row = json.dumps(policy.tolist()), kind, seed, json.dumps(dict(record), allow_nan=False)
        with self._transaction() as database:
            database.execute("INSERT OR REPLACE INTO label VALUES (?, ?, ?, ?)", row)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            database = sqlite3.connect(self.path, timeout=WAIT_SECONDS)
            try:
                with database:
                    yield database
            finally:
                database.close()
        except sqlite3.Error as error:
            raise StorageError(explain_storage(self.path, error)) from error
