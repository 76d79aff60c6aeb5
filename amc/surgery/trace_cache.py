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

from amc.surgery.channel_table import ChannelTable, Frozen, Group, IndexMaps, Integer, Multiply, ShapeRequest
from amc.surgery.folding import Moments
from amc.surgery.narrow_norm import NormRule
from amc.system.errors import RunError
from amc.system.files import write_whole


@dataclass(frozen=True)
class TraceCache:
    """What is found once for a dense network.

    Attributes:
        table: which coupled channels there are, and what they touch.
        rank: (C,) of each coupled channel inside its group, 0 for the one that is removed last.
        moments: of the readers' inputs; None where nothing is folded.
    """

    table: ChannelTable
    rank: NDArray[np.int32]
    moments: Moments | None


def write_trace_cache(path: Path, key: str, cache: TraceCache) -> None:
    """Keep `cache` under a `key` that names all it was found from."""
    table, moments = cache.table, cache.moments
    arrays: list[NDArray[np.int32]] = []
    numbers: dict[int, int] = {}

    def number(index_map: NDArray[np.int32]) -> int:
        if id(index_map) not in numbers:
            numbers[id(index_map)] = len(arrays)
            arrays.append(index_map)
        return numbers[id(index_map)]

    def listed(index_maps: IndexMaps) -> list[int]:
        return [number(index_map) for index_map in index_maps]

    record = {
        "groups": [asdict(group) for group in table.groups],
        "frozen": [asdict(frozen) for frozen in table.frozen],
        "owners": {name: {str(dim): listed(o) for dim, o in axes.items()} for name, axes in table.index_maps.items()},
        "inputs": {name: listed(index_maps) for name, index_maps in table.inputs.items()},
        "products": [[p.module, p.macs, [listed(index_maps) for index_maps in p.axes]] for p in table.products],
        "integers": [[i.module, i.attribute, i.item, listed(i.index_maps)] for i in table.integers],
        "asked": [
            [a.module, a.site, a.turn, [listed(index_maps) for index_maps in a.sizes], a.factor]
            for a in table.shape_requests
        ],
        "norms": {name: asdict(rule) for name, rule in table.norms.items()},
        "ridge": dict(moments.ridge) if moments else None,
        "rescaled": dict(moments.rescaled) if moments else None,
    }
    tensors = {f"owner.{i}": torch.from_numpy(array.copy()) for i, array in enumerate(arrays)}
    tensors |= {"unit_group": torch.from_numpy(table.channel_group), "place": torch.from_numpy(cache.rank)}
    if moments:
        tensors |= {f"mean.{name}": value for name, value in moments.mean.items()}
        tensors |= {f"covariance.{name}": value.contiguous() for name, value in moments.covariance.items()}
    payload = save(tensors, metadata={"key": key, "record": json.dumps(record)})
    write_whole(path, lambda file: file.write(payload))


def read_trace_cache(path: Path, key: str) -> TraceCache | None:
    """What `write_trace_cache` kept under the same `key`, else None.

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

    def named(numbers: list[int]) -> IndexMaps:
        return tuple(arrays[i] for i in numbers)

    table = ChannelTable(
        tuple(Group(**{**group, "layers": tuple(group["layers"])}) for group in record["groups"]),
        tensors["unit_group"].numpy(),
        {name: {int(dim): named(i) for dim, i in axes.items()} for name, axes in record["owners"].items()},
        {name: named(i) for name, i in record["inputs"].items()},
        tuple(Frozen(**frozen) for frozen in record["frozen"]),
        tuple(Multiply(module, macs, tuple(map(named, axes))) for module, macs, axes in record["products"]),
        tuple(Integer(module, name, item, named(index_maps)) for module, name, item, index_maps in record["integers"]),
        {name: NormRule(**rule) for name, rule in record["norms"].items()},
        tuple(
            ShapeRequest(module, site, turn, tuple(map(named, sizes)), factor)
            for module, site, turn, sizes, factor in record["asked"]
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
    return TraceCache(table, tensors["place"].numpy(), moments)
