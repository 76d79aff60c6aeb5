"""The modules of a network without its tensors, ready to be made anew, again and again, around other tensors."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from amc.surgery.fitting import resize_layers, walk, widths_of

Module = TypeVar("Module", bound=nn.Module)
PLAIN = frozenset((type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size))  # never change
STORES = ("_parameters", "_buffers", "_modules")


class Slot(NamedTuple):
    """Where a tensor stands: the module's number in the walk, which of its stores, its name there and in the network.

    `tensor` is the dense one, or what copying the modules left of it.
    """

    module: int
    store: str
    name: str
    key: str
    tensor: Tensor


@dataclass(frozen=True)
class ModuleTemplate:
    """One module.

    Attributes:
        kind: its class.
        attributes: all of them, in their order; those that never change are the same in every copy.
        empty: of them, those that hold an empty OrderedDict or set: hooks and the like, never shared by two modules.
        children: name -> the child's number in the walk.
        others: those that have to be copied; they may lead to modules and tensors.
    """

    kind: type[nn.Module]
    attributes: Mapping[str, Any]
    empty: Mapping[str, type]
    children: Mapping[str, int | None]
    others: Mapping[str, Any]

    @classmethod
    def of(cls, module: nn.Module, numbers: Mapping[int, int]) -> ModuleTemplate:
        own = {name: value for name, value in module.__dict__.items() if name not in STORES}
        empty = {name: type(value) for name, value in own.items() if type(value) in (OrderedDict, set) and not value}
        others = {name: value for name, value in own.items() if name not in empty and not _never_changes(value)}
        children = {name: None if child is None else numbers[id(child)] for name, child in module._modules.items()}
        return cls(type(module), dict(module.__dict__), empty, children, others)


class Blueprint(Generic[Module]):
    """Makes copies of a network around other tensors, as `copy.deepcopy` would, many times faster.

    What does not depend on the tensors is found once, so the network must not change between copies. A network with a
    class that says itself how it is copied is left to `deepcopy`.
    """

    def __init__(self, model: Module) -> None:
        self.model = model
        self.paths, modules = zip(*walk(model), strict=True)
        self._memo: dict[int, Any] = {
            id(tensor): tensor
            for module in modules
            for tensor in (*module._parameters.values(), *module._buffers.values())
        }
        self._originals = [id(module) for module in modules]
        self._parts: list[ModuleTemplate] | None = None
        if not any(map(_copies_itself, set(map(type, modules)))):
            numbers = {identity: number for number, identity in enumerate(self._originals)}
            self._parts = [ModuleTemplate.of(module, numbers) for module in modules]
            self._slots = _slots(zip(self.paths, modules, strict=True))
            self._sized = [number for number, module in enumerate(modules) if widths_of(module)]

    def build(self, tensors: Mapping[str, Tensor]) -> tuple[Module, dict[str, nn.Module]]:
        """A copy that holds `tensors` (by name, copied) in place of its own, its modules' integers to fit.

        Returns:
            the network, and its modules by their first names.
        """
        if self._parts is None:
            found = walk(copy.deepcopy(self.model, dict(self._memo)))
            made, slots, sized = [module for _, module in found], _slots(found), list(range(len(found)))
        else:
            made, slots, sized = self._modules(), self._slots, self._sized
        replaced: dict[int, nn.Parameter] = {}  # by the dense parameter's id: layers that share one go on sharing
        for number, store, name, key, tensor in slots:
            new: Tensor = replaced.get(id(tensor), tensor)
            if new is tensor and (data := tensors.get(key)) is not None:
                new = data.clone() if data.data_ptr() == tensor.data_ptr() else data
                if store == "_parameters":
                    new = replaced[id(tensor)] = nn.Parameter(new, requires_grad=tensor.requires_grad)
            made[number].__dict__[store][name] = new
        resize_layers(made[number] for number in sized)
        return made[0], dict(zip(self.paths, made, strict=True))  # type: ignore[return-value]

    def _modules(self) -> list[nn.Module]:
        """The modules anew, in the order of the walk, with places for their tensors."""
        assert self._parts is not None
        made = [part.kind.__new__(part.kind) for part in self._parts]
        memo = {**self._memo, **dict(zip(self._originals, made, strict=True))}
        for module, part in zip(made, self._parts, strict=True):
            state = module.__dict__
            state.update(part.attributes)
            for name, kind in part.empty.items():
                state[name] = kind()
            for name, value in part.others.items():
                state[name] = _copied(value, memo)
            children = part.children.items()
            state["_parameters"], state["_buffers"] = {}, {}
            state["_modules"] = {name: None if number is None else made[number] for name, number in children}
        return made


def _slots(modules: Iterable[tuple[str, nn.Module]]) -> list[Slot]:
    """Every slot of a tensor, None among them, in the order of the walk."""
    return [
        Slot(number, store, name, f"{path}.{name}" if path else name, tensor)
        for number, (path, module) in enumerate(modules)
        for store in STORES[:2]
        for name, tensor in module.__dict__[store].items()
    ]


def _never_changes(value: Any) -> bool:
    return type(value) in PLAIN or (type(value) is tuple and PLAIN.issuperset(map(type, value)))


def _copies_itself(kind: type[nn.Module]) -> bool:
    rules = ("__reduce_ex__", "__reduce__", "__getstate__")
    return hasattr(kind, "__deepcopy__") or any(getattr(kind, rule) is not getattr(nn.Module, rule) for rule in rules)


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """An attribute of a module, copied as `deepcopy` would."""
    kind = type(value)
    if _never_changes(value):
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind is dict:
        memo[id(value)] = {key: _copied(item, memo) for key, item in value.items()} if value else {}
    elif kind is set and PLAIN.issuperset(map(type, value)):
        memo[id(value)] = set(value)
    else:
        return copy.deepcopy(value, memo)
    return memo[id(value)]
