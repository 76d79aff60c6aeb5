"""Modules that replace others by a change of class.

The names of parameters and buffers, hooks, training mode and `isinstance` stay as they were; what is computed changes.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, ClassVar

from torch import nn


class Replacement(nn.Module):
    """What a replacement adds to the class it stands in for: the settings its `forward` needs.

    Attributes:
        kind: its name in the record of a network.
        prefix: what its name adds to that of the class it stands in for.
        settings: an instance of `Settings`, a frozen dataclass of JSON values.
    """

    kind: ClassVar[str]
    prefix: ClassVar[str]
    Settings: ClassVar[type[Any]]
    settings: Any

    def settle(self) -> None:
        """Make the module's own integers agree with its settings."""

    def record(self) -> dict[str, Any]:
        """All that `replace_module` needs to make the same replacement again."""
        return asdict(self.settings)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copied and pickled by the two classes it is made of: its own is made while the program runs."""
        return _bare, type(self).__bases__, self.__getstate__()  # type: ignore[no-untyped-call]


_JOINED: dict[tuple[type[Replacement], type[nn.Module]], type[nn.Module]] = {}


def replace_module(module: nn.Module, replacement: type[Replacement], settings: Any) -> None:
    """Turn `module` into a replacement of its class, or give one that is that already new settings."""
    if not isinstance(module, replacement):
        module.__class__ = _joined(replacement, type(module))
    module.__dict__["settings"] = settings
    module.settle()  # type: ignore[operator]


def _joined(replacement: type[Replacement], base: type[nn.Module]) -> type[nn.Module]:
    """The class of both, one for every pair: copies of a module are of the same class."""
    if (replacement, base) not in _JOINED:
        name = f"{replacement.prefix}{base.__name__}"
        _JOINED[replacement, base] = type(name, (replacement, base), {"__module__": base.__module__})
    return _JOINED[replacement, base]


def _bare(replacement: type[Replacement], base: type[nn.Module]) -> nn.Module:
    joined = _joined(replacement, base)
    return joined.__new__(joined)
