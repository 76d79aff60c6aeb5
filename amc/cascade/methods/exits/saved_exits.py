"""Exits on disk, beside the release that they belong to: `exits.safetensors` and `exits.json`.

The record says where exits stand and what their heads look like. The backbone's own tensors are kept too where they
were trained with the exits; else the record names the backbone by a hash, and no other is accepted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from amc.cascade.methods.exits.exit_network import OWN, ExitNetwork, Place, placed, with_own_exits
from amc.cascade.methods.exits.heads import HeadShape
from amc.cascade.methods.exits.segments import Cuttable
from amc.cascade.stages.component import NetworkComponent, load_network_component
from amc.cascade.stages.saved_tensors import SavedKind
from amc.cascade.stages.stage import Stage
from amc.cost.trace import digest_tensors
from amc.system.errors import ModelError

NETWORK, EXITS = "network", "exits"  # folders of a component: the backbone as a release, and its exits
WEIGHTS, RECORD = "exits.safetensors", "exits.json"
SAVED = SavedKind("amc-exits/1", "trained exits", WEIGHTS, RECORD)
HEAD, BODY = "head.", "backbone."


def save_exits(folder: Path, network: ExitNetwork) -> None:
    """Write the exits of `network` to `folder`; each file is whole or absent.

    Raises:
        StorageError: the folder cannot be written.
    """
    own = any(place.head is None for place in network.places)
    tensors = {} if own else {HEAD + name: tensor for name, tensor in network.heads.state_dict().items()}
    if network.joint:
        tensors |= {BODY + name: tensor for name, tensor in _own_tensors(network.backbone).items()}
    record = {
        "places": [
            {"name": place.name, "macs": place.macs, "head": place.head.to_json() if place.head else None}
            for place in network.places
        ],
        "chain": network.chain,
        "input_shape": list(network.input_shape),
        "joint": network.joint,
        "backbone_sha256": digest_tensors(_own_tensors(network.backbone)),
    }
    SAVED.write(folder, tensors, record)


def load_exits(folder: str | Path, backbone: nn.Module, chain: str | None = None) -> ExitNetwork:
    """The exits in `folder` on `backbone`, in `eval` mode; outputs are bit for bit those of the network saved.

    Args:
        backbone: the network that they were trained on. Where it was trained with them it gets those weights, in place.
        chain: what the network is called among the stages; None: as when it was saved.

    Raises:
        RunError: there are no exits in `folder`, or its files do not belong together.
        ModelError: the backbone is another one.
    """
    folder = Path(folder)
    record, tensors = SAVED.read(folder)
    if record["joint"]:
        _put(backbone, {name.removeprefix(BODY): t for name, t in tensors.items() if name.startswith(BODY)})
    elif not record["backbone_sha256"].startswith(digest_tensors(_own_tensors(backbone))):
        raise ModelError(f"the exits in {folder} must be put on the network they were trained on, but got another one")
    chain = chain or str(record["chain"])
    device = next(backbone.parameters()).device
    example = torch.randn(1, *record["input_shape"], generator=torch.Generator().manual_seed(0)).to(device)
    places = [
        Place(place["name"], place["macs"], HeadShape.from_json(place["head"]) if place["head"] else None)
        for place in record["places"]
    ]
    if any(place.head is None for place in places):
        indices = [int(place.name.removeprefix(f"{OWN}:")) for place in places]
        network = with_own_exits(backbone.eval(), example, indices, chain)
    else:
        network = placed(backbone, Cuttable(backbone, example), places, example, chain)
        _put(network.heads, {name.removeprefix(HEAD): t for name, t in tensors.items() if name.startswith(HEAD)})
    network.joint = record["joint"]
    return network


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network's state, a shared one once, under its first name."""
    names = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    return {name: tensor for name, tensor in model.state_dict().items() if name in names}


def _put(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    wanted = _own_tensors(module)
    if {name: tensor.shape for name, tensor in wanted.items()} != {name: t.shape for name, t in tensors.items()}:
        raise ModelError(f"saved exits must fit the network, but {type(module).__name__} has other tensors; train anew")
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(tensors[name])


@dataclass(frozen=True, eq=False)
class ExitsComponent:
    """A network with exits on its way; its backbone as it was, unless both were trained on together."""

    member: NetworkComponent
    network: ExitNetwork

    kind = "exits"

    @property
    def name(self) -> str:
        return self.member.name

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        return self.network.stages()

    @cached_property
    def digest(self) -> str:
        places = " ".join(place.name for place in self.network.places)
        tensors = self.network.state_dict()
        return digest_tensors({f"{places} {name}": tensor for name, tensor in tensors.items()})

    def save(self, folder: Path) -> None:
        self.member.save(folder / NETWORK)
        save_exits(folder / EXITS, self.network)


def load_exits_component(folder: Path, name: str) -> ExitsComponent:
    """What `ExitsComponent.save` wrote, on the CPU."""
    member = load_network_component(folder / NETWORK, name)
    return ExitsComponent(member, load_exits(folder / EXITS, member.model, name))
