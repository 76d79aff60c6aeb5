"""What a network is called with: any arguments, in one value that can be moved, shortened and counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from amc.system.errors import UsageError
from amc.zoo.data.regroup import example_count, sliced


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of one forward pass: tensors, or tuples, lists and dicts of them, however deep."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def on(self, model: nn.Module) -> Any:
        """What `model` makes of these arguments."""
        return model(*self.args, **self.kwargs)

    def to(self, device: torch.device | str) -> Call:
        """The same call, its tensors on `device`."""
        return self.mapped(lambda tensor: tensor.to(device))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Call:
        """The same call with every tensor changed, in a fixed order."""
        args, kwargs = tree_map(
            lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, (self.args, dict(self.kwargs))
        )
        return Call(args, kwargs)

    def __len__(self) -> int:
        """How many examples are in it: the first dimension of the first tensor, or the length of a list of images."""
        return example_count(self.args if self.args else dict(self.kwargs))

    def head(self, number: int) -> Call:
        """The first `number` examples: tensors and lists as long as the call are shortened, all else stays."""
        where, count = slice(number), len(self)
        return Call(sliced(self.args, where, count), sliced(dict(self.kwargs), where, count))


def as_call(inputs: Any) -> Call:
    """A tensor, a tuple or list of arguments, or a dict of keyword arguments as a call.

    Raises:
        UsageError: it is none of these.
    """
    if isinstance(inputs, Call):
        return inputs
    if isinstance(inputs, Mapping):
        return Call((), dict(inputs))
    if isinstance(inputs, (tuple, list)):
        return Call(tuple(inputs))
    if isinstance(inputs, Tensor):
        return Call((inputs,))
    raise UsageError(
        "a network is called with a tensor, a tuple of arguments or a dict of keyword arguments, but got "
        f"{type(inputs).__name__}"
    )


def float_tensors(tree: Any) -> list[Tensor]:
    """The floating-point tensors in a network's outputs, in a fixed order."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def on_cpu(tree: Any) -> Any:
    """Outputs or a batch on the CPU, floats as float32."""
    return tree_map(lambda leaf: _plain(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.float().cpu() if tensor.is_floating_point() else tensor.cpu()


def moved(tree: Any, device: torch.device | str) -> Any:
    """A tree of tensors on `device`."""
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, tree)
