"""What stands in a finished run folder, read without torch: enough to show it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from amc.job.recipe import Recipe, parse_recipe
from amc.system.errors import RunError, UsageError

RECIPE, METRICS, POLICY = "recipe.toml", "metrics.json", "policy.json"
PREDICTOR = "predictor.safetensors"


@dataclass
class RunFolder:
    """A finished run as its files tell it.

    Attributes:
        folder: where it is.
    """

    folder: Path

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Raises `RunError` when the folder is missing, holds no run, or the run has not finished."""
        run = cls(Path(folder))
        if not run.folder.is_dir():
            raise RunError(f"a run must be a folder, but there is no folder {folder}; check the path")
        read_recipe(run.folder)
        if not (run.folder / METRICS).is_file():
            raise RunError(f"the run in {folder} must have finished, but it has not; run the same `amc compress` again")
        return run

    @cached_property
    def recipe(self) -> Recipe:
        return read_recipe(self.folder)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """What `metrics.json` holds."""
        return read_json(self.folder / METRICS)

    @property
    def policy(self) -> dict[str, int]:
        """Group name -> channels kept, of the release."""
        return read_policy(self.folder)[0]

    @property
    def sizes(self) -> dict[str, int]:
        """Group name -> channels of the dense network; empty where the run did not write them."""
        return read_policy(self.folder)[1]


def read_recipe(folder: Path) -> Recipe:
    """The recipe a run was made with. Raises `RunError` where there is none."""
    path = folder / RECIPE
    try:
        return parse_recipe(path.read_text(encoding="utf-8"), str(path))
    except OSError:
        raise RunError(
            f"a run folder must hold {RECIPE}, but {folder} holds none; give the --out of an `amc compress`"
        ) from None
    except UnicodeDecodeError as error:
        raise RunError(
            f"{path} must be UTF-8 text, but is not, at byte {error.start}; restore it, or give another --out"
        ) from None
    except UsageError as error:
        raise RunError(f"{error}; the run was made by another version of AMC, or edited") from None


def read_policy(folder: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Channels kept and channels of the dense network, by group name. Raises `RunError`."""
    record = read_json(folder / POLICY)
    if not isinstance(record.get("policy"), dict):
        raise RunError(f"{folder / POLICY} must hold a policy, but holds none; run the same `amc compress` again")
    kept, sizes = ({name: int(n) for name, n in record.get(key, {}).items()} for key in ("policy", "sizes"))
    return kept, sizes


def read_json(path: Path) -> dict[str, Any]:
    """Read an object. Raises `RunError` where the file is missing or broken."""
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} must be whole JSON, but: {error}; run the same `amc compress` again") from None
    return record
