"""A classifier cut into consecutive segments, where a single tensor carries all that the rest needs.

Cut points are placed by the multiply-adds before them. Segments hold the network's own modules and tensors, and run one
after the other they are the network.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules import batchnorm, pooling
from torch.utils.flop_counter import FlopCounterMode

from amc.surgery.flop_counter import counting
from amc.surgery.fx_graph import traced_network
from amc.surgery.layers import CONVOLUTIONS
from amc.surgery.narrow_norm import NarrowNorm
from amc.surgery.shape_patches import ShapePatched
from amc.system.errors import ModelError
from amc.system.factory import one_line

FIRST = (*CONVOLUTIONS, batchnorm._NormBase, nn.GroupNorm, pooling._MaxPoolNd, pooling._AvgPoolNd)  # channels are dim 1
LAST = (nn.Linear, nn.LayerNorm, nn.MultiheadAttention)  # channels are the last dimension
FIRST_FUNCTIONS = (torch.conv1d, torch.conv2d, torch.conv3d, functional.batch_norm, functional.group_norm,
                   functional.max_pool2d, functional.avg_pool2d)  # fmt: skip
LAST_FUNCTIONS = (functional.linear, functional.layer_norm, functional.scaled_dot_product_attention)
MOVING = ("permute", "transpose", "reshape", "view", "flatten", "unflatten", "getitem", "movedim", "roll")
TOLERANCE = 1e-4  # of the largest logit: the graph runs the same operations, some kernels round otherwise


@dataclass(frozen=True)
class CutPoint:
    """A place in a network at which one tensor is all that is needed to go on.

    Attributes:
        name: of the operation that makes the tensor.
        macs: multiply-adds of one example up to here.
        shape: of the tensor, for one example, without the batch.
        channel_dim: which dimension stands for channels, counted with the batch: 1, or -1 where they come last.
    """

    name: str
    macs: int
    shape: tuple[int, ...]
    channel_dim: int


class Cuttable:
    """A network's graph with its cut points, in order: of those with equal multiply-adds before them the last.

    Attributes:
        macs: multiply-adds of one example through the whole network.

    Raises:
        ModelError: the network cannot be traced, or gives no logits.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        try:
            self._trace(model, example[:1], inside=True)
        except ModelError:
            if not any(isinstance(module, ShapePatched) for module in model.modules()):
                raise
            self._trace(model, example[:1], inside=False)

    def _trace(self, model: nn.Module, one: Tensor, inside: bool) -> None:
        self.traced, self.kind = traced_network(model, inside), type(model).__name__
        two = torch.cat([one, one.flip(-1)])
        try:
            single, pair = _run(self.traced, one), _run(self.traced, two)
        except Exception as error:  # what was traced holds for one kind of batch alone
            raise ModelError(f"the traced {self.kind} must run on any batch, but fails: {one_line(error)}") from None
        _check(pair.outputs, model, two, self.kind)
        self.macs = single.total
        self.points = tuple(_points(self.traced.graph, single, pair))

    def nearest(self, fractions: Sequence[float]) -> tuple[CutPoint, ...]:
        """The cut points whose shares of the multiply-adds are nearest to `fractions`, in order, each once.

        Raises:
            ModelError: the network has no cut point.
        """
        if not self.points:
            raise ModelError(
                f"exits need a place where a single tensor is alive, but {self.kind} has none; take another"
            )
        wanted = [fraction * self.macs for fraction in fractions]
        chosen = {min(self.points, key=lambda point: abs(point.macs - macs)).macs for macs in wanted}
        return tuple(point for point in self.points if point.macs in chosen)

    def segments(self, names: Sequence[str]) -> list[nn.Module]:
        """The network in `len(names)` + 1 parts, cut behind the operations `names`, in order.

        Raises:
            ModelError: a name is that of no cut point.
        """
        known = [point.name for point in self.points]
        strange = [name for name in names if name not in known]
        if strange:
            raise ModelError(
                f"exits must stand at cut points of the network, but {strange[0]!r} is none; place them anew"
            )
        nodes = list(self.traced.graph.nodes)
        ends = [next(node for node in nodes if node.name == name) for name in names]
        starts = [next(node for node in nodes if node.op == "placeholder"), *ends]
        results = [*ends, next(node for node in nodes if node.op == "output").args[0]]
        return [_between(self.traced, nodes, start, result) for start, result in zip(starts, results, strict=True)]


class _Pass(fx.Interpreter):
    """One run, operation by operation: what was counted up to each, shapes, and which tensors were written over."""

    def __init__(self, traced: fx.GraphModule, counter: FlopCounterMode) -> None:
        super().__init__(traced, garbage_collect_values=False)
        self.counter, self.macs = counter, dict[fx.Node, int]()
        self.shapes, self.versions = dict[fx.Node, tuple[int, ...]](), dict[fx.Node, int]()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.macs[n] = self.counter.get_total_flops() // 2
        if isinstance(value, Tensor) and value.is_floating_point():
            self.shapes[n], self.versions[n] = tuple(value.shape), value._version
        return value

    @property
    def total(self) -> int:
        return next(reversed(self.macs.values()))

    @property
    def outputs(self) -> Any:
        """What the network gave."""
        return self.env[next(reversed(self.macs))]

    def is_overwritten(self, node: fx.Node) -> bool:
        """Whether a later operation works in place on the tensor that `node` made."""
        return bool(self.env[node]._version != self.versions[node])


def _run(traced: fx.GraphModule, inputs: Tensor) -> _Pass:
    with counting(traced) as counter:
        found = _Pass(traced, counter)
        found.run(inputs.clone())
    return found


@torch.no_grad()
def _check(found: Any, model: nn.Module, inputs: Tensor, kind: str) -> None:
    """The traced network must give what the network gives: logits."""
    wanted = model(inputs.clone())
    if not isinstance(wanted, Tensor) or wanted.ndim != 2 or len(wanted) != len(inputs):
        shape = f"shape {tuple(wanted.shape)}" if isinstance(wanted, Tensor) else type(wanted).__name__
        raise ModelError(f"exits need logits (n, classes), but {kind} gives {shape}; cascades classify")
    if found.shape != wanted.shape or bool((found - wanted).abs().max() > TOLERANCE * (1 + wanted.abs().max())):
        raise ModelError(f"the traced {kind} must give what {kind} gives, but does not; take another network")


def _points(graph: fx.Graph, one: _Pass, two: _Pass) -> Iterator[CutPoint]:
    """The cut points of a graph, seen on one example and on two."""
    found: dict[int, CutPoint] = {}
    for node in _single_lives(graph):
        macs, shape = one.macs[node], two.shapes.get(node, ())
        by_example = len(shape) > 1 and shape[0] == 2 and one.shapes.get(node) == (1, *shape[1:])
        if by_example and 0 < macs < one.total and not two.is_overwritten(node):
            found[macs] = CutPoint(node.name, macs, shape[1:], _channel_dim(node, two.shapes))
    yield from found.values()


def _constants(graph: fx.Graph) -> set[fx.Node]:
    """What does not depend on the input: any segment can make it again."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr" or (node.all_input_nodes and set(node.all_input_nodes) <= found):
            found.add(node)
    return found


def _single_lives(graph: fx.Graph) -> Iterator[fx.Node]:
    """Operations behind which a single value is all that the rest needs: that value, each once."""
    nodes = list(graph.nodes)
    place, constants = {node: index for index, node in enumerate(nodes)}, _constants(graph)
    alive: dict[fx.Node, int] = {}  # -> the place of its last use
    seen: set[fx.Node] = set()
    for index, node in enumerate(nodes):
        if node not in constants and node.users:
            alive[node] = max(place[user] for user in node.users)
        alive = {value: last for value, last in alive.items() if last > index}
        if len(alive) == 1 and not seen >= set(alive):
            seen |= set(alive)
            yield next(iter(alive))


def _between(traced: fx.GraphModule, nodes: Sequence[fx.Node], start: fx.Node, result: fx.Node) -> fx.GraphModule:
    """The operations from behind `start` to `result`, with `start`'s value as the input."""
    graph, constants = fx.Graph(), _constants(traced.graph)
    copies = {start: graph.placeholder("features")}

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:  # a constant, made where it is first needed
            copies[node] = graph.node_copy(node, copied)
        return copies[node]

    for node in nodes[nodes.index(start) + 1 : nodes.index(result) + 1]:
        inputs = [value for value in node.all_input_nodes if value not in constants]
        if inputs and all(value in copies for value in inputs):  # else nothing that follows needs it
            copied(node)
    graph.output(copies[result])
    graph.lint()
    return fx.GraphModule(traced, graph, class_name="Segment")


def _channel_dim(node: fx.Node, shapes: Mapping[fx.Node, tuple[int, ...]]) -> int:
    """1 or -1, by the nearest layer that makes or reads the tensor, beyond operations that leave its shape."""
    shape, queue, seen = shapes[node], deque([node]), {node}
    while queue:
        current = queue.popleft()
        for neighbour in (current, *current.users):
            found = _known_dim(neighbour, current.graph.owning_module)
            if found is not None:
                return found
        for neighbour in (*current.all_input_nodes, *current.users):
            moving = (current if neighbour in current.all_input_nodes else neighbour).name
            if neighbour not in seen and shapes.get(neighbour) == shape and not any(word in moving for word in MOVING):
                seen.add(neighbour)
                queue.append(neighbour)
    return -1 if len(shape) == 3 else 1


def _known_dim(node: fx.Node, owner: nn.Module | None) -> int | None:
    if node.op == "call_function":
        return 1 if node.target in FIRST_FUNCTIONS else -1 if node.target in LAST_FUNCTIONS else None
    if node.op != "call_module" or owner is None:
        return None
    module = owner.get_submodule(str(node.target))
    if isinstance(module, NarrowNorm):
        return module.settings.channel_dim
    return 1 if isinstance(module, FIRST) else -1 if isinstance(module, LAST) else None
