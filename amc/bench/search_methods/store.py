"""What was measured in a contest, for ever: one SQLite file a protocol, in which each policy has one row.

Every row is written in one transaction and synced, so that a process killed at any time loses the measurement that it
was at, and no more.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amc.system.errors import StorageError
from amc.system.files import explain_storage

Policy = NDArray[np.int64]

SCHEMA = """
CREATE TABLE IF NOT EXISTS label (policy TEXT PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS final (
    policy TEXT, data_seed INTEGER, record TEXT NOT NULL, PRIMARY KEY (policy, data_seed)
);
"""


@dataclass(frozen=True)
class Labelled:
    """What measuring a policy gave.

    Attributes:
        accuracy: on the validation split.
        loss: calibrated cross-entropy there, nats.
        seconds: wall time of cut, recovery and evaluation.
        costs: unit -> exact cost.
        failure: why it could not be measured; accuracy is then 0 and loss infinite. Empty: it could.
    """

    accuracy: float
    loss: float
    seconds: float
    costs: Mapping[str, float] = field(default_factory=dict)
    failure: str = ""


@dataclass(frozen=True)
class Final:
    """A fine-tuned network's one look at the test split.

    Attributes:
        test_accuracy: there.
        test_loss: calibrated cross-entropy there, nats.
        measure_accuracy: of the best epoch on the validation split.
        seconds: wall time of the fine-tune.
    """

    test_accuracy: float
    test_loss: float
    measure_accuracy: float
    seconds: float


class LabelStore:
    """Labels and finals by policy."""

    def __init__(self, path: Path) -> None:
        """Open or make the file. Raises `StorageError` where it cannot be read or written."""
        self.path = path
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path)
            self._connection.execute("PRAGMA journal_mode = WAL")  # one sync a label, and one file again when closed
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(SCHEMA)
            rows = self._connection.execute("SELECT policy, record FROM label").fetchall()
            finals = self._connection.execute("SELECT policy, data_seed, record FROM final").fetchall()
        self._labels = {policy: Labelled(**json.loads(record)) for policy, record in rows}
        self._finals = {(policy, seed): Final(**json.loads(record)) for policy, seed, record in finals}

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def label_seconds(self) -> float:
        """That measuring all of them took."""
        return sum(label.seconds for label in self._labels.values())

    @property
    def finals(self) -> list[Final]:
        return list(self._finals.values())

    def close(self) -> None:
        self._connection.close()

    def label(self, policy: Policy) -> Labelled | None:
        """What is known of a (d,) policy."""
        return self._labels.get(_key(policy))

    def keep(self, policy: Policy, labelled: Labelled) -> None:
        """Write what measuring a policy gave. Raises `StorageError`; nothing is written then."""
        with self._explained(), self._connection:
            self._connection.execute("INSERT INTO label VALUES (?, ?)", (_key(policy), json.dumps(asdict(labelled))))
        self._labels[_key(policy)] = labelled

    def final(self, policy: Policy, data_seed: int) -> Final | None:
        """What a (d,) policy, fine-tuned with the data in this order, gave on the test split."""
        return self._finals.get((_key(policy), data_seed))

    def keep_final(self, policy: Policy, data_seed: int, final: Final) -> None:
        """Write a final. Raises `StorageError`; nothing is written then."""
        with self._explained(), self._connection:
            row = (_key(policy), data_seed, json.dumps(asdict(final)))
            self._connection.execute("INSERT INTO final VALUES (?, ?, ?)", row)
        self._finals[_key(policy), data_seed] = final

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StorageError(explain_storage(self.path, error)) from error


def _key(policy: Policy) -> str:
    return " ".join(map(str, policy.tolist()))
