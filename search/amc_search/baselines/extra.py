"""Libraries that only the baselines need, imported where they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class MissingExtra(ValueError):
    """A method needs a library of the extra `bench`, which is not installed."""

    def __init__(self, method: str, library: str) -> None:
        self.method, self.library = method, library
        super().__init__(method, library)

    def __str__(self) -> str:
        return (
            f"the method {self.method} needs the library {self.library}, which is not installed: "
            "pip install 'amc-compress[bench]'"
        )


def required(library: str, method: str) -> Any:
    """A module by name.

    Raises:
        MissingExtra: it, or a library it needs, is not installed.
    """
    try:
        return import_module(library)
    except ImportError as error:
        raise MissingExtra(method, library.partition(".")[0]) from error
