"""The graph of a network's operations by torch.fx, shape patches put into it.

Torch's symbolic tracer follows the network's own code; a module that it cannot follow stays one node, and so do layers
and the replacement modules of a cut network.
"""

from __future__ import annotations

import contextlib
import operator
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from amc.surgery.replacement import Replacement
from amc.surgery.shape_patches import (
    RESHAPES,
    ShapePatched,
    ShapePatches,
    call_site,
    is_request,
    patched_arguments,
)
from amc.system.errors import ModelError
from amc.system.factory import one_line

OPERATORS = {operator.mul: Tensor.mul, operator.truediv: Tensor.div, operator.getitem: Tensor.__getitem__}
RETRIES = 64  # classes that may turn out to be untraceable
ASSERTS = (torch._assert, operator.eq, operator.ge, operator.le, operator.mod, operator.and_, getattr, operator.getitem)


def traced_network(model: nn.Module, inside: bool = True) -> fx.GraphModule:
    """The graph of `model`, which is put in `eval` mode: it holds the network's own modules and tensors.

    Args:
        inside: follow modules whose code asks for sizes that are gone (`amc.surgery.shape_patches`), the sizes that are
            left put into the graph; else those modules stay one node, the network itself apart.

    Raises:
        ModelError: the network's own code cannot be followed.
    """
    kind = type(model).__name__
    alone, leaves = _Alone(model.eval()), set[type[nn.Module]]()
    for _ in range(RETRIES):
        tracer = _Tracer(model, leaves, inside)
        try:
            graph = tracer.trace(alone)
        except Exception as error:  # anyone's code, run on symbols
            failed = tracer.running[-1] if tracer.running else model
            if failed is model or type(failed) in leaves:
                raise ModelError(
                    f"exits need a network that torch.fx can trace, but {kind} is not: {one_line(error)}; take another "
                    "network, or one with exits of its own"
                ) from None
            leaves.add(type(failed))
        else:
            return fx.GraphModule(alone, _without_asserts(graph))
    raise ModelError(f"exits need a network that torch.fx can trace, but {kind} has {RETRIES} kinds of parts it cannot")


class _Alone(nn.Module):
    """A network with all arguments but its first left at their defaults."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Any:
        return self.network(inputs)


class _Tracer(fx.Tracer):
    """Follows all modules but layers, replacement modules, what timm says not to follow, and `leaves`."""

    def __init__(self, model: nn.Module, leaves: set[type[nn.Module]], inside: bool) -> None:
        kinds, functions = _timm_leaves()
        super().__init__(autowrap_functions=functions, param_shapes_constant=True)
        self.model, self.leaves, self.inside = model, (*kinds, *leaves), inside
        self.running: list[nn.Module] = []
        self.answers: list[Mapping[str, Sequence[Any]]] = []  # of each running module, where it was resized
        self.turns: Counter[tuple[int, str]] = Counter()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, Replacement) and not (isinstance(m, ShapePatched) and (self.inside or m is self.model)):
            return True
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self.running.append(m)
        with _unanswered(m) as calls:
            self.answers.append(calls)
            outputs = super().call_module(m, forward, args, kwargs)
            self.answers.pop()
        self.running.pop()  # not where it failed: the last one tells where
        return outputs

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **named: Any) -> fx.Proxy:
        if self.answers and self.answers[-1] and kind in ("call_method", "call_function"):
            args, kwargs = self._answered(kind, target, args, kwargs)
        return super().create_proxy(kind, target, args, kwargs, *more, **named)

    def _answered(self, kind: str, target: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The arguments with sizes and factors that fit what is left of the network, as when it runs."""
        func = getattr(Tensor, target, None) if kind == "call_method" else OPERATORS.get(target, target)
        if func is None or not is_request(func, args, kwargs):
            return args, kwargs
        where, module = call_site()
        calls = self.answers[-1].get(where)
        if module is not self.running[-1] or not calls:
            return args, kwargs
        turn = self.turns[id(module), where]
        self.turns[id(module), where] += 1
        answer = calls[turn % len(calls)]
        if answer is None:
            return args, kwargs
        if func in RESHAPES or func in (Tensor.expand, torch.reshape):  # sizes of which some are symbols
            spread = len(args) > 2 or isinstance(args[1], (int, fx.Proxy))
            sizes = _fitting(args[1:] if spread else args[1], answer)
            return (args[0], *sizes) if spread else (args[0], sizes), kwargs
        return patched_arguments(func, args, kwargs, answer)


def _fitting(asked: Sequence[Any], answer: Sequence[int | None]) -> tuple[Any, ...]:
    """The sizes asked for, those that the trace knows as numbers replaced by what is left."""
    if len(asked) != len(answer):
        return tuple(asked)
    pairs = zip(asked, answer, strict=True)
    return tuple(new if type(old) is int and old >= 0 and new is not None and new > 0 else old for old, new in pairs)


@contextlib.contextmanager
def _unanswered(module: nn.Module) -> Iterator[Mapping[str, Sequence[Any]]]:
    """A resized module runs its plain code inside; yields what its requests are to be patched_arguments with."""
    if not isinstance(module, ShapePatched):
        yield {}
        return
    before = module.settings
    module.__dict__["settings"] = ShapePatches({})
    try:
        yield before.calls
    finally:
        module.__dict__["settings"] = before


def _timm_leaves() -> tuple[tuple[type[nn.Module], ...], tuple[Callable[..., Any], ...]]:
    """The modules and functions of timm that are not to be followed; a network of timm has imported it."""
    if "timm" not in sys.modules:
        return (), ()
    from timm.layers import get_notrace_functions, get_notrace_modules

    functions = tuple(function for function in get_notrace_functions() if callable(function))
    return tuple(get_notrace_modules()), functions


def _without_asserts(graph: fx.Graph) -> fx.Graph:
    """Assertions taken out, with the sizes that only they read."""
    for node in reversed(list(graph.nodes)):
        is_size = node.op == "call_method" and node.target in ("size", "dim")
        if not node.users and (is_size or (node.op == "call_function" and node.target in ASSERTS)):
            graph.erase_node(node)
    return graph
