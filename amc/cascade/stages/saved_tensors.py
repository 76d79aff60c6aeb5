"""What was trained for a cascade, on disk: tensors as safetensors and a JSON record beside them; no pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from amc.system.errors import RunError
from amc.system.files import write_json, write_whole

SHA256 = "weights_sha256"  # key of the record; records of before may lack it


@dataclass(frozen=True)
class SavedKind:
    """How one kind of trained thing is saved.

    Attributes:
        format: name and version, told apart on loading.
        what: it is called, in messages.
        weights, record: file names.
    """

    format: str
    what: str
    weights: str
    record: str

    def write(self, folder: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Write both files, each whole or not at all. Raises `StorageError`."""
        payload = save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        write_whole(folder / self.weights, lambda file: file.write(payload))
        digest = hashlib.sha256(payload).hexdigest()
        write_json(folder / self.record, {"format": self.format, **record, SHA256: digest})

    def read(self, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Record and tensors, on the CPU. Raises `RunError`: a file is missing, damaged or of another format."""
        try:
            record: dict[str, Any] = json.loads((folder / self.record).read_text(encoding="utf-8"))
            payload = (folder / self.weights).read_bytes()
            if record["format"] != self.format:
                raise RunError(
                    f"{folder / self.record} must be of format {self.format}, but is {record['format']!r}; use the AMC "
                    "that wrote it"
                )
            if record.get(SHA256) not in (None, hashlib.sha256(payload).hexdigest()):
                raise RunError(
                    f"{folder / self.weights} must be the file its record was written for, but the SHA-256 differs; "
                    "restore it"
                )
            return record, load_tensors(payload)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise RunError(f"{folder} must hold {self.what} whole, but: {error!r}; make it anew") from None
