"""Sizes and factors that a network's own code computes, corrected once channels have gone.

`x.reshape(B, N, C)`, with C read from the input's width, is wrong when heads are cut and the input is not; logits
divided by the root of a width found in a shape are wrong when that width is cut. A resized module runs its own code,
and has every such request answered with the size that is left, or the factor of the dense network. Requests are told
apart by their number in the module's own code, counted from the start of its forward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from amc.surgery.substitute import Substitute

RESHAPES = (Tensor.view, Tensor.reshape, torch.reshape)
SPLITS = (torch.split, Tensor.split, torch.split_with_sizes, Tensor.split_with_sizes)
CHUNKS = (torch.chunk, Tensor.chunk)
PART = Tensor.__getitem__
SIZED = frozenset((*RESHAPES, *SPLITS, *CHUNKS, PART, Tensor.expand, Tensor.unflatten, torch.unflatten))
SCALED = frozenset((Tensor.mul, Tensor.__mul__, Tensor.__rmul__, Tensor.mul_, Tensor.__imul__, Tensor.div, Tensor.div_,
                    Tensor.__truediv__, Tensor.__itruediv__, torch.mul, torch.div))  # fmt: skip
ATTENTION = functional.scaled_dot_product_attention


def is_request(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call asks for sizes, or scales by a number."""
    if func in SCALED:
        return len(args) > 1 and type(args[1]) is float
    if func is PART:
        return bool(bounds(args[1]))
    return func in SIZED or func is ATTENTION


@dataclass(frozen=True)
class Answers:
    """What to answer: the number of a call -> sizes in their order, None for those that stay; or a factor."""

    calls: Mapping[str, Any]


class Resized(Substitute):
    """A module whose code gets sizes that fit."""

    kind = "sizes"
    prefix = "Resized"
    Settings = Answers
    settings: Answers

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        mode = _Answering(self.settings.calls)
        inner = [module for module in self.modules() if module is not self]
        handles = [module.register_forward_pre_hook(mode.enter) for module in inner]
        handles += [module.register_forward_hook(mode.leave) for module in inner]
        try:
            with mode:
                outputs = super().forward(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        if mode.changed:
            self.__dict__["answered"] = True  # the proof asks whether it was needed
        return outputs


class _Answering(TorchFunctionMode):
    """Counts the requests of a module's own code, not those of the modules it calls."""

    def __init__(self, calls: Mapping[str, Any]) -> None:
        super().__init__()
        self.calls, self.number, self.depth, self.changed = calls, -1, 0, False

    def enter(self, *call: Any) -> None:
        self.depth += 1

    def leave(self, *call: Any) -> None:
        self.depth -= 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.depth == 0 and is_request(func, args, kwargs):
            self.number += 1
            answer = self.calls.get(str(self.number))
            if answer is not None:
                return self._answer(func, args, kwargs, answer)
        return func(*args, **kwargs)

    def _answer(self, func: Any, args: Any, kwargs: Any, answer: Any) -> Any:
        if func in CHUNKS:
            dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
            plain = func(*args, **kwargs)
            self.changed |= [part.shape[dim] for part in plain] != list(answer)
            return args[0].split(list(answer), dim) if sum(answer) == args[0].shape[dim] else plain
        asked = repr((args[1:], kwargs)) if func is not ATTENTION else ""
        args, kwargs = answered(func, args, kwargs, answer)
        self.changed |= not asked or asked != repr((args[1:], kwargs))
        return func(*args, **kwargs)


def bounds(index: Any) -> list[int]:
    """The bounds that the slices of an index `x[...]` give, in their order: those are sizes too."""
    parts = index if isinstance(index, tuple) else (index,)
    return [b for part in parts if isinstance(part, slice) for b in (part.start, part.stop) if type(b) is int]


def _with_bounds(index: Any, answer: Sequence[int | None]) -> Any:
    left = iter(answer)

    def bound(old: Any) -> Any:
        new = next(left) if type(old) is int else None
        return old if new is None else new

    parts = [
        slice(bound(part.start), bound(part.stop), part.step) if isinstance(part, slice) else part
        for part in (index if isinstance(index, tuple) else (index,))
    ]
    return tuple(parts) if isinstance(index, tuple) else parts[0]


def answered(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], answer: Any
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """The arguments of a call with an answer in place of what was asked."""
    if func is ATTENTION:
        return args, {**kwargs, "scale": answer}
    if func in SCALED:
        return (args[0], answer, *args[2:]), kwargs
    if func is PART:
        return (args[0], _with_bounds(args[1], answer)), kwargs
    if func in SPLITS:
        name = "split_size_or_sections" if "split_size_or_sections" in kwargs else "split_sizes"
        asked = args[1] if len(args) > 1 else kwargs.get(name)
        if not isinstance(asked, (list, tuple)):
            return args, kwargs
        sizes = [old if new is None else new for old, new in zip(asked, answer, strict=True)]
        return ((args[0], sizes, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, name: sizes})
    if func in (Tensor.unflatten, torch.unflatten):
        tensor, dim = args[0], args[1]
        return (tensor, dim, _replaced(args[2], answer, tensor.shape[dim]), *args[3:]), kwargs
    asked = asked_sizes(func, args, kwargs)
    if asked is None:
        return args, kwargs
    total = args[0].numel() if func in RESHAPES else None
    return (args[0], _replaced(asked, answer, total)), {}


def asked_sizes(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Sequence[int] | None:
    """The sizes that a reshape or expand asks for; None where it is called in some other way."""
    sizes: Sequence[Any] = args[1:] if len(args) > 1 else (kwargs.get("shape", kwargs.get("size")),)
    sizes = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list, torch.Size)) else sizes
    return None if any(not isinstance(size, int) for size in sizes) else tuple(sizes)


def _replaced(asked: Sequence[int], answer: Sequence[int | None], total: int | None) -> tuple[int, ...]:
    """Sizes with the answers put in; where a batch is merged into one of them, that one grows to fill the total."""
    if len(asked) != len(answer):
        return tuple(asked)
    sizes = [old if new is None else new for old, new in zip(asked, answer, strict=True)]
    if total is None or -1 in sizes or math.prod(sizes) in (total, 0):
        return tuple(sizes)
    for place, new in enumerate(answer):
        rest = math.prod(sizes[:place] + sizes[place + 1 :])
        if new and total % rest == 0 and (total // rest) % new == 0:
            sizes[place] = total // rest
            break
    return tuple(sizes)
