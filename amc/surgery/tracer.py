"""Run a network once and follow every channel through every operation.

The network runs as it is, on real tensors; `amc.surgery.operators` says for each ATen operation what becomes of the
labels. So any Python code can be traced, and what it does with shapes is seen as it happens. What cannot be followed is
kept whole, with the operation's name.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from amc.surgery.flop_counter import composed_attention
from amc.surgery.layers import CONVOLUTIONS, LAYERS, TRANSPOSED
from amc.surgery.narrow_norm import norm_rule
from amc.surgery.operators import RULES
from amc.surgery.operators.entrywise import any_pointwise
from amc.surgery.shape_patches import ATTENTION, CHUNKS, PART, SCALED, SPLITS, call_site, is_request, requested_sizes
from amc.surgery.trace_record import Factor, Labels, Slots, TracedRequest, TraceRecord
from amc.surgery.trace_state import Frame, Operation, TraceState
from amc.system.errors import ModelError
from amc.zoo.call import Call, as_call


def trace(model: nn.Module, inputs: Call | Tensor, ignore: Sequence[str] = ()) -> TraceRecord:
    """Trace `model` on one example; the model itself is left as it was found.

    Args:
        model: any network.
        inputs: what it is called with, a batch of one.
        ignore: names of modules none of whose channels may be removed.

    Raises:
        ModelError: the network cannot be run, or an ignored name does not exist.
    """
    unknown = [name for name in ignore if name not in dict(model.named_modules())]
    if unknown:
        raise ModelError(f"a name in `ignore` must be a module of the network, but {unknown[0]!r} is none")
    copied = copy.deepcopy(model).eval()
    tracer = Tracer(copied)
    try:
        with torch.no_grad(), tracer.watching(), composed_attention(), tracer, _Requests(tracer):
            outputs = as_call(inputs).on(copied)
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise ModelError(
            f"the network must run on its example input, but {type(error).__name__}: {first} (in "
            f"{tracer.state.module or 'the network'}); check the input size and channels"
        ) from error
    for tensor in tree_leaves(outputs):
        if isinstance(tensor, Tensor):
            tracer.state.keep(tensor, "it is the network's output")
    for name, module in copied.named_modules():
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in ignore):
            tracer.ignore(name, module)
    return tracer.record


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation of a network and passes labels on."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.state = TraceState(model)
        self.record = self.state.record
        self.muted = 0  # how many of the running modules are taken whole
        for name, module in model.named_modules():
            if (rule := norm_rule(module)) is not None:
                self.record.rules[name] = rule
        self.names: dict[int, str] = {}
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                self._label_parameter(name, tensor)
            else:
                self.state.labels[tensor] = Labels(parametric=True)

    def _label_parameter(self, name: str, tensor: Tensor) -> None:
        self.names[id(tensor)] = name
        factors = [
            Factor((dim,), self.record.axis(name, dim, size)) for dim, size in enumerate(tensor.shape) if size > 1
        ]
        self.state.labels[tensor] = Labels(tuple(factors), parametric=True)

    def ignore(self, name: str, module: nn.Module) -> None:
        for own, tensor in module.named_parameters(recurse=False):
            where = self.names.get(id(tensor), f"{name}.{own}")
            dims = range(tensor.ndim) if not isinstance(module, LAYERS) else [int(isinstance(module, TRANSPOSED))]
            if isinstance(module, LAYERS) and own == "bias":
                dims = [0]
            for dim in dims:
                if (where, dim) in self.record.axes:
                    start, length = self.record.axes[where, dim]
                    self.record.keep(np.arange(start, start + length), f"{name or 'the network'} is in `ignore`")

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Know which module runs, and take normalisations whole."""
        handles = []
        for name, module in self.state.model.named_modules():
            handles.append(module.register_forward_pre_hook(self._enter(name), with_kwargs=True))
            handles.append(module.register_forward_hook(self._leave(name), always_call=False))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            self.state.stack.append(Frame(name))
            self.muted += name in self.record.rules

        return hook

    def _leave(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if name in self.record.rules:
                self.muted -= 1
                self._normalised(name, module, args[0], output, self.record.rules[name].channel_dim % args[0].ndim)
            elif isinstance(module, LAYERS) and args and isinstance(args[0], Tensor):
                self._read_by(name, module, args[0])
            self.state.stack.pop()

        return hook

    def _normalised(self, name: str, module: nn.Module, before: Tensor, after: Tensor, dim: int) -> None:
        """A normalisation over channels that can be computed for fewer as if the others were zero."""
        factor = self.state.of(before).factor(dim)
        parameters = [tensor for tensor in module.parameters(recurse=False)]
        if factor is not None and len(factor.dims) == 1 and parameters:
            self.record.normed[name] = factor.slots
            for tensor in parameters:
                self.record.join(self.state.of(tensor).factors[0].slots, factor.slots)
        elif factor is not None:
            self.record.fix(factor, dim, f"{name} ({type(module).__name__}) normalises over it")
        if factor is None or len(factor.dims) > 1:
            for tensor in parameters:
                self.state.keep(tensor, f"{name} ({type(module).__name__}) normalises over channels that stay")
        self.state.set(after, self.state.of(before).factors, before)

    def _read_by(self, name: str, module: nn.Module, before: Tensor) -> None:
        """What a layer's input channels stand for; a layer that runs twice on different channels has none."""
        factor = self.state.of(before).factor(1 if isinstance(module, CONVOLUTIONS) else before.ndim - 1)
        if factor is None or len(factor.dims) > 1:
            return
        known = self.record.inputs.setdefault(name, factor.slots)
        if known.shape != factor.slots.shape:
            del self.record.inputs[name]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self.muted:
            operation = func._schema.name.split("::")[1]
            rule = RULES.get(operation) or RULES.get(operation.rstrip("_"))
            if rule is None and torch.Tag.pointwise in func.tags:
                rule = any_pointwise
            if rule is None:
                self.state.lost(operation, args, kwargs, result)
            else:
                rule(Operation(self.state, operation, func, args, kwargs, result))
            if operation.endswith("_") and args and isinstance(args[0], Tensor):
                self._written(args[0])
        return result

    def _written(self, view: Tensor) -> None:
        """What a view is a part of is, once the view was written in place, no longer what it was made from."""
        storage, own = view.untyped_storage()._cdata, self.state.of(view)
        for other in list(self.state.labels.keys()):  # type: ignore[no-untyped-call]
            if other is view or other.untyped_storage()._cdata != storage:
                continue
            known = self.state.of(other)
            self.state.labels[other] = replace(
                known, pliant=known.pliant and own.pliant, parametric=known.parametric and own.parametric
            )
            if other.numel() > view.numel() and not known.factors:  # of which nothing was known to begin with
                self.state.keep(
                    view, f"it is written into a part of a larger tensor in {self.state.module or 'the network'}"
                )


class _Requests(TorchFunctionMode):
    """Notes every call by which a module's code asks for sizes, with what the dimensions that came out stand for."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.tracer.state.stack or not is_request(func, args, kwargs):
            return func(*args, **kwargs)
        where, _ = call_site()
        turn = self.tracer.state.stack[-1].turns[where]
        self.tracer.state.stack[-1].turns[where] += 1
        self.tracer.state.patchable = True
        try:
            result = func(*args, **kwargs)
        finally:
            self.tracer.state.patchable = False
        if not self.tracer.muted:
            self._note(func, args, kwargs, result, (where, turn))
        return result

    def _note(self, func: Any, args: Any, kwargs: Any, result: Any, where: tuple[str, int]) -> None:
        state, frame = self.tracer.state, self.tracer.state.stack[-1]
        sizes: list[Slots | None] = []
        factor = None
        if func is ATTENTION:
            factor = args[0].shape[-1] ** -0.5 if kwargs.get("scale") is None else kwargs["scale"]
        elif func in SCALED:
            factor = args[1]
        elif func is PART:
            if not (sizes := _bound_rows(args[0], args[1], state.of(args[0]))):
                return
        elif func in SPLITS or func in CHUNKS:
            dim = kwargs.get("dim", args[2] if len(args) > 2 else 0) % args[0].ndim
            sizes = [_rows(state.of(part), dim) for part in result]
        elif func in (Tensor.unflatten, torch.unflatten):
            first = args[1] % args[0].ndim
            sizes = [_rows(state.of(result), first + index) for index in range(len(args[2]))]
        elif requested_sizes(func, args, kwargs) is None:
            return
        else:
            sizes = [_rows(state.of(result), dim) for dim in range(result.ndim)]
        state.record.requests.append(TracedRequest(frame.name, *where, tuple(sizes), factor))


def _bound_rows(tensor: Tensor, index: Any, labels: Labels) -> list[Slots | None]:
    """For each bound of a slice, the slots before it; nothing where no labelled dimension is sliced."""
    parts = index if isinstance(index, tuple) else (index,)
    if any(part is None or isinstance(part, (Tensor, list)) for part in parts):
        return []
    after = len(parts) - parts.index(Ellipsis) - 1 if Ellipsis in parts else 0
    found: list[Slots | None] = []
    for number, part in enumerate(parts):
        before = Ellipsis not in parts or number < len(parts) - after
        dim = number if before else tensor.ndim - len(parts) + number
        if isinstance(part, slice):
            rows = _rows(labels, dim)
            found += [None if rows is None else rows[:b] for b in (part.start, part.stop) if type(b) is int]
    return found if any(rows is not None for rows in found) else []


def _rows(labels: Labels, dim: int) -> Slots | None:
    factor = labels.factor(dim)
    return None if factor is None else factor.first(dim)
