"""What is known while a network runs: the labels of its tensors, the module that is running, the operation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from amc.surgery.trace_record import Factor, Labels, TraceRecord


@dataclass
class Frame:
    """A module that is running, and how many requests its own code has made at each call site."""

    name: str
    turns: Counter[str] = field(default_factory=Counter)


class TraceState:
    """The labels of every tensor that is alive, and where in the network the trace stands.

    Attributes:
        model: the network that runs.
        record: what the trace has found so far.
        labels: tensor -> its labels.
        stack: the modules that are running, the innermost last.
        patchable: a call whose sizes can be patched is running.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.record = model, TraceRecord()
        self.labels = WeakIdKeyDictionary()
        self.stack: list[Frame] = []
        self.patchable = False

    @property
    def module(self) -> str:
        """The name of the module that is running."""
        return self.stack[-1].name if self.stack else ""

    def of(self, tensor: Any) -> Labels:
        """The labels of a tensor; a Python number has pliant ones."""
        if not isinstance(tensor, Tensor):
            return Labels(pliant=True, parametric=True)
        found: Labels = self.labels.get(tensor, Labels())  # type: ignore[no-untyped-call]
        return found

    def set(self, tensor: Tensor, factors: Sequence[Factor] = (), *inputs: Tensor) -> None:
        """Label a result of `inputs`; dimensions of size one carry no labels."""
        left = tuple(f for factor in factors if (f := _squeezed(factor)) is not None)
        known = [self.of(source) for source in inputs]
        self.labels[tensor] = Labels(
            left,
            bool(known) and all(label.pliant for label in known),
            bool(known) and all(label.parametric for label in known),
        )

    def keep(self, tensor: Tensor, reason: str) -> None:
        """Everything this tensor's labels stand for stays."""
        for factor in self.of(tensor).factors:
            self.record.keep(factor.slots, reason)

    def lost(self, operation: str, args: Any, kwargs: Any, result: Any) -> None:
        """An operation without a rule: what goes in stays."""
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self.keep(tensor, f"it cannot be followed through {operation} in {self.module or 'the network'}")
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.set(tensor)


class Operation:
    """One operation as it ran."""

    def __init__(self, state: TraceState, operation: str, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        self.state, self.record, self.operation = state, state.record, operation
        self.func, self.args, self.kwargs, self.result = func, args, kwargs, result

    @property
    def where(self) -> str:
        return f"{self.operation} in {self.state.module or 'the network'}"

    @property
    def out(self) -> Tensor:
        """The first result."""
        first: Tensor = self.result[0] if isinstance(self.result, (tuple, list)) else self.result
        return first

    def arg(self, name: str, default: Any = None) -> Any:
        """An argument by its name in the operation's schema."""
        for number, argument in enumerate(self.func._schema.arguments):
            if argument.name == name:
                if number < len(self.args):
                    return self.args[number]
                return self.kwargs.get(name, argument.default_value if argument.has_default_value() else default)
        return default

    def tensors(self) -> list[Tensor]:
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    def of(self, tensor: Any) -> Labels:
        return self.state.of(tensor)

    def set(self, factors: Sequence[Factor], *inputs: Tensor, tensor: Tensor | None = None) -> None:
        self.state.set(self.out if tensor is None else tensor, factors, *(inputs or self.tensors()))

    def lost(self) -> None:
        self.state.lost(self.operation, self.args, self.kwargs, self.result)


def _squeezed(factor: Factor) -> Factor | None:
    """A factor without its dimensions of size one."""
    wide = [axis for axis, size in enumerate(factor.slots.shape) if size > 1]
    if len(wide) == len(factor.dims):
        return factor
    if not wide:
        return None
    return Factor(
        tuple(factor.dims[axis] for axis in wide), factor.slots.reshape([factor.slots.shape[axis] for axis in wide])
    )
