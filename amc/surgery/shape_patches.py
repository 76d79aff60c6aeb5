"""Sizes and factors that a network's own code computes, corrected once channels have gone.

`x.reshape(B, N, C)`, with C read from the input's width, is wrong when heads are cut and the input is not; logits
divided by the root of a width found in a shape are wrong when that width is cut. A resized module runs its own code,
and has every such request patched with the size that is left, or the factor of the dense network. Requests are known
by their call site in the module's own code, and where a site is reached several times by their turn: a loop over
the examples of a batch takes the turns of one example again, and code that runs in training alone shifts nothing.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from amc.surgery.replacement import Replacement

RESHAPES = (Tensor.view, Tensor.reshape, torch.reshape)
SPLITS = (torch.split, Tensor.split, torch.split_with_sizes, Tensor.split_with_sizes)
CHUNKS = (torch.chunk, Tensor.chunk)
PART = Tensor.__getitem__
SIZED = frozenset((*RESHAPES, *SPLITS, *CHUNKS, PART, Tensor.expand, Tensor.unflatten, torch.unflatten))
SCALED = frozenset((Tensor.mul, Tensor.__mul__, Tensor.__rmul__, Tensor.mul_, Tensor.__imul__, Tensor.div, Tensor.div_,
                    Tensor.__truediv__, Tensor.__itruediv__, torch.mul, torch.div))  # fmt: skip
ATTENTION = functional.scaled_dot_product_attention
RUNNER = nn.Module._call_impl.__code__  # below it stands a module's own code
COMPREHENSIONS = ("<listcomp>", "<dictcomp>", "<setcomp>")
TORCH = Path(torch.__file__).parent
HANDLERS = tuple(map(str, (  # files through which torch and this package hand a call on
    TORCH / "_tensor.py", TORCH / "functional.py", TORCH / "overrides.py", TORCH / "_jit_internal.py", TORCH / "utils",
    TORCH / "nn" / "modules" / "module.py", TORCH / "fx", Path(__file__).parent,
)))  # fmt: skip


def is_request(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call requests sizes, or scales by a number."""
    if func in SCALED:
        return len(args) > 1 and type(args[1]) is float
    if func is PART:
        return bool(bounds(args[1]))
    return func in SIZED or func is ATTENTION


@dataclass(frozen=True)
class ShapePatches:
    """Call site -> for each turn the right sizes in their order, None for those that stay; or the right factor.

    A turn that needs no patch has None.
    """

    calls: Mapping[str, Sequence[Any]]


def call_site() -> tuple[str, nn.Module | None]:
    """Where the request that is being handled stands, and the module that runs.

    The call site names every call that leads there, from the module's own code on: the function, and where it ends.
    Lines count from the first of their function, so that neither what else changes in a file nor the version of Python
    matters.
    """
    steps: list[str] = []
    inside: tuple[int, int] | None = None  # of a comprehension, which some versions run in a frame of its own
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not RUNNER:
        code = frame.f_code
        if not code.co_filename.startswith(HANDLERS):
            _, line, _, column = next(islice(code.co_positions(), frame.f_lasti // 2, None))
            inside = inside or (line or 0, column or 0)
            if code.co_name not in COMPREHENSIONS:
                steps.append(f"{code.co_name}+{inside[0] - code.co_firstlineno}:{inside[1]}")
                inside = None
        frame = frame.f_back
    return " > ".join(reversed(steps)), None if frame is None else frame.f_locals["self"]


class ShapePatched(Replacement):
    """A module whose code gets sizes that fit."""

    kind = "sizes"
    prefix = "ShapePatched"
    Settings = ShapePatches
    settings: ShapePatches

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _Patching(self, self.settings.calls) as mode:
            outputs = super().forward(*args, **kwargs)
        if mode.changed:
            self.__dict__["patched"] = True  # the proof asks whether it was needed
        return outputs


class _Patching(TorchFunctionMode):
    """Patches the requests of a module's own code, not those of the modules it calls."""

    def __init__(self, module: nn.Module, calls: Mapping[str, Sequence[Any]]) -> None:
        super().__init__()
        self.module, self.calls, self.changed = module, calls, False
        self.turns: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if is_request(func, args, kwargs):
            where, module = call_site()
            if module is self.module and where in self.calls:
                patches = self.calls[where]
                patch = patches[self.turns[where] % len(patches)]
                self.turns[where] += 1
                if patch is not None:
                    return self._patched_call(func, args, kwargs, patch)
        return func(*args, **kwargs)

    def _patched_call(self, func: Any, args: Any, kwargs: Any, patch: Any) -> Any:
        if func in CHUNKS:
            dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
            plain = func(*args, **kwargs)
            sizes = [0 if new is None else abs(new) for new in patch]
            self.changed |= [part.shape[dim] for part in plain] != sizes
            return args[0].split(sizes, dim) if sum(sizes) == args[0].shape[dim] else plain
        requested = repr((args[1:], kwargs)) if func is not ATTENTION else ""
        args, kwargs = patched_arguments(func, args, kwargs, patch)
        self.changed |= not requested or requested != repr((args[1:], kwargs))
        return func(*args, **kwargs)


def bounds(index: Any) -> list[int]:
    """The bounds that the slices of an index `x[...]` give, in their order: those are sizes too."""
    parts = index if isinstance(index, tuple) else (index,)
    return [b for part in parts if isinstance(part, slice) for b in (part.start, part.stop) if type(b) is int]


def _with_bounds(index: Any, patch: Sequence[int | None]) -> Any:
    left = iter(patch)

    def bound(old: Any) -> Any:
        new = next(left) if type(old) is int else None
        return old if new is None or new < 0 else new

    parts = [
        slice(bound(part.start), bound(part.stop), part.step) if isinstance(part, slice) else part
        for part in (index if isinstance(index, tuple) else (index,))
    ]
    return tuple(parts) if isinstance(index, tuple) else parts[0]


def patched_arguments(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], patch: Any
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """The arguments of a call with a patch in place of what was requested."""
    if func is ATTENTION:
        return args, {**kwargs, "scale": patch}
    if func in SCALED:
        return (args[0], patch, *args[2:]), kwargs
    if func is PART:
        return (args[0], _with_bounds(args[1], patch)), kwargs
    if func in SPLITS:
        name = "split_size_or_sections" if "split_size_or_sections" in kwargs else "split_sizes"
        requested = args[1] if len(args) > 1 else kwargs.get(name)
        if not isinstance(requested, (list, tuple)):
            return args, kwargs
        sizes = [old if new is None else abs(new) for old, new in zip(requested, patch, strict=True)]
        return ((args[0], sizes, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, name: sizes})
    if func in (Tensor.unflatten, torch.unflatten):
        tensor, dim = args[0], args[1]
        return (tensor, dim, _replaced(args[2], patch, tensor.shape[dim]), *args[3:]), kwargs
    requested = requested_sizes(func, args, kwargs)
    if requested is None:
        return args, kwargs
    if func is Tensor.expand:  # only a dimension of size one can be expanded: the others are as they are
        shift = len(requested) - args[0].ndim
        fixed = [
            None if d < shift or args[0].shape[d - shift] == 1 else args[0].shape[d - shift]
            for d in range(len(requested))
        ]
        patch = [new if size is None else size for new, size in zip(patch, fixed, strict=True)]
    total = args[0].numel() if func in RESHAPES else None
    return (args[0], _replaced(requested, patch, total)), {}


def requested_sizes(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Sequence[int] | None:
    """The sizes that a reshape or expand requests; None where it is called in some other way."""
    sizes: Sequence[Any] = args[1:] if len(args) > 1 else (kwargs.get("shape", kwargs.get("size")),)
    sizes = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list, torch.Size)) else sizes
    return None if any(not isinstance(size, int) for size in sizes) else tuple(sizes)


def _replaced(requested: Sequence[int], patch: Sequence[int | None], total: int | None) -> tuple[int, ...]:
    """Sizes with the patches put in; where a batch is merged into one of them, that one grows to fill the total."""
    if len(requested) != len(patch):
        return tuple(requested)
    pairs = list(zip(requested, patch, strict=True))
    if pairs and pairs[0][1] and pairs[0][0] > 0 and pairs[0][0] % abs(pairs[0][1]) == 0:
        pairs[0] = pairs[0][0], None  # a batch of what is left
    # what is left over (-1) is patched too, where it is known: else a batch merged into another size would end up in it
    sure = [old if new is None or (new < 0 and old >= 0) else abs(new) for old, new in pairs]
    every = [old if new is None else abs(new) for old, new in pairs]
    if total is None:
        return tuple(every)
    for sizes in (sure, every):
        product = abs(math.prod(sizes))
        if product in (total, 0) or (-1 in sizes and total % product == 0):
            return tuple(sizes)
    for sizes in (sure, every):
        for number, new in enumerate(patch):
            rest = math.prod(sizes[:number] + sizes[number + 1 :])
            if new and rest and total % rest == 0 and (total // rest) % abs(new) == 0:
                return (*sizes[:number], total // rest, *sizes[number + 1 :])
    return tuple(every)
