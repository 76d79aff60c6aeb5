"""What stages are made of and kept as: one whole network, or one trained thing that gives several stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from amc.cascade.stages.recording import record
from amc.cascade.stages.records import Records
from amc.cascade.stages.stage import NetworkStage, Stage, StageCost
from amc.cost.trace import digest_tensors
from amc.release.archive import load_network, read_architecture, save_network
from amc.surgery.flop_counter import count_cut_macs
from amc.system.device import Compute
from amc.system.files import write_whole
from amc.zoo.call import Call
from amc.zoo.data.splits import Split, groups_of
from amc.zoo.networks.source import ModelSource


class Component(Protocol):
    """Stages that are trained, kept and loaded together.

    Attributes:
        kind: the key of its loader in `amc.cascade.serving.saved_cascade.LOADERS`.
        name: unique among the parts of one cascade.
        stages: in the order in which they are run; their modules in `eval` mode.
        digest: a hash of all weights: two parts with one digest say the same of every example.
    """

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def stages(self) -> tuple[Stage, ...]: ...
    @property
    def digest(self) -> str: ...

    def save(self, folder: Path) -> None:
        """Write all that its loader needs, as safetensors and JSON."""
        ...


@dataclass(frozen=True, eq=False)
class NetworkComponent:
    """A whole network that stands alone.

    Attributes:
        macs: multiply-adds of one example.
        source: builds its dense skeleton.
        input_shape: of one example.
        origin: dense, released, retarget or external.
        normalisation: what inputs are normalised with, for its record; None where that is not known.
    """

    name: str
    model: nn.Module
    macs: float
    source: ModelSource
    input_shape: tuple[int, ...]
    origin: str
    normalisation: dict[str, list[float]] | None = None

    kind = "network"

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        return (NetworkStage(self.name, self.model, StageCost(self.name, self.macs)),)

    @cached_property
    def digest(self) -> str:
        return digest_tensors(self.model.state_dict())

    def save(self, folder: Path) -> None:
        save_network(folder, self.model, self.source, self.input_shape, self.normalisation)


def load_network_component(folder: Path, name: str, origin: str = "kept") -> NetworkComponent:
    """A release on disk as a network that stands alone."""
    architecture = read_architecture(folder)
    model = load_network(folder)
    shape = architecture.input_shape
    macs = macs_of(model, Call((torch.zeros(1, *shape),)))
    return NetworkComponent(name, model, macs, architecture.source, shape, origin, architecture.normalisation)


def macs_of(model: nn.Module, example: Call) -> float:
    """Multiply-adds of one example, by torch's own counter."""
    return float(count_cut_macs(model, example))


def join_stages(parts: Sequence[Records]) -> Records:
    """The stages of several records of the same examples, one after the other."""
    names = tuple(name for part in parts for name in part.stages)
    return Records(names, torch.cat([part.logits for part in parts]), parts[0].labels, parts[0].groups)


def cached_records(
    part: Component, split: Split, compute: Compute, folder: Path | None = None, batch_size: int = 250
) -> Records:
    """What the stages of `part` say of every example of `split`; kept in `folder` under a hash of weights and data.

    Raises:
        ModelError: as `amc.cascade.stages.recording.record`.
        StorageError: the folder cannot be written.
    """
    names = tuple(stage.name for stage in part.stages)
    name = f"{part.kind}-{part.digest}-{split.digest}-{compute.name.replace(' ', '-')}.safetensors"
    path = folder / name if folder else None
    if path is not None and path.is_file():
        try:
            kept = load(path.read_bytes())
            return Records(names, kept["logits"], kept["labels"], groups_of(split))
        except (SafetensorError, KeyError, ValueError):
            pass  # damaged, or of other stages: made anew
    found = record(part.stages, split, compute, batch_size)
    if path is not None:
        payload = save({"logits": found.logits.contiguous(), "labels": found.labels.contiguous()})
        write_whole(path, lambda file: file.write(payload))
    return found
