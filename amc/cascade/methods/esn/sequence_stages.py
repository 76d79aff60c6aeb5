"""ESN, the exit-sequence network: a saver answers first, and the base network it saves can be left on the way.

After the second part of arXiv 2403.17726 and its released code: both networks are frozen; each exit reads what the
saver and the base have computed so far, and corrects the saver's logits. All stages are exits of one chain, so that one
left out lends its work to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amc.cascade.methods.esn.exit_sequence import ExitSequence, SequenceSize, pool
from amc.cascade.methods.exits.segments import Cuttable
from amc.cascade.stages.component import NetworkComponent, load_network_component
from amc.cascade.stages.saved_tensors import SavedKind
from amc.cascade.stages.stage import ExitStage, StageCost
from amc.cost.trace import digest_tensors
from amc.surgery.flop_counter import count_cut_macs
from amc.system.errors import ModelError, RunError
from amc.zoo.call import Call
from amc.zoo.networks.checkpoint import load_weights

WEIGHTS, RECORD = "sequence.safetensors", "sequence.json"
SAVED = SavedKind("amc-exit-sequence/1", "an exit sequence", WEIGHTS, RECORD)
Features = tuple[Tensor, ...]


class Opening(nn.Module):
    """Inputs -> inputs, the saver's logits and its pooled last features."""

    def __init__(self, body: nn.Module, classifier: nn.Module, channel_dim: int) -> None:
        super().__init__()
        self.body, self.classifier, self.channel_dim = body, classifier, channel_dim

    def forward(self, inputs: Tensor) -> Features:
        features = self.body(inputs)
        pooled = pool(features, self.channel_dim)
        return inputs, self.classifier(features), pooled


class Passage(nn.Module):
    """A segment of the base network and its token: features, logits of the saver, token before it, memory -> the same.

    The first one is given the saver's pooled features and no memory, and makes the saver's token too.
    """

    def __init__(self, segment: nn.Module, sequence: ExitSequence, place: int, channel_dim: int) -> None:
        super().__init__()
        self.segment, self.sequence, self.place, self.channel_dim = segment, sequence, place, channel_dim

    def forward(self, carried: Features) -> Features:
        features = self.segment(carried[0])
        pooled = pool(features, self.channel_dim)
        if self.place == 1:
            tokens, memory = self.sequence.extend([carried[2], pooled], 0, None)
        else:
            tokens, memory = self.sequence.extend([pooled], self.place, carried[3])
        return features, carried[1], tokens[:, -1], memory


class Closing(nn.Module):
    """The rest of the base network, which answers by itself."""

    def __init__(self, segment: nn.Module) -> None:
        super().__init__()
        self.segment = segment

    def forward(self, carried: Features) -> Tensor:
        logits: Tensor = self.segment(carried[0])
        return logits


class SaverAnswer(nn.Module):
    """The saver's own logits."""

    def forward(self, carried: Features) -> Tensor:
        return carried[1]


class Correction(nn.Module):
    """The saver's logits and what an exit's token adds to them."""

    def __init__(self, exit_: nn.Module) -> None:
        super().__init__()
        self.exit = exit_

    def forward(self, carried: Features) -> Tensor:
        logits: Tensor = self.exit(carried[2]) + carried[1]
        return logits


@dataclass(frozen=True, eq=False)
class Pair:
    """A saver and a base network, both cut where features are taken, and neither changed.

    Attributes:
        places: of the K exits, names of the base's cut points.
        saver_point: name of the saver's last cut point, behind which its classifier stands.
        channel_dims: of the K + 1 features, the saver's first.
        channels: their widths.
        saver_parts: body and classifier.
        segments: of the base, K + 1.
    """

    saver: NetworkComponent
    base: NetworkComponent
    places: tuple[str, ...]
    saver_point: str
    channel_dims: tuple[int, ...]
    channels: tuple[int, ...]
    saver_parts: tuple[nn.Module, nn.Module]
    segments: tuple[nn.Module, ...]

    @cached_property
    def classes(self) -> int:
        with torch.no_grad():
            return int(self.saver.model(self.example).shape[1])

    @cached_property
    def example(self) -> Tensor:
        """One input, noise."""
        return noise(self.base)

    def opening(self) -> Opening:
        return Opening(*self.saver_parts, self.channel_dims[0])

    def watched(self, inputs: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """What a sequence is trained on: K + 1 pooled features (b, channels), the saver's logits and the base's."""
        _, logits, first = self.opening()(inputs)
        found, features = [first], inputs
        for segment, channel_dim in zip(self.segments[:-1], self.channel_dims[1:], strict=True):
            features = segment(features)
            found.append(pool(features, channel_dim))
        return found, logits, self.segments[-1](features)


def pair_networks(saver: NetworkComponent, base: NetworkComponent, exits: int | Sequence[str] = 3) -> Pair:
    """Cut a saver in front of its classifier, and a base at `exits` places that divide its cost evenly.

    Args:
        exits: how many places, or names of cut points of the base.

    Raises:
        ModelError: one of them cannot be traced or cut, or the two read different inputs.
    """
    if saver.input_shape != base.input_shape:
        raise ModelError(
            f"a saver must read what its base reads, but {saver.name} takes {saver.input_shape} and {base.name} "
            f"{base.input_shape}; take another saver"
        )
    small, large = Cuttable(saver.model, noise(saver)), Cuttable(base.model, noise(base))
    if not small.points:
        raise ModelError(f"a saver must have features before its classifier, but {saver.name} has no cut point")
    if isinstance(exits, int):
        points = large.nearest([(place + 1) / (exits + 1) for place in range(exits)])
    else:
        known = {point.name: point for point in large.points}
        points = tuple(known[name] for name in exits if name in known)
    names = tuple(point.name for point in points) if isinstance(exits, int) else tuple(exits)
    segments = large.segments(names)
    last = small.points[-1]
    body, classifier = small.segments([last.name])
    taken = (last, *points)
    return Pair(
        saver, base, names, last.name,
        channel_dims=tuple(point.channel_dim for point in taken),
        channels=tuple(point.shape[0 if point.channel_dim == 1 else -1] for point in taken),
        saver_parts=(body, classifier),
        segments=tuple(segments),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class SequenceComponent:
    """A pair with its exit sequence: K + 2 stages, the saver, K exits, and the base itself."""

    pair: Pair
    sequence: ExitSequence

    kind = "esn"

    @property
    def name(self) -> str:
        return f"{self.pair.saver.name}+{self.pair.base.name}"

    @cached_property
    def stages(self) -> tuple[ExitStage, ...]:
        """The first one costs what the saver alone costs: its token is made by the first exit."""
        pair, chain = self.pair, f"esn {self.name}"
        passages = [
            Passage(segment, self.sequence, place, channel_dim)
            for place, (segment, channel_dim) in enumerate(
                zip(pair.segments[:-1], pair.channel_dims[1:], strict=True), start=1
            )
        ]
        bodies = [pair.opening(), *passages, Closing(pair.segments[-1])]
        heads = [SaverAnswer(), *(Correction(exit_) for exit_ in self.sequence.exits), nn.Identity()]
        names = [pair.saver.name, *(f"{pair.base.name} at {place}" for place in pair.places), pair.base.name]
        costs = _costs(bodies, heads, pair.example)
        return tuple(
            ExitStage(name, (body.eval(),), head.eval(), StageCost(chain, *cost))
            for name, body, head, cost in zip(names, bodies, heads, costs, strict=True)
        )

    @cached_property
    def digest(self) -> str:
        weights = self.sequence.state_dict()
        return digest_tensors(
            {f"{self.pair.saver.digest} {self.pair.base.digest} {self.pair.places} {k}": v for k, v in weights.items()}
        )

    def save(self, folder: Path) -> None:
        """The sequence, and both networks as releases in `saver` and `base`."""
        record = {
            "saver": self.pair.saver.name,
            "base": self.pair.base.name,
            "saver_point": self.pair.saver_point,
            "places": list(self.pair.places),
            "sequence": self.sequence.to_json(),
        }
        self.pair.saver.save(folder / "saver")
        self.pair.base.save(folder / "base")
        SAVED.write(folder, self.sequence.state_dict(), record)


def new_sequence(pair: Pair, size: SequenceSize | None = None, seed: int = 0) -> ExitSequence:
    """An exit sequence for a pair, its weights drawn from `seed`."""
    sequence = ExitSequence(pair.channels, pair.classes, size or SequenceSize())
    sequence.reset(seed)
    return sequence.to(pair.example.device)


def load_sequence(folder: str | Path) -> SequenceComponent:
    """What `SequenceComponent.save` wrote, on the CPU.

    Raises:
        RunError: there is none in `folder`, or it is damaged.
        ModelError: the networks' sources are missing, or weights do not fit.
    """
    folder = Path(folder)
    record, tensors = SAVED.read(folder)
    try:
        sequence = ExitSequence.from_json(record["sequence"])
        saver, base = (load_network_component(folder / kind, record[kind]) for kind in ("saver", "base"))
        pair = pair_networks(saver, base, record["places"])
    except (KeyError, TypeError) as error:
        raise RunError(f"{folder} must hold {SAVED.what} whole, but: {error!r}; make it anew") from None
    if pair.saver_point != record["saver_point"] or list(pair.channels) != record["sequence"]["channels"]:
        raise ModelError(f"{folder} must fit its networks, but these are cut elsewhere now; make it anew")
    load_weights(sequence, tensors, str(folder / WEIGHTS))
    return SequenceComponent(pair, sequence.eval())


def noise(member: NetworkComponent) -> Tensor:
    """One input for a network, on its device."""
    draw = torch.Generator().manual_seed(0)
    return torch.randn(1, *member.input_shape, generator=draw).to(next(member.model.parameters()).device)


def _costs(bodies: Sequence[nn.Module], heads: Sequence[nn.Module], inputs: Any) -> list[tuple[float, float]]:
    """Multiply-adds of each body and each head, for one example."""
    found, carried = [], inputs
    for body, head in zip(bodies, heads, strict=True):
        spent = count_cut_macs(body, Call((carried,)))
        with torch.no_grad():
            carried = body(carried)
        found.append((float(spent), float(count_cut_macs(head, Call((carried,))))))
    return found
