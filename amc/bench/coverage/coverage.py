"""`amc doctor --zoo`: every network of a zoo examined, torch-pruning's own result beside it, as JSON and Markdown."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from amc import GateFailed, Limits, Progress, UsageError, examine, write_json, write_text
from amc.bench.coverage.coverage_table import compact, markdown
from amc.bench.coverage.half_pruned import RATIO, prune_by_half
from amc.bench.coverage.network_list import Entry, entries
from amc.bench.coverage.sweep import Record, sweep

LIMITS = Limits(400, 12)
PEER_LIMITS = Limits(90, 6)


@dataclass(frozen=True)
class Coverage:
    """What a sweep of a zoo found."""

    record: Record

    @property
    def summary(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.record["summary"]
        return found

    @property
    def text(self) -> str:
        """The whole table, in Markdown."""
        return markdown(self.record)

    def raise_if_failed(self) -> None:
        """Raise `GateFailed` unless every network holds and none is worse than with torch-pruning."""
        failed = self.summary["total"] - self.summary["ok"]
        if failed or self.summary["worse"]:
            raise GateFailed(
                f"every network of {self.record['zoo']} must hold and be nowhere worse than with torch-pruning, but "
                f"{failed} do not hold and {len(self.summary['worse'])} are worse; see the table"
            )


def cover(
    zoo: str,
    folder: Path | None,
    progress: Progress,
    *,
    jobs: int = 1,
    only: str | None = None,
    resume: bool = False,
    limits: Limits = LIMITS,
) -> Coverage:
    """Examine the networks of a zoo.

    Args:
        folder: where ZOO.json and ZOO.md are written, and torch-pruning's results kept in torch-pruning-ZOO.json, to be
            taken only where they are missing; None: nothing is written or kept.
        jobs: networks at a time, each in a process of its own.
        only: a pattern of names, or a part of one; the rest of the table in `folder` stays as it was.
        resume: go on where a run that was ended before its table was written left off.

    Raises:
        UsageError: the zoo is not known, the pattern names no network of it, or there is nothing to resume from.
    """
    if resume and folder is None:
        raise UsageError("--resume needs the folder of the run that was ended; give --out")
    if not sys.platform.startswith("linux"):
        raise UsageError("--zoo must run where processes can be forked safely (Linux); examine networks by --model")
    known = entries(zoo)
    chosen = [entry for entry in known if only is None or matches(entry.name, only)]
    if not chosen:
        raise UsageError(f"--only must name networks of {zoo}, but {only!r} matches none; e.g. --only 'resnet*'")
    import_zoo(zoo)
    if folder is None:
        with TemporaryDirectory(prefix="amc-") as scratch:
            return Coverage(_swept(zoo, Path(scratch), progress, chosen, jobs, limits, {}))
    journal = folder / f".{zoo}.journal"
    if not resume:
        journal.unlink(missing_ok=True)
    former = _former_rows(folder / f"{zoo}.json") if only is not None else {}
    found = Coverage(_swept(zoo, folder, progress, chosen, jobs, limits, former))
    write_json(folder / f"{zoo}.json", found.record)
    write_text(folder / f"{zoo}.md", found.text)
    journal.unlink(missing_ok=True)
    return found


def _swept(
    zoo: str,
    folder: Path,
    progress: Progress,
    chosen: Sequence[Entry],
    jobs: int,
    limits: Limits,
    rows: dict[str, Record],
) -> Record:
    """The table's record: `rows` of before, those of `chosen` anew; journals and peer results in `folder`."""
    peers = peer_records(zoo, chosen, folder, progress, jobs)
    found = sweep(chosen, examine_entry, limits, folder / f".{zoo}.journal", f"examine {zoo}", progress, jobs)
    for entry in chosen:
        rows[entry.name] = asdict(entry) | compact(found[entry.name]) | {"torch_pruning": peers.get(entry.name)}
    return table_record(zoo, [rows[entry.name] for entry in entries(zoo) if entry.name in rows], limits)


def examine_entry(entry: Entry) -> Record:
    """The record of one network of a zoo; a failure is a record too."""
    return examine(entry.name, torch.zeros(1, 3, entry.size, entry.size), options=entry.options)


def matches(name: str, pattern: str) -> bool:
    """Whether a name fits a shell pattern, with or without its `timm:`, or holds a plain text."""
    if any(character in pattern for character in "*?["):
        return fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(":")[2], pattern)
    return pattern in name


def import_zoo(zoo: str) -> None:
    """Import a zoo's library once, before it is needed in many processes."""
    if zoo == "timm" and find_spec("timm") is None:
        raise UsageError("--zoo timm needs the package timm, but it is not installed; pip install 'amc-compress[timm]'")
    import_module(zoo)


def table_record(zoo: str, rows: Sequence[Record], limits: Limits) -> Record:
    """Everything that the table says."""
    peers = [row["torch_pruning"] for row in rows if row["torch_pruning"]]
    checked: Record = next((row["checks"] for row in rows if "faint" in (row.get("checks") or ())), {})
    return {
        "format": "amc-coverage/1",
        "zoo": zoo,
        "versions": {name: found for name in ("torch", zoo, "torch-pruning") if (found := _version(name))},
        "limits": asdict(limits),
        "tolerance": checked.get("tolerance"),
        "faint": checked.get("faint"),
        "torch_pruning_ratio": RATIO,
        "torch_pruning_limits": asdict(PEER_LIMITS),
        "summary": {
            "total": len(rows),
            "ok": sum(row["ok"] for row in rows),
            "worse": [row["name"] for row in rows if is_worse(row, row["torch_pruning"])],
            "torch_pruning_ok": sum(peer["ok"] for peer in peers),
            "torch_pruning_total": len(peers),
        },
        "networks": list(rows),
    }


def is_worse(ours: Record, theirs: Record | None) -> bool:
    """Whether torch-pruning's pruner runs where ours does not hold, or reaches fewer MACs than our smallest policy."""
    if theirs is None or not theirs["ok"]:
        return False
    return not ours["ok"] or bool(ours["min_macs"] > theirs["pruned_macs"])


def peer_records(
    zoo: str, chosen: Sequence[Entry], folder: Path, progress: Progress, jobs: int = 1
) -> dict[str, Record]:
    """torch-pruning's results by name, those that were missing taken now; nothing new where it is not installed.

    A result is kept for as long as the network is examined in the same way.
    """
    path = folder / f"torch-pruning-{zoo}.json"
    known: dict[str, Record] = json.loads(path.read_text(encoding="utf-8"))["networks"] if path.is_file() else {}
    missing = [entry for entry in chosen if not _is_same(entry, known.get(entry.name))]
    if missing and find_spec("torch_pruning") is None:
        progress.say("torch-pruning is not installed: its column stays empty; pip install torch-pruning")
    elif missing:
        journal = folder / f".torch-pruning-{zoo}.journal"
        found = sweep(missing, prune_by_half, PEER_LIMITS, journal, f"torch-pruning on {zoo}", progress, jobs)
        for entry in missing:
            known[entry.name] = {"size": entry.size, "options": entry.options, **_in_brief(found[entry.name])}
        head = {"version": _version("torch-pruning"), "ratio": RATIO, "limits": asdict(PEER_LIMITS)}
        write_json(path, {**head, "networks": dict(sorted(known.items()))})
        journal.unlink(missing_ok=True)
    return known


def _is_same(entry: Entry, record: Record | None) -> bool:
    return record is not None and (record["size"], record["options"]) == (entry.size, entry.options)


def _in_brief(record: Record) -> Record:
    """A limit's message gives the fix for our own tracing, which is none for torch-pruning."""
    limit = record.pop("limit", None)
    return record | {"reason": f"takes more than {limit}"} if limit else record


def _former_rows(path: Path) -> dict[str, Record]:
    if not path.is_file():
        return {}
    return {row["name"]: row for row in json.loads(path.read_text(encoding="utf-8"))["networks"]}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
