"""A cascade on disk: all that is needed to run it without the run it came from. Safetensors and JSON, no pickle.

cascade.json      stages, costs, stop rule with its scorer, constraints, figures, SHA-256 of each other file and its own
parts/NUMBER/     what the stages come from, each as its own kind keeps it: a release, or what was trained on one
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from amc.cascade.methods.bdistil.prefix_ensemble import StudentsComponent, load_ensemble
from amc.cascade.methods.esn.sequence_stages import load_sequence
from amc.cascade.methods.exits.saved_exits import load_exits_component
from amc.cascade.rules.scorers import scorer_from_json
from amc.cascade.rules.stop_rule import StopRule
from amc.cascade.serving.runtime import Cascade
from amc.cascade.stages.candidate import Candidate, chosen
from amc.cascade.stages.component import Component, load_network_component
from amc.cascade.stages.stage import ExitStage, NetworkStage, Stage
from amc.system.device import Compute
from amc.system.errors import DataError, RunError, StorageError
from amc.system.files import explain_storage, write_json
from amc.zoo.trust import Trust, allow

FORMAT = "amc-cascade/1"
RECORD, PARTS = "cascade.json", "parts"
NEEDED = ("input_shape", "method", "parts", "used", "stages", "policy", "files")  # of the record
CPU = Compute(torch.device("cpu"), bfloat16=False)
DIGEST = "sha256"  # of the record itself, without this key


@dataclass(frozen=True, eq=False)
class SavedCascade:
    """A cascade, and what its `cascade.json` holds."""

    cascade: Cascade
    record: dict[str, Any]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one example."""
        return tuple(self.record["input_shape"])


def save_cascade(folder: Path, candidate: Candidate, rule: StopRule, about: Mapping[str, Any]) -> None:
    """Write a cascade to `folder`, whole or not at all; one that is there already is replaced.

    Args:
        candidate: its `parts` and `used` say where its stages come from.
        about: more keys of the record: input_shape, constraints, figures.

    Raises:
        RunError: the folder holds something else than a cascade.
        StorageError: the folder cannot be written.
    """
    check_place(folder)
    working = folder.with_name(f".{folder.name}")
    try:
        shutil.rmtree(working, ignore_errors=True)
        for number, part in enumerate(candidate.components):
            part.save(working / PARTS / str(number))
        record = {
            "format": FORMAT,
            **about,
            "method": candidate.method,
            "parts": [{"kind": part.kind, "name": part.name, "digest": part.digest} for part in candidate.components],
            "used": list(candidate.used or range(len(candidate.stages))),
            "stages": [
                {"name": stage.name, "chain": stage.cost.chain, "body": stage.cost.body, "head": stage.cost.head}
                for stage in candidate.stages
            ],
            "added": candidate.added,
            "policy": rule_to_json(rule),
            "files": _digests(working),
        }
        write_json(working / RECORD, {**record, DIGEST: _digest_of(record)})
        _put(working, folder)
    except OSError as error:
        raise StorageError(explain_storage(folder, error)) from error


def load_cascade(folder: str | Path, compute: Compute | None = None, trust: Trust = ()) -> Cascade:
    """What `amc cascade` saved, ready to run: `load_cascade(folder).run(inputs)`.

    Args:
        compute: where it is run; None: on the GPU where there is one.
        trust: names the user's own code that its networks are built by (`amc.zoo.trust`).

    Raises:
        RunError: there is no cascade in `folder`, or a file is damaged or of another version.
        ModelError: a network's source is missing or not trusted.
    """
    allow(trust)
    return open_cascade(folder, compute or Compute.detect()).cascade


def open_cascade(folder: str | Path, compute: Compute = CPU) -> SavedCascade:
    """A cascade that `save_cascade` wrote; each stage answers as it did when it was saved. Raises as `load_cascade`."""
    folder = Path(folder)
    record = read_record(folder)
    for name, digest in record["files"].items():
        if not (folder / name).is_file() or _digest(folder / name) != digest:
            raise RunError(f"{folder / name} must be the file the cascade was kept with, but is not; keep it anew")
    stages: list[Stage] = []
    for number, part in enumerate(record["parts"]):
        if part["kind"] not in LOADERS:
            raise RunError(f"{folder} must hold parts of a known kind, but one is {part['kind']!r}; use a newer AMC")
        stages += LOADERS[part["kind"]](folder / PARTS / str(number), part["name"]).stages
    kept = chosen(stages, record["used"])
    if [stage.name for stage in kept] != [stage["name"] for stage in record["stages"]]:
        raise RunError(f"{folder} must give the stages of its record, but gives {[stage.name for stage in kept]}")
    for module in (module for stage in kept for module in modules_of(stage)):
        compute.place(module)
    return SavedCascade(Cascade(kept, rule_from_json(record["policy"]), compute), record)


def read_record(folder: Path) -> dict[str, Any]:
    """What `cascade.json` says. Raises `RunError` where there is none, it was changed, or it is of another format."""
    path = folder / RECORD
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise RunError(
            f"a cascade must hold {RECORD}, but {folder} holds none; give the --out of an `amc cascade`"
        ) from None
    except ValueError as error:
        raise RunError(f"{path} must be whole JSON, but: {error}; run the same `amc cascade` again") from None
    kind = record.get("format") if isinstance(record, dict) else type(record).__name__
    if kind != FORMAT:
        raise RunError(f"{path} must be of format {FORMAT}, but is {kind!r}; use the AMC that wrote it")
    missing = [key for key in NEEDED if key not in record]
    if missing:
        raise RunError(f"{path} must hold {missing[0]!r}, but does not; run the same `amc cascade` again")
    if record.pop(DIGEST, None) != _digest_of(record):
        raise RunError(f"{path} must be as it was written, but was changed; run the same `amc cascade` again")
    return record


def modules_of(stage: Stage) -> tuple[nn.Module, ...]:
    """What a stage runs."""
    if isinstance(stage, NetworkStage):
        return (stage.model,)
    if isinstance(stage, ExitStage):
        return (*stage.bodies, stage.head)
    raise TypeError(f"a stage must be a NetworkStage or an ExitStage to be placed, but is a {type(stage).__name__}")


def rule_to_json(rule: StopRule) -> dict[str, Any]:
    """Thresholds of infinity as texts, as JSON has none."""
    thresholds = [value if abs(value) < float("inf") else str(value) for value in rule.thresholds]
    return {"scorer": rule.scorer.to_json(), "thresholds": thresholds, "best": rule.best}


def rule_from_json(record: Mapping[str, Any]) -> StopRule:
    """The inverse of `rule_to_json`. Raises `RunError`."""
    try:
        thresholds = tuple(float(value) for value in record["thresholds"])
        return StopRule(scorer_from_json(record["scorer"]), thresholds, bool(record["best"]))
    except (KeyError, TypeError, ValueError, DataError) as error:
        raise RunError(f"a stop rule must hold scorer, thresholds and best, but: {error!r}; plan it anew") from None


def check_place(folder: Path) -> None:
    """Whether a cascade may be put there.

    Raises:
        RunError: it would replace what is no cascade.
        StorageError: the place cannot be written.
    """
    if folder.exists() and not (folder / RECORD).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise RunError(
            f"--out must be a new or empty folder or a cascade's, but {folder} holds other files; name another"
        )
    if not folder.name:
        raise RunError(f"--out must be a folder with a name, but is {str(folder)!r}; name another")
    there = next(each for each in folder.absolute().parents if each.exists())
    try:
        with TemporaryDirectory(prefix=f".{folder.name}.", dir=there):
            pass
    except OSError as error:
        raise StorageError(explain_storage(folder, error)) from error


def _put(working: Path, folder: Path) -> None:
    """Move a whole folder to its place; what was there goes once the new one can come."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(working, folder)
    shutil.rmtree(old, ignore_errors=True)


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _digest(path) for path in files}


def _digest_of(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record, whatever the order and the spaces it is written with."""
    plain = json.loads(json.dumps(record))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


LOADERS: dict[str, Callable[[Path, str], Component]] = {  # folder, the component's name
    "network": load_network_component,
    "exits": load_exits_component,
    "esn": lambda folder, name: load_sequence(folder),
    "b-distil": lambda folder, name: StudentsComponent(name, load_ensemble(folder)),
}
