"""What is found once for a dense network and kept in the run folder: retargeting reads it, without torch-pruning."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from amc.surgery.narrow_norm import NormRule
from amc.surgery.recovery import Moments
from amc.surgery.table import Asked, Frozen, Group, Integer, Multiply, Owners, OwnerTable
from amc.system.errors import RunError
from amc.system.files import write_whole


@dataclass(frozen=True)
class Anatomy:
    """What is found once for a dense network.

    Attributes:
        table: which units there are, and what they touch.
        place: (U,) each unit's rank inside its group.
        moments: of the readers' inputs; None where nothing is folded.
    """

    table: OwnerTable
    place: NDArray[np.int32]
    moments: Moments | None


def write_anatomy(path: Path, key: str, anatomy: Anatomy) -> None:
    """Keep `anatomy` under a `key` that names all it was found from."""
    table, place, moments = anatomy.table, anatomy.place, anatomy.moments
    arrays: list[NDArray[np.int32]] = []
    numbers: dict[int, int] = {}

    def number(owner: NDArray[np.int32]) -> int:
        if id(owner) not in numbers:
            numbers[id(owner)] = len(arrays)
            arrays.append(owner)
        return numbers[id(owner)]

    def listed(owners: Owners) -> list[int]:
        return [number(owner) for owner in owners]

    record = {
        "groups": [asdict(group) for group in table.groups],
        "frozen": [asdict(frozen) for frozen in table.frozen],
        "owners": {name: {str(dim): listed(o) for dim, o in axes.items()} for name, axes in table.owners.items()},
        "inputs": {name: listed(owners) for name, owners in table.inputs.items()},
        "products": [[p.module, p.macs, [listed(owners) for owners in p.axes]] for p in table.products],
        "integers": [[i.module, i.attribute, i.item, listed(i.owners)] for i in table.integers],
        "asked": [[a.module, a.place, a.turn, [listed(owners) for owners in a.sizes], a.factor] for a in table.asked],
        "norms": {name: asdict(rule) for name, rule in table.norms.items()},
        "ridge": dict(moments.ridge) if moments else None,
        "rescaled": dict(moments.rescaled) if moments else None,
    }
    tensors = {f"owner.{i}": torch.from_numpy(array.copy()) for i, array in enumerate(arrays)}
    tensors |= {"unit_group": torch.from_numpy(table.unit_group), "place": torch.from_numpy(place)}
    if moments:
        tensors |= {f"mean.{name}": value for name, value in moments.mean.items()}
        tensors |= {f"covariance.{name}": value.contiguous() for name, value in moments.covariance.items()}
    payload = save(tensors, metadata={"key": key, "record": json.dumps(record)})
    write_whole(path, lambda file: file.write(payload))


def read_anatomy(path: Path, key: str) -> Anatomy | None:
    """What `write_anatomy` kept under the same `key`, else None.

    Raises:
        RunError: the file is broken.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} must be a whole file, but: {error}; delete it and run the same command again") from None
    record = json.loads(metadata["record"])
    arrays = {int(name[6:]): value.numpy() for name, value in tensors.items() if name.startswith("owner.")}

    def named(numbers: list[int]) -> Owners:
        return tuple(arrays[i] for i in numbers)

    table = OwnerTable(
        tuple(Group(**{**group, "layers": tuple(group["layers"])}) for group in record["groups"]),
        tensors["unit_group"].numpy(),
        {name: {int(dim): named(i) for dim, i in axes.items()} for name, axes in record["owners"].items()},
        {name: named(i) for name, i in record["inputs"].items()},
        tuple(Frozen(**frozen) for frozen in record["frozen"]),
        tuple(Multiply(module, macs, tuple(map(named, axes))) for module, macs, axes in record["products"]),
        tuple(Integer(module, name, item, named(owners)) for module, name, item, owners in record["integers"]),
        {name: NormRule(**rule) for name, rule in record["norms"].items()},
        tuple(
            Asked(module, place, turn, tuple(map(named, sizes)), factor)
            for module, place, turn, sizes, factor in record["asked"]
        ),
    )
    moments = None
    if record["ridge"] is not None:
        moments = Moments(
            {name[5:]: value for name, value in tensors.items() if name.startswith("mean.")},
            {name[11:]: value for name, value in tensors.items() if name.startswith("covariance.")},
            record["ridge"],
            record["rescaled"],
        )
    return Anatomy(table, tensors["place"].numpy(), moments)
